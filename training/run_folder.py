"""The run folder: everything a run writes, and how it is read back (resume, record and replay).

    config.json        every setting
    metrics.jsonl      one row per step; step 0 is the start policy; "eval" where it was evaluated
    rollouts.jsonl     one row per query and step: both stages, verdicts, reports, kind of group, advantages
    images/            the pictures that rollouts.jsonl names
    judge-00000.jsonl  one row per call of a judge behind a URL, by rank
    checkpoints/       step-000020/ ...: Hugging Face checkpoints + trainer/ (shards, optimiser) + state.json
    summary.json       accuracies at the start and at the end; report.html, the page to look at

    content.json       digests of data, weights, prompts and verifier: --resume refuses others
    lock               held by the run that is at work in the folder

A folder under checkpoints/ that exists is whole (written beside, then renamed; a machine that loses power is
another matter).  A killed run loses at most the steps since the last one: rows after it are cut off when the
run is resumed, and written again, the same.
With --output_dir and --resume from the start, one and the same command starts a run and goes on with it.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from tqdm import tqdm

from data import DataError
from policy import Policy, all_gather, in_batch_order
from reward import VerifierUnreliable
from sampler import Rollout
from tools.files import append_rows, lock_folder, read_json, read_rows, write_whole, writing
from tools.programs import CannotWrite, Stopped
from training.checkpoint import save_checkpoint
from training.config import Config
from training.rollouts import rollout_row
from training.stopping import interruptible, on_all_ranks, watch_signals


class RunFolder:
    """Counters and files of one run.  Only rank 0 looks and writes, and it writes nothing before open()."""

    # Settings that may change when a run is resumed; any other change would be another experiment.
    MAY_CHANGE_ON_RESUME = {
        "resume", "stop_after", "output_dir", "eval_every", "save_every", "keep_checkpoints", "device",
        "micro_batch_tokens", "attention", "gradient_checkpointing", "offload_reference", "engine_memory",
        "tensor_parallel", "barrier", "self_check", "judge_concurrency", "judge_timeout", "judge_max_failed"}

    def __init__(self, config: Config, rank: int, world: int):
        self.config, self.rank, self.world = config, rank, world
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and not config.resume:
            raise DataError("--max-restarts needs --output_dir and --resume: a restarted run has to go on")
        # Several runs may start in one second: the last part tells them apart.
        name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{config.method}-{secrets.token_hex(2)}"
        self.folder: Path = self.on_rank0(Path, config.output_dir or name)               # clocks differ
        self.lock: IO | None = None
        self.finished, self.checkpoint, self.content = False, None, {}
        self.step, self.cursor, self.tokens_sampled, self.seconds, self.start_time = 0, 0, 0, 0.0, time.time()
        self.row: dict = {"step": 0}                     # metrics of the last whole step, until written

    def on_rank0(self, work: Callable, *arguments):
        """The result, or what was raised, on all ranks: their views of a network disk may differ."""
        return all_gather(on_all_ranks(lambda: work(*arguments) if self.rank == 0 else None))[0]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around all that a run does: reads back what there is, and keeps other runs out."""
        try:
            vars(self).update(self.on_rank0(self._look))
            yield
        finally:
            if self.lock:
                self.lock.close()

    def _look(self) -> dict:
        """What the folder holds of this run, as attributes of this object."""
        above = next(p for p in [self.folder, *self.folder.absolute().parents] if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise DataError(f"cannot write to {self.folder}")
        if (self.folder / "lock").exists():
            self.lock = lock_folder(self.folder, "run")
        if not self.config.resume:
            if self._begun():
                raise DataError(f"{self.folder} already holds a run: use --resume or another --output_dir")
            return {}
        if self._begun():
            self._check_same_run(asdict(self.config))
        summary = read_json(self.folder / "summary.json", default={})                # before the report
        if summary.get("steps") == self.config.steps and (self.folder / "report.html").exists():
            return {"finished": True}
        checkpoints = sorted((self.folder / "checkpoints").glob("step-*"))
        if not checkpoints:
            self.print(f"no checkpoint in {self.folder} yet: starting from the first step")
            return {}
        state = read_json(checkpoints[-1] / "state.json")
        written = any(row["step"] == state["step"] for row in self.metrics())
        return {"checkpoint": checkpoints[-1], "row": {} if written else state.get("row", {}),
                **{name: state[name] for name in ("step", "cursor", "tokens_sampled", "seconds")}}

    def _begun(self) -> bool:
        return any((self.folder / name).exists() for name in ("content.json", "metrics.jsonl"))

    def remember(self, content: Callable[[], dict[str, str]]) -> None:
        """Name -> digest of what the run is made of; it goes on with the same only."""
        self.content = self.on_rank0(self._same_content, content)

    def _same_content(self, content: Callable[[], dict[str, str]]) -> dict[str, str]:
        before = read_json(self.folder / "content.json", default={}) if self.config.resume else {}
        now = content()
        changed = [name for name, digest in now.items() if before.get(name, digest) != digest]
        if changed:
            raise DataError(f"--resume: the content of {changed[0]} has changed since this run began")
        return now | before

    def open(self) -> None:
        """Makes the folder, once everything else is known to work."""
        self.on_rank0(self._make)
        if not all(all_gather(self.folder.is_dir())):
            raise DataError(f"{self.folder} is not on a disk that all ranks see")

    def _make(self) -> None:
        with writing(self.folder):
            for inner in ("images", "checkpoints"):
                (self.folder / inner).mkdir(parents=True, exist_ok=True)
        if not self.lock:
            self.lock = lock_folder(self.folder, "run")
            if self._begun() and not self.checkpoint:              # another run has come and gone meanwhile
                raise DataError(f"{self.folder} holds a run by now: use another --output_dir")
        for half in (self.folder / "checkpoints").glob(".step-*.partial"):             # of a killed process
            shutil.rmtree(half)
        for half in (self.folder / "images").glob(".*.png.*"):
            half.unlink()
        for file in ("metrics.jsonl", "rollouts.jsonl"):
            self._cut_back(self.folder / file)
        write_whole(self.folder / "config.json", json.dumps(asdict(self.config), indent=2))
        write_whole(self.folder / "content.json", json.dumps(self.content, indent=2))

    def _check_same_run(self, now: dict) -> None:
        before = read_json(self.folder / "config.json")
        for name in sorted(set(now) - self.MAY_CHANGE_ON_RESUME):
            # A judge's server may have another address by then.
            moved = name == "verifier" and "://" in now[name] and "://" in str(before.get(name))
            was = before.get(name, Config.__dataclass_fields__[name].default)      # a setting that came later
            if was != now[name] and not moved:
                raise DataError(f"--resume: {name} was {was!r} in this run and is {now[name]!r} now")

    def _cut_back(self, file: Path) -> None:
        """Drops what a killed session wrote after its last checkpoint, a half-written last line included."""
        if not file.exists():
            return
        kept = 0
        with open(file, "rb") as rows:                          # bytes: the torn end may be half a character
            for line in rows:
                if not line.endswith(b"\n") or not self.checkpoint or json.loads(line)["step"] > self.step:
                    break
                kept += len(line)
        os.truncate(file, kept)

    def print(self, *text) -> None:
        if self.rank == 0:
            tqdm.write(" ".join(map(str, text)))

    def record(self, rollouts: list[Rollout]) -> None:
        """Rows of the step under way, those of all ranks in the order of the batch, and their pictures."""
        def mine() -> list[dict]:
            with writing(self.folder / "images"):
                return [rollout_row(r, self.step + 1, self.folder) for r in rollouts if r.samples_G]
        rows = in_batch_order(all_gather(interruptible(mine)))
        self.on_rank0(append_rows, self.folder / "rollouts.jsonl", rows)

    def log(self, more: dict) -> None:
        """The row of the last whole step, and `more`; all ranks hold the same."""
        self.on_rank0(append_rows, self.folder / "metrics.jsonl", [self.row | more])
        self.row = {}

    def save(self, policy: Policy) -> None:
        """All ranks write their share, into a folder that all see."""
        target = self.folder / "checkpoints" / f"step-{self.step:06d}"
        if target.exists():
            return
        beside = target.with_name(f".{target.name}.partial")
        try:
            self.on_rank0(self._make_room, beside)
            if not self.config.rollout_only:                    # there the start policy stays what it is
                save_checkpoint(policy, beside)
            self.on_rank0(self._make_whole, beside, target)
        except CannotWrite:                                                            # raised on all ranks
            shutil.rmtree(beside, ignore_errors=True)           # what cannot be finished is not in the way
            raise

    def _make_room(self, beside: Path) -> None:
        with writing(f"checkpoint {beside}"):
            beside.mkdir()

    def _make_whole(self, beside: Path, target: Path) -> None:
        write_whole(beside / "state.json", json.dumps({
            "step": self.step, "cursor": self.cursor, "tokens_sampled": self.tokens_sampled,
            "seconds": self.elapsed(), "row": self.row}))
        with writing(f"checkpoint {target}"):
            os.rename(beside, target)
        kept = self.config.keep_checkpoints
        for old in sorted(target.parent.glob("step-*"))[:-kept] if kept else []:
            shutil.rmtree(old, ignore_errors=True)              # a server on a network disk may be reading it

    @property
    def last_step(self) -> int:
        """Of this session."""
        return min(self.config.steps, self.config.stop_after or self.config.steps)

    def goes_on(self) -> bool:
        if self.step >= self.last_step:
            return False
        interruptible(lambda: None)                                 # a signal may have come during an update
        return True

    def evaluation_is_due(self) -> bool:
        every, at_end = self.config.eval_every, self.step == self.config.steps
        due = at_end or every > 0 and self.step % every == 0
        return self.step == 0 or due and not self.config.rollout_only

    def checkpoint_is_due(self) -> bool:
        return self.step == self.last_step or self.step % self.config.save_every == 0

    @contextmanager
    def at_work(self, policy: Policy) -> Iterator[None]:
        """Around the loop.  If it is stopped on its way, what has been trained is saved."""
        with watch_signals():
            try:
                yield
            except (VerifierUnreliable, Stopped) as error:                             # raised on all ranks
                if self.step and not isinstance(error, CannotWrite):
                    self.save(policy)
                raise

    def elapsed(self) -> float:
        """Seconds of all sessions of this run."""
        return self.seconds + time.time() - self.start_time

    def metrics(self) -> list[dict]:
        return list(read_rows(self.folder / "metrics.jsonl"))
