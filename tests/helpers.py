"""What several test files share: runs on a few pictures and their files, scripted verdicts,
rows and gradients of a policy."""

import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from conftest import ALONE, MODEL, ROOT
from safetensors.torch import load_file

import contextrl
import grpo
from data import Query
from grpo import GroupKind, Member
from policy import Policy, Row
from reward import Verdict

K = 4                                        # group size of the runs


# ----------------------------------------------------------------------------------------- programs and files

def command(*arguments, name: str = "context_pairs.pairs") -> subprocess.CompletedProcess:
    """Runs a module of ours, or a file in the root, in a process of its own."""
    program = [str(ROOT / name)] if name.endswith(".py") else ["-m", name]
    return subprocess.run([sys.executable, *program, *map(str, arguments)], cwd=ROOT, env=ALONE, timeout=120,
                          capture_output=True, text=True)


def write(path: Path, *rows) -> Path:
    """Writes JSONL; a row that is a text already is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def json_rows(file: Path) -> list[dict]:
    """Reads JSONL; a line ends at \\n and nowhere else."""
    return [json.loads(line) for line in file.read_bytes().decode().strip("\n").split("\n")]


# ------------------------------------------------------------------------------------------------------- runs

def arguments(data: Path, out: Path, *flags: str, **settings) -> list[str]:
    """Command line of a small run of the shipped start policy; `settings` win over what is small here."""
    settings = {"model": MODEL, "data": data, "output_dir": out, "queries_per_step": 4, "group_size": K,
                "max_new_tokens": 24, "minibatches": 1, "eval_every": 0, "device": "cpu"} | settings
    return [*flags, *(str(part) for name, value in settings.items() for part in (f"--{name}", value))]


def train(data: Path, out: Path, *flags: str, **settings) -> Path:
    """Runs contextrl.train in this process -> its run folder."""
    return contextrl.train(contextrl.read_config(arguments(data, out, *flags, **settings)))


def metrics(run: Path) -> list[dict]:
    """Rows of metrics.jsonl without the clock."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")}
            for row in json_rows(run / "metrics.jsonl")]


def last_checkpoint(run: Path) -> Path:
    """Folder of the newest whole checkpoint."""
    return max((run / "checkpoints").glob("step-*"))


def assert_same_tensors(file: str, a: Path, b: Path) -> None:
    """One safetensors file in two folders: the same names, bit for bit the same values."""
    a, b = load_file(a / file), load_file(b / file)
    assert a.keys() == b.keys() and a
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_run(a: Path, b: Path) -> None:
    """Every metric, every rollout, the weights and the optimiser: bit for bit."""
    assert metrics(a) == metrics(b)
    assert (a / "rollouts.jsonl").read_bytes() == (b / "rollouts.jsonl").read_bytes()
    a, b = last_checkpoint(a), last_checkpoint(b)
    assert a.name == b.name
    for file in ("model.safetensors", "trainer/00000-of-00001.safetensors"):
        assert_same_tensors(file, a, b)


class ScriptedJudge:
    """Verdicts by place, whatever was sampled, so that every kind of group is there with any start policy.

    Stage 1: every second query has no positive, the others have right and wrong members.  Stage 2: every
    second retry is right.  (collect() asks twice a step.)
    """

    def __init__(self):
        self.asked = 0

    def judge(self, queries, texts) -> list[Verdict]:
        self.asked += 1
        second_stage = self.asked % 2 == 0
        return [self.verdict(member=i % K, query=i // K, second_stage=second_stage)
                for i in range(len(texts))]

    def metrics(self) -> dict[str, float]:
        return {}

    def verdict(self, member: int, query: int, second_stage: bool) -> Verdict:
        return Verdict.judged(member % 2 == 1 and (second_stage or query % 2 == 1),
                              report=f"step {member} is wrong")


# --------------------------------------------------------------------------------------------------- policies

# Shapes of groups: picture sizes, then the lengths of the responses (a length of 1 gives the row no input at
# all).
SHAPES = [([(96, 96)], [3, 7, 1, 12, 5, 2, 9, 4]), ([], [5, 1]), ([(70, 131), (40, 33)], [1] * 3 + [6] * 13),
          ([(64, 200)], [17])]


def make_rows(processor, picture, shapes=SHAPES, seed: int = 0) -> list[Row]:
    """Random responses with random advantages; every third member is rolled back (its engine log-probs are
    odd)."""
    rng = random.Random(seed)
    words = [i for i in range(600) if i not in processor.forbidden_ids]
    rows = []
    for r, (sizes, lengths) in enumerate(shapes):
        prompt = processor.prompt(Query(
            "q", [picture(w, h, 10 * r + i) for i, (w, h) in enumerate(sizes)],
            "how many red ?" + " plus" * r, "-", "-"))
        rows.append(Row(prompt, [
            Member(rng.choices(words, k=n), [rng.uniform(-9, -5) for _ in range(n)], 0.0, k % 3 == 2,
                   rng.gauss(0, 1))
            for k, n in enumerate(lengths)]))
    return rows


def online(*rows: Row) -> list[grpo.Group]:
    """Rows as groups that are trained on."""
    return [grpo.Group(row.prompt, row.members, GroupKind.ONLINE) for row in rows]


def double(checkpoint, processor, perturbed: bool = False, checkpointing: bool = False,
           kind=Policy) -> Policy:
    """A policy in fp64; `perturbed`: with a reference that is another model, so that KL is paid."""
    policy = kind(checkpoint, processor, reference=perturbed, dtype=torch.float64,
                  gradient_checkpointing=checkpointing)
    if perturbed:
        generator = torch.Generator().manual_seed(1)
        for p in policy.reference.model.parameters():
            p.add_(0.2 * p.std() * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return policy


def gradients(policy) -> dict[str, torch.Tensor]:
    """A copy of what .gradient() left behind, by name."""
    return {name: p.grad.clone() for name, p in policy.model.named_parameters()}


def assert_same(a: dict, b: dict, relative: float) -> None:
    """Equal up to `relative` times the largest entry of each tensor's gradient."""
    assert a.keys() == b.keys()
    for name in a:
        scale = b[name].abs().max()
        assert (a[name] - b[name]).abs().max() <= relative * scale + 1e-12, name
