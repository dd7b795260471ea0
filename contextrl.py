"""ContextRL: context-augmented reinforcement learning for vision-language models (arXiv 2602.22623).

    torchrun contextrl.py                                        the built-in world, to the end, on a laptop
    torchrun --nproc-per-node 8 contextrl.py paper.json --data train.jsonl --verifier http://HOST:8000/v1
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 contextrl.py ...
    (the same command, with --output_dir) --resume               goes on from the last checkpoint
    python contextrl.py --help                                   every setting

One step, in the paper's order (main loop at the bottom):

    sample     K responses for each query                                                     section 3.2, stage 1
    verify     a judge that sees the FULL solution gives 0 / 1 and a mistake report           section 3.1
    resample   queries without a positive: one retry per negative, seeing try and report      section 3.2, stage 2
    filter     keep retries that are verified and independent                                 section 3.2
    roll back  kept retries join the negatives under the ORIGINAL prompt: a mixed group       section 3.3
    train      clipped policy gradient; mixed groups scaled by λ; selective KL                section 3.3
    (select)   with --context_pairs: an auxiliary loss, which of two contexts supports the answer?  arXiv 2606.17053

Kept from the paper: all of the above.  Decided by us where the paper is silent: see "Deviations and decisions" in
the README.  Not here: tools, multi-turn, asynchronous rollouts, a reward model that learns.
"""

import gc
import json
import os
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

import grpo
import sampler
import toy
from training.config import Config, UsageError, first_line, read_config
from data import DataError, Processor, Prompt, Query, batch_order, load_queries
from eval import measure, summarise, table
from judges.server import LocalChat, OpenAIChat
from context_pairs.pairs import ContextPair, as_query, deal_letters, load_pairs, turned, usable
from policy import Policy, Row, all_gather, all_sum, choice
from training.report import write_report
from reward import JudgeError, RuleVerifier, Verdict, Verifier, VerifierUnreliable
from training.run_folder import Rollout, Run, model_fingerprint, read_recording, record, replay, statistics, write_atomic
from sampler import HFEngine, Sample, VLLMEngine


def dist_init(cuda: bool) -> tuple[int, int, str]:
    """-> (rank, world size, device name).  Works with and without torchrun; a single CPU process needs no group."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)
    if cuda or world > 1:                        # a single GPU is a mesh of one: the same mixed precision as on many
        alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if world == 1 else {}
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(minutes=60), **alone)
    return rank, world, device


# ------------------------------------------------------------------------------------------------------- parts

def build_data(config: Config) -> tuple[list[Query], list[Query], list[ContextPair], set[str] | None]:
    """-> (training queries, held-out queries, context pairs, families that count in the overall score)."""
    train = toy.train_queries() if config.data == "toy" else load_queries(config.data)
    pairs = []
    if config.context_pairs:
        pairs = (deal_letters(toy.train_pairs(), config.seed) if config.context_pairs == "toy" else
                 load_pairs(config.context_pairs, config.seed))
    if config.context_as_data:                   # the control of that paper: pairs that are sampled and rewarded
        train, pairs = [*train, *map(as_query, pairs)], []
    heldout = load_queries(config.eval_data) if config.eval_data else (
        toy.heldout_queries() if config.data == "toy" else [])
    return train, heldout, pairs, toy.COUNTED if toy.COUNTED & {q.family for q in heldout} else None


# What transformers raises on folders that are not a complete checkpoint of a vision-language model.
LOADING = (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError, ImportError)


def find_judge(config: Config, run: Run, queries: list[Query]) -> OpenAIChat | None:
    """Before anything is loaded: is there somebody who can judge?  -> the client of servers, if it is servers."""
    if config.verifier == "toy":
        stranger = next((q for q in queries if not toy.knows(q)), None)
        if stranger:
            raise UsageError(f"query {stranger.id}: --verifier toy needs the facts of its picture")
    elif config.verifier == "rule":
        return None
    elif "://" in config.verifier:
        chat = OpenAIChat(config.verifier, config.judge_model, config.judge_timeout,
                          log=str(run.folder / f"judge-{run.rank:05d}.jsonl"))
        chat.check()
        return chat
    else:
        try:
            model_fingerprint(config.verifier)
        except LOADING as error:
            raise UsageError(f"cannot load verifier {config.verifier}: {first_line(error)}") from None
    return None


def build_verifiers(config: Config, run: Run, queries: list[Query], chat, engine):
    """-> (verifier of training, verifier of evaluation: always the full solution, and exact where that exists)."""
    if config.verifier == "toy":
        return toy.ToyVerifier(config.verifier_context), toy.ToyVerifier("solution")
    known = all(map(toy.knows, queries))
    if config.verifier == "rule":
        return RuleVerifier(), toy.ToyVerifier("solution") if known else RuleVerifier()
    if chat is None:
        chat = LocalChat(config.verifier, engine, config.max_context, memory_share=config.engine_memory)
    settings = {"concurrency": config.judge_concurrency, "max_failed_share": config.judge_max_failed}
    verifier = Verifier(chat, config.verifier_context, **settings)
    run.print(f"verifier {config.verifier}: {verifier.stops_after()}")
    if known:
        return verifier, toy.ToyVerifier("solution")
    return verifier, verifier if config.verifier_context == "solution" else Verifier(chat, "solution", **settings)


def build_policy(config: Config, run: Run, device: str) -> tuple[Processor, Policy]:
    from safetensors import SafetensorError

    try:
        processor = Processor(config.model, config.max_pixels)
        policy = Policy(config.model, processor, config.learning_rate, config.steps, config.warmup_steps,
                        config.min_lr_ratio, config.weight_decay, config.temperature, config.kl_coef > 0, device,
                        compute_dtype=torch.bfloat16 if config.on_cuda() and config.dtype != "float32" else None,
                        attention=None if config.attention == "auto" else config.attention,
                        gradient_checkpointing=config.gradient_checkpointing, freeze_vision=config.freeze_vision,
                        offload_reference=config.offload_reference)
    except (*LOADING, SafetensorError) as error:
        raise UsageError(f"cannot load model {config.model}: {first_line(error)}") from None
    if run.checkpoint:
        was, now = run.state()["model"], model_fingerprint(config.model)
        if was != now:
            raise UsageError(f"--resume: checkpoint of another model ({was}) than {config.model} ({now})")
        try:
            policy.load(run.checkpoint)
        except (*LOADING, SafetensorError) as error:
            raise UsageError(f"cannot load checkpoint {run.checkpoint}: {first_line(error)}") from None
    return processor, policy


def build_engine(config: Config, processor: Processor, policy: Policy):
    """Starts with the policy's present weights: those of a checkpoint if the run is resumed."""
    if config.engine == "vllm":
        engine = VLLMEngine(config.model, processor, config.temperature, config.max_new_tokens, config.max_context,
                            config.tensor_parallel, config.engine_memory, dtype=str(policy.compute_dtype)[6:])
    else:                                       # shards cannot generate: the engine then has a whole copy of its own
        model = policy.whole_copy() if policy.sharded else policy.model
        engine = HFEngine(model, processor, config.temperature, config.max_new_tokens)
    engine.load_weights(policy.weights())
    return engine


def next_queries(queries: list, cursor: int, n: int, seed: int) -> list:
    """n queries (or context pairs) from `cursor` on in an endless stream of reshuffled epochs."""
    return [queries[batch_order(len(queries), i // len(queries), seed)[i % len(queries)]]
            for i in range(cursor, cursor + n)]


# -------------------------------------------------------------------------------------------------- the method
# Axis letters: _P query (prompt) of the batch, _G member of its group.

def collect(batch_P: list[Query], ids_P: list[str], step: int, config: Config, engine, processor: Processor,
            verifier) -> list[Rollout]:
    """Sample, verify, resample, filter, roll back: everything before the update, for one batch of queries.

    `ids_P` seed the samples and differ within a step, also where a small data set brings a query twice.
    """
    prompts_P = [processor.prompt(q) for q in batch_P]
    shown = (prompts_P, ids_P, config.group_size, (config.seed, step))

    def reports_for(verdicts_G: list[Verdict]) -> list[str] | None:
        """What stage 2 shows, or None: no stage 2.  Only where every verdict is there and negative: a failed judge
        must not look like a hard query."""
        if not config.stage2 or any(v.reward != 0.0 for v in verdicts_G):
            return None
        return [v.report if config.report else "" for v in verdicts_G]

    if config.engine == "vllm" and not config.barrier:
        def judge(p: int, sample: Sample) -> Verdict:
            return verifier.judge_one(batch_P[p], sample.text)
        stages = sampler.two_stages(engine, processor, *shown, judge, reports_for, config.judge_concurrency)
    else:
        stages = one_after_the_other(engine, processor, batch_P, *shown, verifier, reports_for)

    rollouts_P = []
    for query, prompt, samples_G, verdicts_G, retries_G, retry_verdicts_G in zip(
            batch_P, prompts_P, *stages, strict=True):
        kept_G = [v.reward == 1.0 and sampler.is_independent(r.text)
                  for r, v in zip(retries_G, retry_verdicts_G, strict=True)]
        parts = (samples_G, verdicts_G, retries_G, retry_verdicts_G, kept_G)
        rollouts_P.append(Rollout(query, roll_back(config, query, prompt, *parts), *parts))
    return rollouts_P


def one_after_the_other(engine, processor: Processor, batch_P: list[Query], prompts_P, ids_P, group_size: int,
                        seed_key: tuple, verifier, reports_for):
    """Sample all, verify all, resample all hard queries, verify again -> samples, verdicts, retries, their verdicts.
    `sampler.two_stages` draws the same without the waiting in between."""
    def verify(queries_P: list[Query], samples_P_G: list[list[Sample]]) -> list[list[Verdict]]:
        flat = [(q, sample.text) for q, samples_G in zip(queries_P, samples_P_G, strict=True) for sample in samples_G]
        verdicts = iter(sampler.by_leader(engine, lambda: verifier.judge(*map(list, zip(*flat)))) if flat else [])
        return [[next(verdicts) for _ in samples_G] for samples_G in samples_P_G]

    samples_P_G = sampler.stage1(engine, prompts_P, ids_P, group_size, seed_key)
    verdicts_P_G = verify(batch_P, samples_P_G)
    reports_P = [reports_for(verdicts_G) for verdicts_G in verdicts_P_G]
    hard = [p for p, reports_G in enumerate(reports_P) if reports_G is not None]
    retries = sampler.stage2(engine, processor, [prompts_P[p] for p in hard], [ids_P[p] for p in hard],
                             [samples_P_G[p] for p in hard], [reports_P[p] for p in hard], seed_key)
    again = verify([batch_P[p] for p in hard], retries)
    retries_P_G, retry_verdicts_P_G = [[] for _ in batch_P], [[] for _ in batch_P]
    for p, retries_G, verdicts_G in zip(hard, retries, again, strict=True):
        retries_P_G[p], retry_verdicts_P_G[p] = retries_G, verdicts_G
    return samples_P_G, verdicts_P_G, retries_P_G, retry_verdicts_P_G


def together(work, *arguments):
    """work(*arguments) on every rank.  If the verifier gives up on one of them all stop, and none waits for ever."""
    result, failure = None, ""
    try:
        result = work(*arguments)
    except VerifierUnreliable as error:
        failure = str(error)
    for failure in all_gather(failure):
        if failure:
            raise VerifierUnreliable(failure)
    return result


def roll_back(config: Config, query: Query, prompt: Prompt, samples_G, verdicts_G, retries_G, retry_verdicts_G,
              kept_G) -> grpo.Group:
    """Context rollback: the kept retries become further responses to the ORIGINAL prompt; ids stay as sampled."""
    def member(sample: Sample, verdict: Verdict) -> grpo.Member:
        reward = verdict.reward
        if reward is not None and config.method == "dapo":
            reward += grpo.overlong_penalty(len(sample.ids), config.max_new_tokens, config.overlong_buffer)
        return grpo.Member(sample.ids, sample.logprobs, reward)

    sampled = [member(s, v) for s, v in zip(samples_G, verdicts_G, strict=True)]
    recovered = [member(s, v) for s, v, kept in zip(retries_G, retry_verdicts_G, kept_G, strict=True) if kept]
    return grpo.form_group(prompt, sampled, recovered, config.mixed_scale, query.id)


def context_choices(pairs: list[ContextPair], step: int, config: Config, processor: Processor, rank: int, world: int,
                    ) -> list[Row]:
    """This rank's share of the step's context pairs, `context_batch` for every optimiser step."""
    if not pairs:
        return []
    n = config.context_batch * config.minibatches
    batch = next_queries(pairs, (step - 1) * n, n, config.seed)
    ids = processor.option_ids()
    return [choice(processor.prompt(as_query(pair)), ids[pair.letter], ids[turned(pair).letter])
            for pair in batch[rank::world]]


def collect_refilling(queries, run: Run, config: Config, engine, *parts) -> list[Rollout]:
    """DAPO's dynamic sampling: draw further queries until every rank has its share of groups with variance, at most
    `refill_rounds` times.  Other methods take one round.  Moves the run's data cursor."""
    share = config.queries_per_step // engine.replicas
    rollouts, times = [], Counter()
    for _ in range(config.refill_rounds if config.method == "dapo" else 1):
        batch = next_queries(queries, run.cursor, config.queries_per_step, config.seed)
        run.cursor += len(batch)
        ids = []
        for query in batch:
            times[query.id] += 1
            ids.append(query.id if times[query.id] == 1 else f"{query.id}, time {times[query.id]}")
        mine = slice(engine.replica, None, engine.replicas)
        rollouts += together(collect, batch[mine], ids[mine], run.step, config, engine, *parts)
        useful = sum(r.group.kind is grpo.GroupKind.ONLINE for r in rollouts)
        if all_sum(torch.tensor(float(useful < share))) == 0:
            break
    return rollouts if engine.leader else []            # tensor parallel ranks all hold the same


def costs(verifier) -> dict[str, float]:
    """Calls, tokens, seconds and failures of the judge since the last step, over all ranks."""
    counts = verifier.metrics() if isinstance(verifier, Verifier) else {}
    return dict(zip(counts, all_sum(torch.tensor(list(counts.values()), dtype=torch.float64)).tolist()))


def reference_groups(queries: list[Query], processor: Processor) -> list[grpo.Group]:
    """SFT in the same code: one member per query, its reference, with advantage 1; the gradient is that of -logp."""
    def reference(query: Query) -> grpo.Member:
        return grpo.Member(processor.encode_response(query.solution), [], 1.0, advantage=1.0)

    return [grpo.Group(processor.prompt(q), [reference(q)], grpo.GroupKind.ONLINE, q.id) for q in queries]


def self_check(run: Run, metrics: dict) -> None:
    """First-step numbers with what they should be; a stranger sees at once if something is wired wrongly."""
    if metrics["ratio_before_update"] is None:
        return run.print("self-check of the first step: no group has variance, there is nothing to check")
    lines = [("mean ratio before the update", metrics["ratio_before_update"], "1: the policy has not moved"),
             ("KL to the start policy, before", metrics["kl_before_update"], "0: nothing has moved yet"),
             ("largest |engine - trainer| log-prob", metrics["engine_gap_max"], "below 1e-3 in fp32"),
             ("entropy per token (nats)", metrics["entropy"], "above 0, well below ln V"),
             ("gradient norm", metrics["grad_norm"], "finite and above 0")]
    run.print("self-check of the first step\n" + "\n".join(f"  {n:38s} {v:10.6f}   expected {e}" for n, v, e in lines))


# -------------------------------------------------------------------------------------------------------- loop

def train(config: Config) -> Path:
    rank, world, device = dist_init(config.on_cuda())
    replicas = world // config.tensor_parallel
    for bad, message in [
        (world % config.tensor_parallel, f"--tensor_parallel {config.tensor_parallel} does not divide {world} ranks"),
        (config.queries_per_step % max(replicas, 1),
         f"--queries_per_step {config.queries_per_step} cannot be split over {replicas} ranks"),
    ]:
        if bad:
            raise UsageError(message)
    run = Run(config, rank, world)
    queries, heldout, pairs, counted = build_data(config)
    samples = bool(heldout) or not (config.method == "sft" or config.rollouts_from)     # else no engine and no judge
    judged = heldout if config.method == "sft" else [*queries, *heldout]
    judge = find_judge(config, run, judged) if samples else None
    by_id = {q.id: q for q in queries}
    recorded = read_recording(config.rollouts_from, set(by_id), config.steps) if config.rollouts_from else None
    processor, policy = build_policy(config, run, device)
    for query in [*queries, *heldout]:
        processor.check(query)
    if pairs:
        processor.option_ids()                                             # or one line, before anything is sampled
        pairs = usable(pairs, processor, config.max_context)
    engine = build_engine(config, processor, policy) if samples else None
    verifier, exact_verifier = None, None
    if samples:
        verifier, exact_verifier = build_verifiers(config, run, judged, judge, engine)
    run.open(config)

    def evaluate(temperature: float = 1.0) -> dict:
        records = together(measure, engine, processor, heldout, exact_verifier, temperature,
                           (config.seed, run.step, "evaluation"), rank > 0)
        shares = all_gather(records if engine.leader else [])
        return summarise([record for share in shares for record in share], counted)

    if run.step == 0 and not run.checkpoint:
        run.log({"step": 0} | ({"eval": evaluate(), "eval_greedy": evaluate(0.0)} if heldout else {}))

    last = min(config.steps, config.stop_after or config.steps)
    with tqdm(total=config.steps, initial=run.step, disable=rank > 0, desc=config.method) as bar:
        while run.step < last:
            run.step += 1
            began, rollouts, cursor = time.time(), [], run.cursor
            if config.method == "sft":
                batch = next_queries(queries, run.cursor, config.queries_per_step, config.seed)
                run.cursor += len(batch)
                groups = reference_groups(batch[rank::world], processor)
            elif recorded is not None:
                rollouts = replay(recorded[run.step][rank::world], by_id, processor,
                                  lambda *parts: roll_back(config, *parts))
                groups = [r.group for r in rollouts]
            else:
                try:
                    rollouts = collect_refilling(queries, run, config, engine, processor, verifier)
                except VerifierUnreliable:
                    run.step, run.cursor = run.step - 1, cursor            # nothing of this step has been trained
                    run.save(policy)
                    raise
                groups = [r.group for r in rollouts]
            metrics = {"step": run.step} | (statistics(rollouts) if config.method != "sft" else {}) | costs(verifier)
            run.append("rollouts.jsonl", [record(r, run.step, run.folder) for r in rollouts])
            run.tokens_sampled += int(metrics.get("tokens_sampled", 0))
            sampled = time.time()
            if not config.rollout_only:
                if engine:
                    engine.sleep()                                         # its memory is the trainer's for a while
                metrics |= policy.update(groups, run.step, config.update_settings(), context_choices(
                    pairs, run.step, config, processor, rank, world))
                if engine:
                    engine.load_weights(policy.weights())
                if run.step == 1:
                    self_check(run, metrics)
            metrics |= {"time/rollout": sampled - began, "time/update": time.time() - sampled}

            at_end = run.step == config.steps
            due = at_end or config.eval_every and run.step % config.eval_every == 0
            if heldout and due and not config.rollout_only:
                try:
                    metrics["eval"] = evaluate()
                    if at_end:
                        metrics["eval_greedy"] = evaluate(0.0)
                except VerifierUnreliable:
                    run.log(metrics)                                       # the step itself is done and kept
                    run.save(policy)
                    raise
            run.log(metrics)
            if not config.rollout_only and (run.step % config.save_every == 0 or run.step == last):
                run.save(policy)
            bar.update()
            bar.set_postfix({name: f"{metrics[name]:.2f}" for name in ("reward", "hard_share", "recovered_share")
                             if metrics.get(name) is not None})
    if run.step == config.steps:
        finish(config, run)
    return run.folder


def finish(config: Config, run: Run) -> None:
    """summary.json, the table of start and end, report.html."""
    if run.rank:
        return
    evaluated = [row for row in run.metrics() if row.get("eval")]
    summary = {"method": config.method, "seed": config.seed, "steps": config.steps,
               "tokens_sampled": run.tokens_sampled, "wall_seconds": round(run.elapsed(), 1)}
    if evaluated:
        start, end = evaluated[0], evaluated[-1]
        columns = {"start (T=1)": start["eval"], "start (greedy)": start["eval_greedy"]}
        summary |= {"start": start["eval"], "start_greedy": start["eval_greedy"]}
        if not config.rollout_only:
            columns |= {"end (T=1)": end["eval"], "end (greedy)": end["eval_greedy"]}
            summary |= {"end": end["eval"], "end_greedy": end["eval_greedy"]}
        print(table(columns))
    write_atomic(run.folder / "summary.json", json.dumps(summary, indent=2))
    print(f"report: {write_report([run.folder])}")


def main() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()              # loading bars of a model that loads in a second
    logging.set_verbosity_error()               # what matters is raised
    try:
        train(read_config(sys.argv[1:]))
    except (UsageError, DataError, JudgeError) as error:
        rank = int(os.environ.get("RANK", 0))
        if rank:                    # most errors are those of all ranks: rank 0 says it and torchrun ends the others
            time.sleep(5)
        print(f"error{f' on rank {rank}' if rank else ''}: {error}", file=sys.stderr)
        sys.exit(2)
    except (VerifierUnreliable, FloatingPointError) as error:           # raised on all ranks
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"stopped: {error}; --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(3)
    finally:
        gc.collect()                # gloo aborts a process whose group goes while a sharded model still holds it
        if dist.is_initialized() and "vllm" not in sys.modules:        # vLLM clears up at exit, the groups included
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
