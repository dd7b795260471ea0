"""Each component works when copied alone, without vLLM, flash-attn or triton; docstring examples are true.

Guards against: imports that creep in against the arrows of the design, and examples that have gone stale.
"""

import doctest
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The import of each component -> what must lie beside it.
NEEDS = {"data": [], "sampler": ["data"], "answers": [], "reward": ["answers", "data"], "grpo": [],
         "policy": ["data", "grpo"], "pairs": ["data"], "toy": ["answers", "data", "pairs", "reward"],
         "build_pairs": ["answers", "data", "pairs"],
         "warm_start": ["answers", "data", "pairs", "reward", "toy"], "report": [], "experiments": [],
         "eval": ["answers", "data", "reward", "sampler"], "judge": ["answers", "data", "reward", "sampler"],
         "config": ["policy", "grpo", "data"], "finevision": ["data"], "duplicates": ["data"], "funnel": ["data"],
         "benchmarks": ["answers", "data", "reward"], "scoring": ["answers", "data", "reward", "sampler"],
         "candidates": ["answers", "data", "duplicates", "finevision", "reward"],
         "build": ["answers", "candidates", "data", "duplicates", "finevision", "funnel", "judge", "reward", "sampler"],
         "runs": ["answers", "config", "data", "grpo", "policy", "reward", "sampler"]}

BLOCKED_IMPORT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"vllm", "flash_attn", "triton", "datasets", "pyarrow"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
module = __import__(sys.argv[1])
assert module.__file__.startswith(sys.argv[2]), module.__file__
"""


def copied(names: list[str], folder: Path) -> Path:
    for name in names:
        shutil.copy(ROOT / f"{name}.py", folder)
    return folder


def python(*arguments: str, folder: Path, **more) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, timeout=90, capture_output=True,
                          text=True, **more)


@pytest.mark.parametrize("name", NEEDS)
def test_a_component_imports_from_an_empty_folder(name, tmp_path):
    copied([name, *NEEDS[name]], tmp_path)
    done = python("-c", BLOCKED_IMPORT, name, str(tmp_path.resolve()), folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks(tmp_path):
    (tmp_path / "greedy.py").write_text("import vllm")
    assert "vllm is not installed here" in python("-c", BLOCKED_IMPORT, "greedy", str(tmp_path), folder=tmp_path).stderr


def test_small_programs_run_alone(tmp_path):
    copied(["grpo", "reward", "data", "answers"], tmp_path)
    done = python("grpo.py", folder=tmp_path)
    assert done.returncode == 0 and "loss -0.2000" in done.stdout
    raw = '{"Analysis": "a", "Self-Consistency": 1, "Correctness": 0, "Mistake Report": "red is not 4"}'
    done = python("reward.py", "--parse", folder=tmp_path, input=raw)
    assert done.returncode == 0 and "correct=False" in done.stdout and "red is not 4" in done.stdout
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "question": "how many ?", "solution": "red 3", "answer": "3"}\n{')
    done = python("data.py", "rows.jsonl", folder=tmp_path)
    assert done.returncode == 0 and done.stderr.startswith("skipped rows.jsonl:2: not a JSON object")
    assert done.stderr.splitlines()[1:] == ["1 bad rows skipped, 1 read from rows.jsonl"]
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "question": "how many ?", "solution": "red 3", "answer": "3"}\n')
    assert python("data.py", "rows.jsonl", folder=tmp_path).stdout == (
        "1 queries, 0 images, 2 words per reference solution\n  all              1\n")
    done = python("reward.py", "--prompt", "rows.jsonl", "--context", "answer", "--response", "red 4", folder=tmp_path)
    assert "Reference answer:\n3\n" in done.stdout and "\nred 4\n=====" in done.stdout


@pytest.mark.parametrize("name", [*NEEDS, "contextrl"])
def test_docstring_examples(name):
    written = (ROOT / f"{name}.py").read_text(encoding="utf-8").count(">>> ")
    done = doctest.testmod(importlib.import_module(name))
    assert done.failed == 0 and done.attempted == written
    assert written > 0 or name not in ("data", "sampler", "reward", "grpo", "experiments")
