"""ContextRL: context-augmented reinforcement learning for vision-language models (arXiv 2602.22623).

    torchrun contextrl.py                                        the built-in world, to the end, on a laptop
    torchrun --nproc-per-node 2 contextrl.py --steps 4           two ranks
    torchrun contextrl.py --model DIR --data train.jsonl ...     your checkpoint, your data
    python contextrl.py --help                                   every setting

One step, in the paper's order (main loop at the bottom):

    sample     K responses for each query                                                     section 3.2, stage 1
    verify     a judge that sees the FULL solution gives 0 / 1 and a mistake report           section 3.1
    resample   queries without a positive: one retry per negative, seeing try and report      section 3.2, stage 2
    filter     keep retries that are verified and independent                                 section 3.2
    roll back  kept retries join the negatives under the ORIGINAL prompt: a mixed group       section 3.3
    train      clipped policy gradient; mixed groups scaled by λ; selective KL                section 3.3

Kept from the paper: all of the above.  Decided by us where the paper is silent: see "Deviations and decisions" in
the README.  Not here: tools, multi-turn, asynchronous rollouts, a reward model that learns.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from tqdm import tqdm

import grpo
import sampler
from data import DataError, Processor, Prompt, Query, batch_order, load_queries
from eval import measure, summarise, table
from policy import Policy, UpdateSettings, all_sum, model_fingerprint
from report import write_report
from reward import Verdict, VerifierUnreliable
from runs import Rollout, Run, UsageError, read_recording, record, replay, statistics, write_atomic
from sampler import HFEngine, Sample


def setting(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class Config:
    """Every setting, flat.  `python contextrl.py FILE.json` reads them from a file."""

    method: Literal["contextrl", "grpo", "dapo", "sft"] = setting("contextrl", "what to train with")
    model: str = setting("assets/toy", "start policy: Hugging Face checkpoint folder or hub id")
    data: str = setting("toy", "training queries: a JSONL file, or 'toy' for the built-in world")
    eval_data: str = setting("", "held-out queries: a JSONL file; empty: the built-in world's, or none")
    verifier: Literal["toy"] = setting("toy", "who judges: 'toy' is the built-in world's exact verifier")
    output_dir: str = setting("", "run folder; empty: runs/<time>-<method>")
    seed: int = setting(0, "seed of data order and of every sample")

    steps: int = setting(120, "steps of the whole run (the learning-rate schedule ends there)")
    stop_after: int = setting(0, "end this session after that step; --resume goes on (0: run to the end)")
    queries_per_step: int = setting(16, "queries per step, over all ranks")
    group_size: int = setting(8, "K, stage-1 samples per query")
    max_new_tokens: int = setting(32, "longest response")
    temperature: float = setting(1.0, "sampling temperature; the trainer's log-probs use the same")
    max_pixels: int = setting(3_000_000, "largest image area after resizing")

    verifier_context: Literal["solution", "answer", "none"] = setting("solution", "what the judge is told")
    stage2: bool = setting(True, "retry queries without a positive (contextrl only)")
    report: bool = setting(True, "show the mistake report in stage 2; without: only that the try was wrong")
    mixed_scale: float = setting(0.5, "λ in (0, 1]: scales all advantages of a mixed group; 1 switches it off")
    selective_kl: bool = setting(True, "rolled-back members pay no KL")
    stage2_old_logprob: bool = setting(False, "TRAP, for study: old log-prob from the stage-2 prompt")

    learning_rate: float = setting(1.5e-4, "peak learning rate")
    warmup_steps: int = setting(3, "linear warm-up")
    min_lr_ratio: float = setting(0.1, "cosine decay ends at this share of the peak")
    weight_decay: float = setting(0.0, "AdamW")
    max_grad_norm: float = setting(1.0, "gradient clipping")
    minibatches: int = setting(2, "optimiser steps per batch of samples")
    micro_batch_tokens: int = setting(4096, "tokens of one forward pass; does not change the result")
    clip_low: float = setting(0.2, "ε_low")
    clip_high: float | None = setting(None, "ε_high; default 0.2, DAPO 0.28")
    kl_coef: float | None = setting(None, "β; default 0.01, DAPO and SFT 0; 0 loads no reference model")
    token_mean: bool | None = setting(None, "mean over tokens (DAPO, SFT) or over responses (others)")
    mismatch_cap: float = setting(2.0, "cap of the importance weight that corrects engine against trainer")
    refill_rounds: int = setting(3, "DAPO: at most this many sampling rounds to fill a batch")
    overlong_buffer: int = setting(8, "DAPO: soft length penalty over the last tokens before max_new_tokens")

    eval_every: int = setting(15, "steps between evaluations (T = 1); 0: only at the start and the end")
    save_every: int = setting(30, "steps between checkpoints; one is always written at the end")
    resume: bool = setting(False, "go on from the last checkpoint in output_dir")
    rollout_only: bool = setting(False, "sample and verify, write rollouts.jsonl, train nothing")
    rollouts_from: str = setting("", "train from a recorded rollouts.jsonl, without engine or judge")
    device: str = setting("auto", "auto, cpu or cuda")

    def resolve(self) -> "Config":
        """Fills in what depends on the method and refuses what cannot work, before anything is loaded."""
        dapo, sft = self.method == "dapo", self.method == "sft"
        self.clip_high = self.clip_high if self.clip_high is not None else (0.28 if dapo else 0.2)
        self.kl_coef = self.kl_coef if self.kl_coef is not None else (0.0 if dapo or sft else 0.01)
        self.token_mean = self.token_mean if self.token_mean is not None else (dapo or sft)
        self.stage2 = self.stage2 and self.method == "contextrl"
        for bad, message in [
            (self.steps < 1, f"--steps must be at least 1, not {self.steps}"),
            (self.group_size < 2, f"--group_size (K) must be at least 2, not {self.group_size}: no baseline"),
            (not 0 < self.mixed_scale <= 1, f"--mixed_scale (λ) must be in (0, 1], not {self.mixed_scale}"),
            (self.queries_per_step < 1, "--queries_per_step must be at least 1"),
            (self.max_new_tokens < 1, "--max_new_tokens must be at least 1"),
            (self.temperature <= 0, "--temperature must be above 0: greedy samples have no variance"),
            (self.learning_rate <= 0, "--learning_rate must be above 0"),
            (self.kl_coef < 0, "--kl_coef (β) must not be negative"),
            (not (0 < self.clip_low < 1 and self.clip_high > 0), "--clip_low must be in (0, 1), --clip_high above 0"),
            (self.minibatches < 1, "--minibatches must be at least 1"),
            (self.rollout_only and bool(self.rollouts_from), "--rollout_only and --rollouts_from exclude each other"),
            (sft and (self.rollout_only or bool(self.rollouts_from)), "--method sft has no rollouts"),
            (self.device not in ("auto", "cpu", "cuda"), f"--device must be auto, cpu or cuda, not {self.device}"),
            (self.device == "cuda" and not torch.cuda.is_available(), "--device cuda: no CUDA device is available"),
            (self.resume and not self.output_dir, "--resume needs --output_dir"),
            (self.resume and not Path(self.output_dir).is_dir(), f"--resume: no run folder {self.output_dir}"),
            (bool(self.rollouts_from) and not Path(self.rollouts_from).is_file(),
             f"--rollouts_from: no such file {self.rollouts_from}"),
        ]:
            if bad:
                raise UsageError(message)
        return self

    def update_settings(self) -> UpdateSettings:
        shared = {f.name for f in fields(UpdateSettings)} & {f.name for f in fields(self)}
        return UpdateSettings(**{name: getattr(self, name) for name in shared})


def read_config(arguments: list[str]) -> Config:
    from transformers import HfArgumentParser

    parser = HfArgumentParser(Config, description=__doc__.split("\n\n")[0])

    def refuse(message: str):
        raise UsageError(message)
    parser.error = refuse                                   # one line instead of a page of usage
    try:
        if len(arguments) == 1 and arguments[0].endswith(".json"):
            return parser.parse_json_file(arguments[0])[0].resolve()
        return parser.parse_args_into_dataclasses(arguments)[0].resolve()
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(str(error).splitlines()[0]) from None


def dist_init() -> tuple[int, int, str]:
    """-> (rank, world size, device name).  Works with and without torchrun."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"
    if world > 1:
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
    return int(os.environ.get("RANK", 0)), world, device


# ------------------------------------------------------------------------------------------------------- parts

def build_world(config: Config) -> tuple[list[Query], list[Query], object, object, set[str] | None]:
    """-> (training queries, held-out queries, training verifier, evaluation verifier, families in the overall score).

    The ONE place where this file reaches the built-in world.
    """
    import toy

    train = toy.train_queries() if config.data == "toy" else load_queries(config.data)
    heldout = load_queries(config.eval_data) if config.eval_data else (
        toy.heldout_queries() if config.data == "toy" else [])
    for query in [*train, *heldout]:
        if not query.facts:
            raise UsageError(f"query {query.id}: --verifier toy needs the facts of its picture")
    return train, heldout, toy.ToyVerifier(config.verifier_context), toy.ToyVerifier("solution"), toy.COUNTED


def build_policy(config: Config, run: Run, device: str) -> tuple[Processor, Policy]:
    from safetensors import SafetensorError

    try:
        processor = Processor(config.model, config.max_pixels)
        policy = Policy(config.model, processor, config.learning_rate, config.steps, config.warmup_steps,
                        config.min_lr_ratio, config.weight_decay, config.temperature,
                        reference=config.kl_coef > 0, device=device)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"cannot load model {config.model}: {str(error).splitlines()[0]}") from None
    if run.checkpoint:
        was, now = run.state()["model"], model_fingerprint(config.model)
        if was != now:
            raise UsageError(f"--resume: checkpoint of another model ({was}) than {config.model} ({now})")
        try:
            policy.load(run.checkpoint)
        except (OSError, ValueError, SafetensorError) as error:
            raise UsageError(f"cannot load checkpoint {run.checkpoint}: {str(error).splitlines()[0]}") from None
    return processor, policy


def next_queries(queries: list[Query], cursor: int, n: int, seed: int) -> list[Query]:
    """n queries from `cursor` on in an endless stream of reshuffled epochs."""
    return [queries[batch_order(len(queries), i // len(queries), seed)[i % len(queries)]]
            for i in range(cursor, cursor + n)]


# -------------------------------------------------------------------------------------------------- the method
# Axis letters: _P query (prompt) of the batch, _G member of its group.

def collect(batch_P: list[Query], step: int, config: Config, engine, processor: Processor, verifier) -> list[Rollout]:
    """Sample, verify, resample, filter, roll back: everything before the update, for one batch of queries."""
    prompts_P, ids_P = [processor.prompt(q) for q in batch_P], [q.id for q in batch_P]
    seed_key = (config.seed, step)

    samples_P_G = sampler.stage1(engine, prompts_P, ids_P, config.group_size, seed_key)
    verdicts_P_G = verify(batch_P, samples_P_G, verifier)

    # Only queries whose every verdict is there and negative: a failed judge must not look like a hard query.
    hard = [i for i, verdicts_G in enumerate(verdicts_P_G)
            if config.stage2 and all(v.reward == 0.0 for v in verdicts_G)]
    reports = [[v.report if config.report else "" for v in verdicts_P_G[i]] for i in hard]
    retries = sampler.stage2(engine, processor, [prompts_P[i] for i in hard], [ids_P[i] for i in hard],
                             [samples_P_G[i] for i in hard], reports, seed_key)
    retry_verdicts = verify([batch_P[i] for i in hard], retries, verifier)
    second = {i: (r, v) for i, r, v in zip(hard, retries, retry_verdicts, strict=True)}

    rollouts_P = []
    for i, query in enumerate(batch_P):
        retries_G, retry_verdicts_G = second.get(i, ([], []))
        kept_G = [v.reward == 1.0 and sampler.is_independent(r.text)
                  for r, v in zip(retries_G, retry_verdicts_G, strict=True)]
        parts = (samples_P_G[i], verdicts_P_G[i], retries_G, retry_verdicts_G, kept_G)
        rollouts_P.append(Rollout(query, roll_back(config, query, prompts_P[i], *parts), *parts))
    return rollouts_P


def verify(batch_P: list[Query], samples_P_G: list[list[Sample]], verifier) -> list[list[Verdict]]:
    """One judge call per response, all in one go -> verdicts_P_G."""
    flat = [(query, sample.text) for query, samples_G in zip(batch_P, samples_P_G, strict=True) for sample in samples_G]
    verdicts = iter(verifier.judge([query for query, _ in flat], [text for _, text in flat]))
    return [[next(verdicts) for _ in samples_G] for samples_G in samples_P_G]


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


def collect_refilling(queries, run: Run, config: Config, *parts) -> list[Rollout]:
    """DAPO's dynamic sampling: draw further queries until every rank has its share of groups with variance, at most
    `refill_rounds` times.  Other methods take one round.  Moves the run's data cursor."""
    share = config.queries_per_step // run.world
    rollouts: list[Rollout] = []
    for _ in range(config.refill_rounds if config.method == "dapo" else 1):
        batch = next_queries(queries, run.cursor, config.queries_per_step, config.seed)
        run.cursor += len(batch)
        rollouts += collect(batch[run.rank::run.world], run.step, config, *parts)
        useful = sum(r.group.kind is grpo.GroupKind.ONLINE for r in rollouts)
        if all_sum(torch.tensor(float(useful < share))) == 0:
            break
    return rollouts


def reference_groups(queries: list[Query], processor: Processor) -> list[grpo.Group]:
    """SFT in the same code: one member per query, its reference, with advantage 1 (then the gradient is that of -logp)."""
    return [grpo.Group(processor.prompt(q), [grpo.Member(processor.encode_response(q.solution), [], 1.0, advantage=1.0)],
                       grpo.GroupKind.ONLINE, q.id) for q in queries]


def self_check(run: Run, metrics: dict, config: Config) -> None:
    """First-step numbers with what they should be; a stranger sees at once if something is wired wrongly."""
    same = "1 exactly: one update per batch" if config.minibatches == 1 else "near 1"
    lines = [("mean ratio", metrics["ratio"], same), ("KL to the start policy", metrics["kl"], "0: nothing has moved yet"),
             ("largest |engine - trainer| log-prob", metrics["engine_gap_max"], "below 1e-3 in fp32"),
             ("entropy per token (nats)", metrics["entropy"], "above 0, well below ln V"),
             ("gradient norm", metrics["grad_norm"], "finite; 0 only if no group has variance")]
    run.print("self-check of the first step\n" + "\n".join(f"  {n:38s} {v:10.6f}   expected {e}" for n, v, e in lines))


# -------------------------------------------------------------------------------------------------------- loop

def train(config: Config) -> Path:
    rank, world, device = dist_init()
    if config.queries_per_step % world:
        raise UsageError(f"--queries_per_step {config.queries_per_step} cannot be split over {world} ranks")
    run = Run(config, rank, world)
    queries, heldout, verifier, exact_verifier, counted = build_world(config)
    recorded = read_recording(config.rollouts_from) if config.rollouts_from else None
    by_id = {q.id: q for q in queries}
    processor, policy = build_policy(config, run, "cpu" if config.device == "cpu" else device)
    engine = HFEngine(policy.model, processor, config.temperature, config.max_new_tokens)

    def evaluate(temperature: float = 1.0) -> dict:
        return summarise(measure(engine, processor, heldout, exact_verifier, temperature,
                                 (config.seed, run.step, "evaluation"), quiet=rank > 0), counted)

    if run.step == 0:
        run.log({"step": 0} | ({"eval": evaluate(), "eval_greedy": evaluate(0.0)} if heldout else {}))

    last = min(config.steps, config.stop_after or config.steps)
    bar = tqdm(total=config.steps, initial=run.step, disable=rank > 0, desc=config.method)
    while run.step < last:
        run.step += 1
        began, rollouts = time.time(), []
        if config.method == "sft":
            batch = next_queries(queries, run.cursor, config.queries_per_step, config.seed)
            run.cursor += len(batch)
            groups = reference_groups(batch[rank::world], processor)
        elif recorded is not None:
            rollouts = replay(recorded.get(run.step, [])[rank::world], by_id, processor,
                              lambda *parts: roll_back(config, *parts))
            groups = [r.group for r in rollouts]
        else:
            rollouts = collect_refilling(queries, run, config, engine, processor, verifier)
            groups = [r.group for r in rollouts]
        metrics = {"step": run.step} | (statistics(rollouts) if config.method != "sft" else {})
        run.append("rollouts.jsonl", [record(r, run.step, run.folder) for r in rollouts])
        run.tokens_sampled += int(metrics.get("tokens_sampled", 0))
        sampled = time.time()
        if not config.rollout_only:
            metrics |= policy.update(groups, run.step, config.update_settings())
            engine.load_weights(policy.model.named_parameters())
            if run.step == 1:
                self_check(run, metrics, config)
        metrics |= {"time/rollout": sampled - began, "time/update": time.time() - sampled}

        at_end = run.step == config.steps
        if heldout and not config.rollout_only and (at_end or config.eval_every and run.step % config.eval_every == 0):
            metrics["eval"] = evaluate()
            if at_end:
                metrics["eval_greedy"] = evaluate(0.0)
        run.log(metrics)
        if not config.rollout_only and (run.step % config.save_every == 0 or run.step == last):
            run.save(policy)
        bar.update()
        bar.set_postfix({name: f"{metrics[name]:.2f}" for name in ("reward", "hard_share", "recovered_share")
                         if metrics.get(name) is not None})
    bar.close()
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
        summary |= {"start": start["eval"], "end": end["eval"],
                    "start_greedy": start.get("eval_greedy"), "end_greedy": end.get("eval_greedy")}
        print(table({"start (T=1)": start["eval"], "end (T=1)": end["eval"], "end (greedy)": end["eval_greedy"]})
              if end.get("eval_greedy") else table({"start": start["eval"]}))
    write_atomic(run.folder / "summary.json", json.dumps(summary, indent=2))
    print(f"report: {write_report([run.folder])}")


def main() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()              # loading bars of a model that loads in a second
    try:
        train(read_config(sys.argv[1:]))
    except (UsageError, DataError) as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (VerifierUnreliable, FloatingPointError) as error:
        print(f"stopped: {error}; --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(3)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
