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

A folder under checkpoints/ that exists is whole (written beside, then renamed).  A killed run loses at most
the steps since the last one: rows after it are cut off when the run is resumed, and written again, the same.
With --output_dir and --resume from the start, one and the same command starts a run and goes on with it.
"""

import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

import torch.distributed as dist
from tqdm import tqdm

from data import DataError
from policy import Policy, all_gather, in_batch_order
from reward import VerifierUnreliable
from tools.files import append_rows, lock_folder, read_json, read_rows, write_whole, writing
from tools.programs import Stopped
from training.checkpoint import model_fingerprint, save_checkpoint
from training.config import Config


class RunFolder:
    """Counters and files of one run.  Only rank 0 writes, and nothing before open()."""

    # Settings that may change when a run is resumed; any other change would be another experiment.
    MAY_CHANGE_ON_RESUME = {
        "resume", "stop_after", "output_dir", "eval_every", "save_every", "device",
        "micro_batch_tokens", "attention", "gradient_checkpointing", "offload_reference", "engine_memory",
        "tensor_parallel", "barrier", "judge_concurrency", "judge_timeout", "judge_max_failed"}

    def __init__(self, config, rank: int, world: int):
        self.config, self.rank, self.world = config, rank, world
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) and not config.output_dir:
            raise DataError("a restarted run can only go on with --output_dir and --resume")
        # Several runs may start in one second: the last part tells them apart.
        name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{config.method}-{secrets.token_hex(2)}"
        self.folder = Path(self.from_rank0(config.output_dir or name))
        self.lock: IO | None = None
        self.signal = 0                                    # that asked this run to stop
        self.step, self.cursor, self.tokens_sampled, self.seconds, self.start_time = 0, 0, 0, 0.0, time.time()
        checkpoints = sorted((self.folder / "checkpoints").glob("step-*"))
        self.checkpoint = self.from_rank0(checkpoints[-1] if config.resume and checkpoints else None)
        if config.resume:
            self._check_same_run(asdict(config))
        elif (self.folder / "metrics.jsonl").exists():
            raise DataError(f"{self.folder} already holds a run: use --resume or another --output_dir")
        above = next(p for p in [self.folder, *self.folder.absolute().parents] if p.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise DataError(f"cannot write to {self.folder}")
        if self.checkpoint:
            state = self.state()
            self.step, self.cursor = state["step"], state["cursor"]
            self.tokens_sampled, self.seconds = state["tokens_sampled"], state["seconds"]
        elif config.resume:
            self.print(f"no checkpoint in {self.folder} yet: starting from the first step")
        if config.resume and self.step == config.steps:
            self.print(f"the run in {self.folder} is complete")

    def from_rank0(self, value):
        """Rank 0's value on all ranks: clocks differ, and so may views of a network disk."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def open(self, config, content: dict[str, str]) -> None:
        """Makes the folder, once everything else is known to work.  `content`: name -> digest of what the run
        is made of."""
        self.barrier()                                      # every rank has looked before rank 0 writes
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = lock_folder(self.folder, "run")
            # Another run may have come and gone since __init__ looked.
            if (self.folder / "metrics.jsonl").exists() and not config.resume:
                raise DataError(f"{self.folder} holds a run by now: use another --output_dir")
            before = read_json(self.folder / "content.json", default={}) if config.resume else {}
            changed = [name for name, digest in content.items() if before.get(name, digest) != digest]
            if changed:
                raise DataError(f"--resume: the content of {changed[0]} has changed since this run began")
            for inner in ("images", "checkpoints"):
                (self.folder / inner).mkdir(exist_ok=True)
            for half in (self.folder / "checkpoints").glob(".*.partial"):              # of a killed process
                shutil.rmtree(half)
            for file in ("metrics.jsonl", "rollouts.jsonl"):
                self._cut_back(self.folder / file)
            write_whole(self.folder / "config.json", json.dumps(asdict(config), indent=2))
            write_whole(self.folder / "content.json", json.dumps(content | before, indent=2))
        self.barrier()
        if not all(all_gather(self.folder.is_dir())):
            raise DataError(f"{self.folder} is not on a disk that all ranks see")

    def state(self) -> dict:
        return read_json(self.checkpoint / "state.json")

    def _check_same_run(self, now: dict) -> None:
        file = self.folder / "config.json"
        if not file.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise DataError(f"--resume: {self.folder} holds no run")
            return                                                       # the run starts with this command
        before = read_json(file)
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
        kept = []
        for line in file.read_bytes().split(b"\n")[:-1]:        # bytes: the torn end may be half a character
            if not self.checkpoint or json.loads(line)["step"] > self.step:
                break
            kept.append(line.decode() + "\n")
        write_whole(file, "".join(kept))

    def print(self, *text) -> None:
        if self.rank == 0:
            tqdm.write(" ".join(map(str, text)))

    def append(self, file: str, rows: list[dict]) -> None:
        """Adds rows, those of all ranks in the order of the batch."""
        rows = in_batch_order(all_gather(rows))
        if self.rank == 0:
            append_rows(self.folder / file, rows)

    def log(self, row: dict) -> None:
        """One row of metrics.jsonl; all ranks hold the same."""
        self.append("metrics.jsonl", [row] if self.rank == 0 else [])

    def save(self, policy: Policy) -> None:
        """All ranks write their share, into a folder that all see.  The last two checkpoints stay."""
        target = self.folder / "checkpoints" / f"step-{self.step:06d}"
        if target.exists():
            return
        beside = target.with_name(f".{target.name}.partial")
        try:
            with writing(f"checkpoint {target}"):
                if self.rank == 0:
                    beside.mkdir(parents=True)
                self.barrier()
                save_checkpoint(policy, beside)
                self.barrier()
                if self.rank == 0:
                    write_whole(beside / "state.json", json.dumps({
                        "step": self.step, "cursor": self.cursor, "tokens_sampled": self.tokens_sampled,
                        "seconds": self.elapsed(), "model": model_fingerprint(beside)}))
                    os.rename(beside, target)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)           # what cannot be finished is not in the way
            raise
        if self.rank == 0:
            for old in sorted(target.parent.glob("step-*"))[:-2]:
                shutil.rmtree(old)
        self.barrier()

    @property
    def last_step(self) -> int:
        """Of this session."""
        return min(self.config.steps, self.config.stop_after or self.config.steps)

    def goes_on(self) -> bool:
        return self.step < self.last_step and not self.signal

    def end_step(self) -> None:
        """One step more is done.  A signal to one rank is one to all."""
        self.step += 1
        self.signal = max(all_gather(self.signal))

    def evaluation_is_due(self) -> bool:
        every, at_end = self.config.eval_every, self.step == self.config.steps
        return not self.config.rollout_only and (at_end or every > 0 and self.step % every == 0)

    def checkpoint_is_due(self) -> bool:
        every = self.step % self.config.save_every == 0
        return not self.config.rollout_only and (every or not self.goes_on())

    @contextmanager
    def at_work(self, policy: Policy) -> Iterator[None]:
        """Around the loop.  SIGTERM and Ctrl-C end it after the step that is under way, a second one at once.
        If the verifier gives up, what has been trained is saved."""
        def heard(number: int, frame) -> None:
            self.signal = number
            for name, handler in before.items():
                signal.signal(name, handler)

        before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        except VerifierUnreliable:
            self.save(policy)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self.lock:
                self.lock.close()
        if self.signal and self.step < self.last_step:
            raise Stopped(f"{signal.Signals(self.signal).name} after step {self.step}", 128 + self.signal)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def elapsed(self) -> float:
        """Seconds of all sessions of this run."""
        return self.seconds + time.time() - self.start_time

    def metrics(self) -> list[dict]:
        return list(read_rows(self.folder / "metrics.jsonl"))
