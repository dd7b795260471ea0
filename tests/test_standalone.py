"""Each root file works when copied with the files of its row, without vLLM or triton; examples are true.

Guards against: a component that cannot be copied, and examples that have gone stale.
"""

import doctest
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_floors import ROOT, module_name, sources

# The import of each component -> what must lie beside it.  (contextrl.py needs the house.)
NEEDS = {"data": [], "sampler": ["data"], "reward": ["data"], "grpo": [], "policy": ["data", "grpo"],
         "eval": ["data", "reward", "sampler"]}
EXAMPLES = {"data", "sampler", "reward", "grpo"}           # have at least one

BLOCKED_IMPORT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"vllm", "flash_attn", "triton", "datasets", "pyarrow", "openai"}:
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
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, timeout=90,
                          capture_output=True, text=True, **more)


@pytest.mark.parametrize("name", NEEDS)
def test_a_component_imports_from_an_empty_folder(name, tmp_path):
    copied([name, *NEEDS[name]], tmp_path)
    done = python("-c", BLOCKED_IMPORT, name, str(tmp_path.resolve()), folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks(tmp_path):
    (tmp_path / "greedy.py").write_text("import vllm")
    done = python("-c", BLOCKED_IMPORT, "greedy", str(tmp_path), folder=tmp_path)
    assert "vllm is not installed here" in done.stderr


def test_small_programs_run_alone(tmp_path):
    copied(["grpo", "reward", "data"], tmp_path)
    done = python("grpo.py", folder=tmp_path)
    assert done.returncode == 0 and "loss -0.2000" in done.stdout
    raw = '{"Analysis": "a", "Self-Consistency": 1, "Correctness": 0, "Mistake Report": "red is not 4"}'
    done = python("reward.py", "--parse", folder=tmp_path, input=raw)
    assert done.returncode == 0 and "correct=False" in done.stdout and "red is not 4" in done.stdout
    row = '{"id": "a", "question": "how many ?", "solution": "red 3", "answer": "3"}\n'
    (tmp_path / "rows.jsonl").write_text(row + "{")
    done = python("data.py", "rows.jsonl", folder=tmp_path)
    assert done.returncode == 0 and done.stderr.startswith("skipped rows.jsonl:2: not a JSON object")
    assert done.stderr.splitlines()[1:] == ["1 bad rows skipped, 1 read from rows.jsonl"]
    (tmp_path / "rows.jsonl").write_text(row)
    assert python("data.py", "rows.jsonl", folder=tmp_path).stdout == (
        "1 queries, 0 images\n  all              1\n")


def test_the_judges_prompt_goes_along_or_is_missed_in_one_line(tmp_path):
    copied(["reward", "data"], tmp_path)
    row = '{"id": "a", "question": "how many ?", "solution": "red 3", "answer": "3"}'
    (tmp_path / "rows.jsonl").write_text(row)
    command = ("reward.py", "--prompt", "rows.jsonl", "--context", "answer", "--response", "red 4")
    done = python(*command, folder=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot read prompt ")
    assert done.stderr.count("\n") == 1
    shutil.copytree(ROOT / "prompts", tmp_path / "prompts")
    done = python(*command, folder=tmp_path)
    assert "Reference answer:\n3\n" in done.stdout and "\nred 4\n=====" in done.stdout


def with_examples() -> list[str]:
    return sorted(path for path in sources(ROOT) if ">>> " in (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted({*with_examples(), *(f"{name}.py" for name in EXAMPLES)}))
def test_docstring_examples(path):
    written = (ROOT / path).read_text(encoding="utf-8").count(">>> ")
    done = doctest.testmod(importlib.import_module(module_name(path)))
    assert done.failed == 0 and done.attempted == written > 0
