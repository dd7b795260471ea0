"""The files of settings/: each is one row of a paper's table.

Guards against: a file that cannot be read, a baseline that is not the paper's, two rows that differ in more
than what their names say.
"""

import json
import sys

import pytest
import torch
from conftest import MODEL, ROOT
from helpers import metrics, train, write

import contextrl
from data import DataError, load_model
from training.plan import plan

FILES = {file.stem: file for file in (ROOT / "settings").glob("*.json")}

# What a row changes of contextrl.json: GRPO and DAPO have judges that know the answer only (section 4.1.3).
CHANGES = {
    "grpo": {"method": "grpo", "verifier_context": "answer"},
    "dapo": {"method": "dapo", "verifier_context": "answer", "overlong_buffer": 4096, "kl_coef": None},
    "sft": {"method": "sft", "learning_rate": 1e-5, "steps": 1133, "warmup_steps": 34, "kl_coef": None,
            "queries_per_step": 128, "eval_every": 227, "save_every": 227, "keep_checkpoints": 0,
            "group_size": None, "minibatches": None},
    "without_solution": {"verifier_context": "answer"}, "without_stage2": {"stage2": False},
    "without_report": {"report": False}, "without_scale": {"mixed_scale": 1.0}}


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_differs_in_what_its_name_says(name):
    base, row = (json.loads(FILES[stem].read_text()) for stem in ("contextrl", name))
    changed = {key: row.get(key) for key in base.keys() | row.keys() if base.get(key) != row.get(key)}
    assert changed == CHANGES[name]


@pytest.mark.parametrize("name", [name for name in FILES if name != "prompts_128"])
def test_every_file_is_a_run(name):
    config = contextrl.read_config([str(FILES[name])])
    assert config.model == "Qwen/Qwen3-VL-8B-Instruct" and config.steps > 100
    assert 0.02 < config.warmup_steps / config.steps < 0.04 or name == "context_pairs"         # ratio 0.03
    assert config.max_new_tokens < config.max_context


ROWS = 29_000                                                    # of the paper's training data


@pytest.mark.parametrize("name", ["contextrl", *CHANGES])
@pytest.mark.parametrize("other", [[], ["prompts_128"]])
def test_one_epoch_and_batches_of_128(name, other):
    """128 completions, or laid over them 128 prompts: 1,813 or 227 updates.  SFT: five epochs."""
    if name == "sft" and other:
        return
    config = contextrl.read_config([str(FILES[stem]) for stem in [name, *other]])
    epochs, batch = (5, 128) if name == "sft" else (1, 128 if other else 128 // config.group_size)
    assert (config.queries_per_step, config.minibatches if name != "sft" else 1) == (batch, 1)
    assert 0 <= config.steps * batch - epochs * ROWS < batch


def test_later_files_win_and_flags_last(tmp_path):
    for name, settings in (("a", {"steps": 5, "seed": 1, "group_size": 4}), ("b", {"seed": 2})):
        (tmp_path / f"{name}.json").write_text(json.dumps(settings))
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    config = contextrl.read_config([*files, "--group_size", "3"])
    assert (config.steps, config.seed, config.group_size) == (5, 2, 3)
    with pytest.raises(DataError, match=r"cannot read settings from .*/c\.json"):
        contextrl.read_config([*files, str(tmp_path / "c.json")])


@pytest.mark.parametrize("keep, kept", [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4])])
def test_so_many_checkpoints_stay_and_the_best_is_named(world, tmp_path, keep, kept):
    run = train(world / "train.jsonl", tmp_path / "run", steps=4, save_every=1, eval_every=1, method="grpo",
                eval_data=world / "heldout.jsonl", keep_checkpoints=keep)
    assert [folder.name for folder in sorted((run / "checkpoints").iterdir())] == [
        f"step-{step:06d}" for step in kept]
    scores = {row["step"]: row["eval"]["process_accuracy"] for row in metrics(run)}
    best = json.loads((run / "summary.json").read_text())["best"]
    assert best["process_accuracy"] == max(scores.values()) == scores[best["step"]] and len(scores) == 5


def planned(*words) -> dict[str, str]:
    text = plan(contextrl.read_config([str(word) for word in words]))
    return {line[:34].strip(): line[35:] for line in text.splitlines()}


@pytest.mark.parametrize("name", [name for name in FILES if name != "prompts_128"])
def test_a_plan_of_every_file(world, name, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    lines = planned(FILES[name], "--model", "toy", "--data", world / "train.jsonl")
    assert lines["data"] == "40 queries" and lines["model"].endswith(" on 8 ranks; of each")
    assert ("reference" in lines) == (name in ("contextrl", "grpo", "context_pairs") or "without" in name)
    assert ("tokens sampled" in lines) == (name != "sft")
    assert lines["checkpoints"].startswith({"sft": "5 of", "context_pairs": "9 of"}.get(name, "19 of"))


def test_the_numbers_of_a_plan_by_hand(world, tmp_path, capsys, monkeypatch):
    row = {"question": "how many ?", "solution": "red 3", "answer": "3"}
    data = write(tmp_path / "data.jsonl", *({"id": f"q{i}", **row} for i in range(10)))
    words = (f"--data {data} --output_dir {tmp_path / 'run'} --steps 25 --queries_per_step 4 --group_size 5 "
             "--minibatches 2 --save_every 10 --max_new_tokens 7 --dry_run").split()
    lines = planned(*words)
    assert lines["steps"] == "25 of 4 queries: 10.00 epochs" and lines["optimiser steps"] == "50"
    assert lines["responses"] == "500 and up to as many retries; 20 a step"
    # "red", "3" and the end of the turn.
    assert lines["tokens sampled"] == ("about 1,500, if a response is as long as a reference (3); "
                                       "at most 3,500")
    weights = sum(w.numel() for w in load_model(MODEL, torch.float32).parameters())
    assert lines["checkpoints"].startswith(f"3 of {weights * 14 / 1e9:.3g} GB, 2 stay")
    assert lines["weights, gradient, AdamW"] == f"{weights * 16 / 1e9:.3g} GB"
    assert lines["reference"] == f"{weights * 2 / 1e9:.3g} GB"
    monkeypatch.setattr(sys, "argv", ["contextrl.py", *words])
    contextrl.main()
    assert "25 of 4 queries" in capsys.readouterr().out and not (tmp_path / "run").exists()
