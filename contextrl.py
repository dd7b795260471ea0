"""ContextRL: context-augmented reinforcement learning for vision-language models (arXiv 2602.22623).

    torchrun contextrl.py                                        the built-in world, to the end, on a laptop
    torchrun --nproc-per-node 8 contextrl.py settings/contextrl.json --data train.jsonl --verifier http://HOST/v1
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 contextrl.py ...
    (any of them) --output_dir DIR --resume                      starts, or goes on from the last checkpoint
    python contextrl.py --help                                   every setting

One step, in the paper's order:

    sample     K responses for each query                                              section 3.2, stage 1
    verify     a judge that sees the FULL solution gives 0 / 1 and a mistake report    section 3.1
    resample   queries without a positive: one retry per negative, seeing try + report section 3.2, stage 2
    filter     keep retries that are verified and independent                          section 3.2
    roll back  kept retries join the negatives under the ORIGINAL prompt: mixed group  section 3.3
    train      clipped policy gradient; mixed groups scaled by λ; selective KL         section 3.3
    (choose)   with --context_pairs: an auxiliary loss, which context supports the answer?  arXiv 2606.17053

As in the paper: all but the last line.  Decided by us where the paper is silent: docs/decisions.md.
Not here: tools, multi-turn, asynchronous rollouts, a reward model that learns.
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
from context_pairs.loss import auxiliary_loss
from data import DataError, Query, next_items, retry_message
from eval import evaluate_queries, summarise, table
from policy import Auxiliary, all_gather, all_sum
from reward import Verdict, VerifierLike, is_independent
from sampler import Engine, Rollout, Sample, on_leader, resample, sample
from tools.files import write_whole
from tools.programs import Stopped, one_line_errors
from training.config import Config, read_config
from training.continuous import two_stages
from training.parts import RULE, Parts, assemble, counted_families, data_note, takes_turns
from training.plan import plan
from training.report import write_report
from training.rollouts import judge_metrics, rollout_of_row, statistics
from training.run_folder import RunFolder
from training.stopping import interruptible

# Axis letters: _P query (prompt) of the batch, _G member of its group.


# ------------------------------------------------------------------------------------------------- the method

def collect(rollouts_P: list[Rollout], step: int, p: Parts) -> None:
    """Sample, verify, resample, filter, roll back: everything before the update, for one batch of queries."""
    config, engine, seed_key = p.config, p.engine, (p.config.seed, step)

    def retry_messages(rollout: Rollout) -> list[str]:
        """What stage 2 says to each member; []: no stage 2, there is a positive or a verdict is missing."""
        if not (config.stage2 and rollout.hard):
            return []
        reports_G = [verdict.report if config.report else "" for verdict in rollout.verdicts_G]
        return [retry_message(report, p.retry_template) for report in reports_G]

    continuous = hasattr(engine, "step") and not config.barrier and not takes_turns(p.verifier)
    if continuous:                     # the same as below without the waiting in between: one running batch
        two_stages(engine, rollouts_P, config.group_size, seed_key, p.verifier.judge_one, retry_messages,
                   config.judge_concurrency)
    else:
        sample(engine, rollouts_P, config.group_size, seed_key)
        verify(engine, p.verifier, rollouts_P)
        hard_P = [rollout for rollout in rollouts_P if retry_messages(rollout)]
        resample(engine, hard_P, [retry_messages(rollout) for rollout in hard_P], seed_key)
        verify(engine, p.verifier, hard_P, retries=True)
    for rollout in rollouts_P:
        rollout.kept_G = [verdict.correct and is_independent(retry.text) for retry, verdict
                          in zip(rollout.retries_G, rollout.retry_verdicts_G, strict=True)]
        rollout.group = roll_back(rollout, config)


def verify(engine: Engine, verifier: VerifierLike, rollouts_P: list[Rollout], retries: bool = False) -> None:
    """All responses of a stage in one call of the verifier: fills verdicts_G, or retry_verdicts_G."""
    drawn = [(r.query, s.text) for r in rollouts_P for s in (r.retries_G if retries else r.samples_G)]
    queries, texts = [query for query, _ in drawn], [text for _, text in drawn]
    verdicts = iter(on_leader(engine, lambda: verifier.judge(queries, texts)) if drawn else [])
    for r in rollouts_P:
        if retries:
            r.retry_verdicts_G = [next(verdicts) for _ in r.retries_G]
        else:
            r.verdicts_G = [next(verdicts) for _ in r.samples_G]


def roll_back(r: Rollout, config: Config) -> grpo.Group:
    """Context rollback: kept retries become further responses to the ORIGINAL prompt, with their own ids.
    Here verdicts become rewards (DAPO: and lengths penalties)."""
    def member(drawn: Sample, verdict: Verdict) -> grpo.Member:
        penalty = grpo.overlong_penalty(len(drawn.ids), config.max_new_tokens, config.overlong_buffer)
        return grpo.Member(drawn.ids, drawn.logprobs, verdict.reward,
                           penalty=penalty if config.method == "dapo" else 0.0)

    sampled = [member(s, v) for s, v in zip(r.samples_G, r.verdicts_G, strict=True)]
    recovered = [member(s, v) for s, v, kept
                 in zip(r.retries_G, r.retry_verdicts_G, r.kept_G, strict=True) if kept]
    return grpo.form_group(r.prompt, sampled, recovered, config.mixed_scale, r.query.id)


# -------------------------------------------------------------------- where the rollouts of a step come from
# Each -> (this rank's share of the step's rollouts, their metrics); moves the run's data cursor.

def sample_rollouts(p: Parts) -> tuple[list[Rollout], dict]:
    """By the policy as it is.  DAPO's dynamic sampling draws further queries until every rank has its share
    of groups with variance, at most `refill_rounds` times; other methods take one round."""
    config, run, engine = p.config, p.run, p.engine
    rollouts: list[Rollout] = []
    times: Counter = Counter()
    cursor = run.cursor

    def draw(mine: list[tuple[Query, str]]) -> list[Rollout]:
        drawn = [Rollout(query, p.processor.prompt(query), name) for query, name in mine]
        collect(drawn, run.step + 1, p)
        return drawn

    for _ in range(config.refill_rounds if config.method == "dapo" else 1):
        batch = next_items(p.queries, cursor, config.queries_per_step, config.seed)
        cursor += len(batch)
        names = []                                  # seeds differ where a small data set brings a query twice
        for query in batch:
            times[query.id] += 1
            names.append(query.id if times[query.id] == 1 else f"{query.id}, time {times[query.id]}")
        mine = list(zip(batch, names, strict=True))[engine.replica::engine.replicas]
        rollouts += interruptible(draw, mine, shared_engine=config.tensor_parallel > 1)
        useful = sum(r.group.kind is grpo.GroupKind.ONLINE for r in rollouts)
        too_few = float(useful < config.queries_per_step // engine.replicas)
        if all_sum(torch.tensor(too_few)) == 0:                         # no rank needs more
            break
    rollouts = rollouts if engine.leader else []            # tensor parallel ranks all hold the same
    metrics = statistics(rollouts)
    if metrics["response_length"] == 0:
        raise Stopped(f"all prompts of step {run.step + 1} are too long for the engine")
    if metrics["truncated_share"] == 1:
        run.print(f"step {run.step + 1}: every response ran into --max_new_tokens {config.max_new_tokens}")
    run.cursor = cursor
    return rollouts, metrics


def recorded_rollouts(p: Parts) -> tuple[list[Rollout], dict]:
    """As --rollouts_from has them: no engine, no judge."""
    by_id = {q.id: q for q in p.queries}
    rows = p.recorded[p.run.step + 1][p.run.rank::p.run.world]
    rollouts = interruptible(lambda: [rollout_of_row(row, by_id[row["query"]], p.processor) for row in rows])
    for rollout in rollouts:
        rollout.group = roll_back(rollout, p.config)
    return rollouts, statistics(rollouts)


def reference_rollouts(p: Parts) -> tuple[list[Rollout], dict]:
    """SFT in the same code: a group of one, the reference, with advantage 1: the gradient of -logp."""
    def reference(query: Query) -> Rollout:
        member = grpo.Member(p.processor.encode_response(query.solution), [], 1.0, advantage=1.0)
        prompt = p.processor.prompt(query)
        return Rollout(query, prompt, query.id,
                       group=grpo.Group(prompt, [member], grpo.GroupKind.ONLINE, query.id))

    batch = next_items(p.queries, p.run.cursor, p.config.queries_per_step, p.config.seed)
    rollouts = interruptible(lambda: [reference(query) for query in batch[p.run.rank::p.run.world]])
    p.run.cursor += len(batch)
    return rollouts, {}


# --------------------------------------------------------------------------------------------------- one step

def update(p: Parts, rollouts: list[Rollout]) -> dict:
    """The optimiser steps of one batch -> metrics.  The engine's memory is the trainer's meanwhile; then it
    gets the new weights."""
    if p.engine:
        p.engine.sleep()
    step = p.run.step + 1
    metrics = p.policy.update([r.group for r in rollouts], step, p.config.update_settings(), auxiliary(p))
    if p.engine:
        p.engine.load_weights(p.policy.weights())
    if step == 1:
        self_check(p, metrics)
    return metrics


def auxiliary(p: Parts) -> Auxiliary | None:
    """This rank's share of the step's context pairs, `context_batch` for every optimiser step."""
    if not p.pairs:
        return None
    n = p.config.context_batch * p.config.minibatches
    batch = next_items(p.pairs, p.run.step * n, n, p.config.seed)
    return auxiliary_loss(batch[p.run.rank::p.run.world], p.config.context_weight, p.processor)


def self_check(p: Parts, metrics: dict) -> None:
    """First-step numbers with what they should be: a stranger sees at once if something is wired wrongly, and
    then the run stops."""
    if metrics["ratio_before_update"] is None:
        return p.run.print("self-check of the first step: no group has variance, there is nothing to check")
    ratio, kl = metrics["ratio_before_update"], metrics["kl_before_update"]
    gap, entropy, norm = metrics["engine_gap_mean"], metrics["entropy"], metrics["grad_norm"]
    most = 1e-3 if p.policy.compute_dtype is torch.float32 else 0.1                                 # rounding
    lines = [("mean ratio before the update", ratio, abs(ratio - 1) < most, "1: the policy has not moved"),
             ("KL to the start policy, before", kl, abs(kl) < most, "0: nothing has moved yet"),
             ("mean |engine - trainer| log-prob", gap, gap < most or bool(p.recorded), f"below {most}"),
             ("entropy per token (nats)", entropy, entropy >= 0, "not below 0"),
             ("gradient norm", norm, norm > 0, "above 0")]
    p.run.print("self-check of the first step\n"
                + "\n".join(f"  {n:38s} {v:10.6f}   expected {e}" for n, v, _, e in lines))
    wrong = [f"{name} is {value:.3g}, expected {e}" for name, value, holds, e in lines if not holds]
    if wrong and p.config.self_check:
        raise Stopped(f"self-check of the first step: {wrong[0]} (--no_self_check goes on all the same)")


def evaluate(p: Parts) -> dict:
    """Accuracies on the held-out queries at T = 1, at the ends greedy ones as well; {} without queries."""
    config, run = p.config, p.run

    def mine(temperature: float) -> list[dict]:
        records = evaluate_queries(p.engine, p.processor, p.heldout, p.exact_verifier, RULE, temperature,
                                   (config.seed, run.step, "evaluation"), run.rank > 0)
        return records if p.engine.leader else []

    def summary(temperature: float) -> dict:
        shares = all_gather(interruptible(mine, temperature, shared_engine=config.tensor_parallel > 1))
        return summarise([record for share in shares for record in share], counted_families(p.heldout))

    if not p.heldout:
        return {}
    return {"eval": summary(1.0)} | ({"eval_greedy": summary(0.0)} if run.step in (0, config.steps) else {})


def finish_step(p: Parts) -> None:
    """Evaluates when due, and writes the step's row of metrics."""
    p.run.log(evaluate(p) if p.run.evaluation_is_due() else {})


# ------------------------------------------------------------------------------------------------------- loop

def train(config: Config) -> Path:
    """-> the run folder, which is this run's alone meanwhile."""
    run, device = start_ranks(config)
    with run.held():
        if run.finished:
            run.print(f"the run in {run.folder} is complete")
        else:
            loop(assemble(config, run, device))
    return run.folder


def loop(p: Parts) -> None:
    """All ranks run the same lines; the order of the verbs is the paper's."""
    config, run = p.config, p.run
    next_rollouts = (reference_rollouts if config.method == "sft" else
                     recorded_rollouts if p.recorded else sample_rollouts)

    with run.at_work(p.policy), progress_bar(p) as bar:
        if run.row:                     # of the start policy, or of a step that was stopped before its end
            finish_step(p)
        while run.goes_on():
            # Sample, verify, resample, filter, roll back (or take what was recorded, or the references).
            began = time.time()
            rollouts, metrics = next_rollouts(p)
            metrics = {"step": run.step + 1} | metrics | judge_metrics(p.verifier)
            run.record(rollouts)
            run.tokens_sampled += int(metrics.get("tokens_sampled", 0))

            # Train; the engine gets the new weights.
            collected = time.time()
            metrics |= {} if config.rollout_only else update(p, rollouts)
            metrics |= {"time/rollout": collected - began, "time/update": time.time() - collected}
            run.step, run.row = run.step + 1, metrics

            # Evaluate when due, write.
            finish_step(p)
            if run.checkpoint_is_due():
                run.save(p.policy)
            bar.update()
            shown = ("reward", "hard_share", "recovered_share")
            bar.set_postfix({k: f"{metrics[k]:.2f}" for k in shown if metrics.get(k) is not None})
    if run.step == config.steps:
        finish(p)


def progress_bar(p: Parts) -> tqdm:
    return tqdm(total=p.config.steps, initial=p.run.step, disable=p.run.rank > 0, desc=p.config.method)


def start_ranks(config: Config) -> tuple[RunFolder, str]:
    """-> (run folder, not made yet; device name).  One CPU process without torchrun needs no group."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = config.on_cuda()
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(device)
    if cuda or world > 1:                      # one GPU is a mesh of one: the same mixed precision as on many
        alone: dict = {"store": dist.HashStore(), "rank": 0, "world_size": 1} if world == 1 else {}
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(hours=1), **alone)
    replicas = world // config.tensor_parallel
    if world % config.tensor_parallel:
        raise DataError(f"--tensor_parallel {config.tensor_parallel} does not divide {world} ranks")
    if config.queries_per_step % replicas:
        raise DataError(f"--queries_per_step {config.queries_per_step} cannot be split over {replicas} ranks")
    return RunFolder(config, rank, world), device


def finish(p: Parts) -> None:
    """summary.json, the table of start and end, report.html."""
    config, run = p.config, p.run
    if run.rank:
        return
    evaluated = [row for row in run.metrics() if row.get("eval")]
    summary: dict = {"method": config.method, "seed": config.seed, "steps": config.steps,
                     "tokens_sampled": run.tokens_sampled, "wall_seconds": round(run.elapsed(), 1),
                     "note": data_note(p.queries)}
    if evaluated:
        start, end = evaluated[0], evaluated[-1]
        columns = {"start (T=1)": start["eval"], "start (greedy)": start["eval_greedy"]}
        summary |= {"start": start["eval"], "start_greedy": start["eval_greedy"]}
        if not config.rollout_only:
            columns |= {"end (T=1)": end["eval"], "end (greedy)": end["eval_greedy"]}
            summary |= {"end": end["eval"], "end_greedy": end["eval_greedy"]}
        best = max(evaluated, key=lambda row: row["eval"]["process_accuracy"])               # the first such
        summary["best"] = {"step": best["step"], "process_accuracy": best["eval"]["process_accuracy"]}
        print(table(columns))
    write_whole(run.folder / "summary.json", json.dumps(summary, indent=2))
    print(f"report: {write_report([run.folder])}")


def main() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()              # loading bars of a model that loads in a second
    logging.set_verbosity_error()               # what matters is raised
    try:
        with one_line_errors("; --resume goes on from the last checkpoint"):
            config = read_config(sys.argv[1:])
            if not config.dry_run:
                train(config)
            elif int(os.environ.get("RANK", 0)) == 0:
                print(plan(config))
    finally:
        gc.collect()             # gloo aborts a process whose group goes while a sharded model still holds it
        if dist.is_initialized() and "vllm" not in sys.modules:  # vLLM clears up at exit, the groups included
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
