"""The run folder: everything a run writes, and how it is read back (resume, record and replay).

    config.json        every setting
    metrics.jsonl      one row per step; step 0 is the start policy; "eval" where it was evaluated
    rollouts.jsonl     one row per query and step: both stages, verdicts, reports, kind of group, advantages
    images/            the pictures that rollouts.jsonl names
    judge-00000.jsonl  one row per call of a judge behind a URL, by rank
    checkpoints/       step-000020/ ...: ordinary Hugging Face checkpoints + trainer/ (shards, optimiser) + state.json
    summary.json       accuracies at the start and at the end; report.html, the page to look at

A folder under checkpoints/ that exists is whole (written beside, then renamed).  A killed run loses at most the steps
since the last one: rows after it are cut off when the run is resumed, and written again, the same.
"""

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

import grpo
from training.config import Config, UsageError
from data import DataError, Processor, Query, save_image
from policy import Policy, all_gather, all_sum, in_batch_order
from reward import Verdict, VerdictStatus, answers_match
from sampler import Sample, SampleStatus


@dataclass
class Rollout:
    """What happened to one query in one step.  `_G` lists run over members; the stage-2 lists may be empty."""

    query: Query
    group: grpo.Group
    samples_G: list[Sample]
    verdicts_G: list[Verdict]
    retries_G: list[Sample] = field(default_factory=list)           # retry k answers sample k
    retry_verdicts_G: list[Verdict] = field(default_factory=list)
    kept_G: list[bool] = field(default_factory=list)                # verified and independent: rolled back

    @property
    def hard(self) -> bool:
        return all(v.reward == 0.0 for v in self.verdicts_G)


def statistics(rollouts: list[Rollout]) -> dict[str, float | None]:
    """Metrics of one step's samples, over all ranks.  A share of nothing is None, not 0."""
    sums = dict.fromkeys(
        "verdicts failed_verdicts reward samples truncated too_long tokens retry_tokens queries hard recovered retries "
        "retries_correct retries_dependent reports leaked answer_right answer_right_judged_wrong".split(), 0.0)
    sums |= {kind.value: 0.0 for kind in grpo.GroupKind}
    for r in rollouts:
        sums["queries"] += 1
        sums["hard"] += r.hard
        sums["recovered"] += r.group.kind is grpo.GroupKind.MIXED
        sums[r.group.kind.value] += 1
        for sample, verdict in zip(r.samples_G, r.verdicts_G, strict=True):
            sums["samples"] += 1
            sums["truncated"] += sample.status is SampleStatus.TRUNCATED
            sums["too_long"] += sample.status is SampleStatus.TOO_LONG
            sums["tokens"] += len(sample.ids)
            sums["reports"] += bool(verdict.report)
            sums["leaked"] += verdict.leaked
            if verdict.status is VerdictStatus.FAILED:
                continue
            right = answers_match(r.query, sample.text)
            sums["verdicts"] += 1
            sums["reward"] += verdict.reward
            sums["answer_right"] += right
            sums["answer_right_judged_wrong"] += right and not verdict.correct
        for retry, verdict, kept in zip(r.retries_G, r.retry_verdicts_G, r.kept_G, strict=True):
            sums["retries"] += 1
            sums["retry_tokens"] += len(retry.ids)
            sums["too_long"] += retry.status is SampleStatus.TOO_LONG
            sums["retries_correct"] += verdict.correct
            sums["retries_dependent"] += verdict.correct and not kept
        sums["failed_verdicts"] += sum(v.status is VerdictStatus.FAILED for v in [*r.verdicts_G, *r.retry_verdicts_G])
    s = dict(zip(sums, all_sum(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()))

    def share(part: str, whole: str) -> float | None:
        return s[part] / s[whole] if s[whole] else None

    return {"reward": share("reward", "verdicts"), "hard_share": share("hard", "queries"),
            "recovered_share": share("recovered", "hard"),
            **{f"groups/{kind.value}": s[kind.value] for kind in grpo.GroupKind},
            "false_positive_share": share("answer_right_judged_wrong", "answer_right"),
            "retries": s["retries"], "retries_correct_share": share("retries_correct", "retries"),
            "retries_dependent": s["retries_dependent"], "reports": s["reports"], "leaked_reports": s["leaked"],
            "failed_verdicts": s["failed_verdicts"], "truncated_share": share("truncated", "samples"),
            "too_long": s["too_long"],
            "response_length": share("tokens", "samples"), "tokens_sampled": s["tokens"] + s["retry_tokens"]}


# -------------------------------------------------------------------------------------------- record and replay

def record(r: Rollout, step: int, folder: Path) -> dict:
    """One row of rollouts.jsonl.  Ids and log-probs are complete: a step can be trained again from it."""
    def member(sample: Sample, verdict: Verdict) -> dict:
        return {"text": sample.text, "status": sample.status.value, "verdict": verdict.status.value,
                "correct": verdict.correct, "consistent": verdict.consistent, "report": verdict.report,
                "analysis": verdict.analysis, "error": verdict.error, "leaked": verdict.leaked,
                "answer_right": answers_match(r.query, sample.text),
                "ids": sample.ids, "logprobs": sample.logprobs}

    trained = iter(r.group.members)          # stage 1 without failed verdicts, then the kept retries
    stage1 = [member(s, v) | {"advantage": next(trained).advantage if v.reward is not None else None}
              for s, v in zip(r.samples_G, r.verdicts_G, strict=True)]
    stage2 = [member(s, v) | {"kept": kept, "advantage": next(trained).advantage if kept else None}
              for s, v, kept in zip(r.retries_G, r.retry_verdicts_G, r.kept_G, strict=True)]
    images = [save_image(image, folder / "images", f"{r.query.id}-{i}") for i, image in enumerate(r.query.images)]
    return {"step": step, "query": r.query.id, "family": r.query.family, "question": r.query.question,
            "images": images, "solution": r.query.solution, "answer": r.query.answer, "kind": r.group.kind.value,
            "stage1": stage1, "stage2": stage2}


def read_recording(path: str, queries: set[str], steps: int) -> dict[int, list[dict]]:
    """rollouts.jsonl -> rows by step.  Checked whole before anything is trained: rows, queries, number of steps."""
    recorded: dict[int, list[dict]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            samples_of(row), verdicts_of(row), [m["kept"] for m in row["stage2"]]
            if not row["stage1"] or any(len(m["ids"]) != len(m["logprobs"]) for m in row["stage1"] + row["stage2"]):
                raise ValueError
            recorded.setdefault(row["step"], []).append(row)
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not a row of a recording") from None
        if row["query"] not in queries:
            raise DataError(f"{path}:{number}: query {row['query']} is not in the training data")
    if not recorded:
        raise DataError(f"recording is empty: {path}")
    missing = [step for step in range(1, steps + 1) if step not in recorded]
    if missing:
        raise DataError(f"{path}: step {missing[0]} is not in the recording, the run wants {steps}")
    return recorded


def samples_of(row: dict) -> tuple[list[Sample], list[Sample]]:
    return tuple([Sample(m["ids"], m["logprobs"], SampleStatus(m["status"]), m["text"], stage)
                  for m in row[f"stage{stage}"]] for stage in (1, 2))


def verdicts_of(row: dict) -> tuple[list[Verdict], list[Verdict]]:
    return tuple([Verdict(VerdictStatus(m["verdict"]), m["correct"], m["consistent"], m["report"], m["analysis"],
                          m["error"], m["leaked"]) for m in row[f"stage{stage}"]] for stage in (1, 2))


def replay(rows: list[dict], queries: dict[str, Query], processor: Processor, form_group) -> list[Rollout]:
    """Rollouts as they were recorded; groups are formed anew, so λ may differ from the recording's."""
    out = []
    for row in rows:
        query = queries[row["query"]]
        (samples_G, retries_G), (verdicts_G, retry_verdicts_G) = samples_of(row), verdicts_of(row)
        parts = (samples_G, verdicts_G, retries_G, retry_verdicts_G, [m["kept"] for m in row["stage2"]])
        out.append(Rollout(query, form_group(query, processor.prompt(query), *parts), *parts))
    return out


# --------------------------------------------------------------------------------------------------- the folder

class Run:
    """Counters and files of one run.  Only rank 0 writes, and nothing before open()."""

    # Settings that may change when a run is resumed; any other change would be another experiment.
    FREE = {"resume", "stop_after", "output_dir", "eval_every", "save_every", "device", "micro_batch_tokens",
            "attention", "gradient_checkpointing", "offload_reference", "engine_memory", "tensor_parallel", "barrier",
            "judge_concurrency", "judge_timeout", "judge_max_failed"}

    def __init__(self, config, rank: int, world: int):
        self.rank, self.world = rank, world
        self.folder = Path(self._first(config.output_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{config.method}"))
        self.step, self.cursor, self.tokens_sampled, self.seconds, self.start_time = 0, 0, 0, 0.0, time.time()
        checkpoints = sorted((self.folder / "checkpoints").glob("step-*"))
        self.checkpoint = self._first(checkpoints[-1] if config.resume and checkpoints else None)
        if config.resume:
            self._check_same_run(asdict(config))
        elif (self.folder / "metrics.jsonl").exists():
            raise UsageError(f"{self.folder} already holds a run: use --resume or another --output_dir")
        above = next(p for p in [self.folder, *self.folder.absolute().parents] if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UsageError(f"cannot write to {self.folder}")
        if self.checkpoint:
            state = self.state()
            self.step, self.cursor = state["step"], state["cursor"]
            self.tokens_sampled, self.seconds = state["tokens_sampled"], state["seconds"]
        elif config.resume:
            self.print(f"no checkpoint in {self.folder} yet: starting from the first step")

    def _first(self, value):
        """Rank 0's value on all ranks: clocks differ, and so may views of a network disk."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def open(self, config) -> None:
        """Makes the folder, once everything else is known to work."""
        self.barrier()                                      # every rank has looked before rank 0 writes
        if self.rank == 0:
            for inner in ("images", "checkpoints"):
                (self.folder / inner).mkdir(parents=True, exist_ok=True)
            for file in ("metrics.jsonl", "rollouts.jsonl"):
                self._cut_back(self.folder / file)
            write_atomic(self.folder / "config.json", json.dumps(asdict(config), indent=2))
        self.barrier()
        if not all(all_gather(self.folder.is_dir())):
            raise UsageError(f"{self.folder} is not on a disk that all ranks see")

    def state(self) -> dict:
        try:
            return json.loads((self.checkpoint / "state.json").read_text())
        except (OSError, json.JSONDecodeError):
            raise UsageError(f"cannot read checkpoint {self.checkpoint}: state.json is missing or broken") from None

    def _check_same_run(self, now: dict) -> None:
        file = self.folder / "config.json"
        if not file.exists():
            raise UsageError(f"--resume: {self.folder} holds no run")
        try:
            before = json.loads(file.read_text())
        except json.JSONDecodeError:
            raise UsageError(f"--resume: {file} is broken") from None
        for name in sorted(set(now) - self.FREE):
            moved = name == "verifier" and "://" in now[name] and "://" in str(before.get(name))    # a server's address
            was = before.get(name, Config.__dataclass_fields__[name].default)      # a setting that came later
            if was != now[name] and not moved:
                raise UsageError(f"--resume: {name} was {was!r} in this run and is {now[name]!r} now")

    def _cut_back(self, file: Path) -> None:
        """Drops what a killed session wrote after its last checkpoint, a half-written last line included."""
        if not file.exists():
            return
        kept = []
        for line in file.read_bytes().split(b"\n")[:-1]:        # bytes: the torn end may be half a character
            if not self.checkpoint or json.loads(line)["step"] > self.step:
                break
            kept.append(line.decode() + "\n")
        write_atomic(file, "".join(kept))

    def print(self, *text) -> None:
        if self.rank == 0:
            tqdm.write(" ".join(map(str, text)))

    def append(self, file: str, rows: list[dict]) -> None:
        """Adds rows, those of all ranks in the order of the batch."""
        rows = in_batch_order(all_gather(rows))
        if self.rank == 0:
            with (self.folder / file).open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def log(self, row: dict) -> None:
        """One row of metrics.jsonl; all ranks hold the same."""
        self.append("metrics.jsonl", [row] if self.rank == 0 else [])

    def save(self, policy: Policy) -> None:
        """All ranks write their share (into a folder that all of them see).  Keeps the last two checkpoints."""
        target = self.folder / "checkpoints" / f"step-{self.step:06d}"
        if target.exists():
            return
        beside = target.with_name(f".{target.name}.partial")
        if self.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)           # of a killed process
            beside.mkdir(parents=True)
        self.barrier()
        policy.save(beside)
        self.barrier()
        if self.rank == 0:
            write_atomic(beside / "state.json", json.dumps({
                "step": self.step, "cursor": self.cursor, "tokens_sampled": self.tokens_sampled,
                "seconds": self.elapsed(), "model": model_fingerprint(beside)}))
            os.rename(beside, target)
            for old in sorted(target.parent.glob("step-*"))[:-2]:
                shutil.rmtree(old)
        self.barrier()

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def elapsed(self) -> float:
        """Seconds of all sessions of this run."""
        return self.seconds + time.time() - self.start_time

    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().split("\n") if line]


def model_fingerprint(folder: str | Path) -> str:
    """The architecture of a checkpoint as one string: a run is only resumed with the model it was started with."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()                       # a folder or a hub id
    text, vision = config.get("text_config", {}), config.get("vision_config", {})
    return ", ".join(f"{k}={v}" for k, v in [
        ("type", config.get("model_type")), ("hidden", text.get("hidden_size")),
        ("layers", text.get("num_hidden_layers")), ("vocab", text.get("vocab_size")),
        ("vision_depth", vision.get("depth")), ("vision_hidden", vision.get("hidden_size"))])


def write_atomic(file: Path, text: str) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)
