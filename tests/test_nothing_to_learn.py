"""Runs in which nothing can be learnt are refused, stopped or said, and never end as if all were well.

Guards against: weights that are no numbers, prompts without room, responses that never end, thoughts that are
paid as answers, groups that are trained on length alone.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import MODEL
from helpers import arguments, train
from safetensors.torch import load_file, save_file

import contextrl
import toy
from data import Processor, Query, load_model
from grpo import GroupKind
from judges.rule import answers_match
from reward import Verdict
from sampler import HFEngine, Request, Rollout, Sample, SampleStatus
from training.config import Config


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the start policy, to be spoilt."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


@pytest.fixture
def ended(monkeypatch, capsys):
    """-> ended(arguments): runs main(), returns its exit code and its one line."""
    def call(words: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["contextrl.py", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            contextrl.main()
        lines = capsys.readouterr().err.splitlines()
        line, = [line for line in lines if line.startswith(("error: ", "stopped: "))]
        return stop.value.code, line
    return call


def edit(file: Path, **changes) -> None:
    """Changes keys of a JSON file; None removes one."""
    settings = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def retemplate(model: Path, old: str, new: str) -> None:
    file = model / "chat_template.jinja"
    template = file.read_text()
    assert old in template
    file.write_text(template.replace(old, new))


def responses(model, max_new_tokens: int = 24, n: int = 8) -> list[Sample]:
    processor = Processor(str(model))
    engine = HFEngine(load_model(str(model), torch.float32), processor, max_new_tokens=max_new_tokens)
    prompt = processor.prompt(toy.make_query("ordinary", 0, "train", "half"))
    return engine.generate([Request(prompt, list(range(n)))])[0]


# ------------------------------------------------------------------------------------ what ends a response

@pytest.mark.parametrize("changes", [{"eos_token": "<|endoftext|>"}, {"eos_token": None}, {"pad_token": None},
                                     {"eos_token": None, "pad_token": None}])
def test_a_response_ends_where_the_chat_template_ends_a_turn(model, changes):
    expected = responses(MODEL)
    edit(model / "tokenizer_config.json", **changes)
    found = responses(model)
    assert [s.ids for s in found] == [s.ids for s in expected]
    assert all(s.status is SampleStatus.COMPLETED for s in found)


def test_a_retry_closes_the_turn_once_whatever_the_tokenizer_calls_its_end(model):
    query, ids = toy.make_query("ordinary", 0, "train", "half"), [5, 6, 7]
    expected = Processor(MODEL)
    edit(model / "tokenizer_config.json", eos_token="<|endoftext|>")
    found = Processor(str(model))
    for response in (ids, [*ids, expected.eos_id]):
        assert found.follow_up(found.prompt(query), response, "again").ids == \
            expected.follow_up(expected.prompt(query), response, "again").ids


def test_without_any_end_of_a_response_nothing_starts(world, tmp_path, model, ended):
    edit(model / "tokenizer_config.json", eos_token=None)
    retemplate(model, "<|im_end|>", "")
    retemplate(model, "<|im_start|>", "Turn of ")
    code, line = ended(arguments(world / "train.jsonl", tmp_path / "run", model=model, steps=1))
    assert code == 2 and "names a token that ends a response" in line and not (tmp_path / "run").exists()


def test_a_tokenizer_that_does_not_fit_the_embedding(world, tmp_path, model, ended):
    tokenizer = Processor(MODEL).tokenizer
    tokenizer.add_tokens([f"new{i}" for i in range(100)])
    tokenizer.save_pretrained(model)
    code, line = ended(arguments(world / "train.jsonl", tmp_path / "run", model=model, steps=1))
    assert code == 2 and "the model's embedding" in line and not (tmp_path / "run").exists()


def test_responses_that_never_end_are_said(world, tmp_path, capsys):
    train(world / "train.jsonl", tmp_path / "run", steps=1, max_new_tokens=1)
    assert "step 1: every response ran into --max_new_tokens 1" in capsys.readouterr().out


# -------------------------------------------------------------------------------------- prompts without room

def test_more_new_tokens_than_the_models_context(world, tmp_path, ended):
    code, line = ended(arguments(world / "train.jsonl", tmp_path / "run", steps=1, max_new_tokens=5000))
    assert (code, line) == (2, "error: 5000 new tokens leave no room in a context of 4096")
    assert not (tmp_path / "run").exists()


def test_a_step_in_which_no_prompt_has_room_stops_the_run(world, tmp_path, ended):
    code, line = ended(arguments(world / "train.jsonl", tmp_path / "run", steps=3, max_new_tokens=4090))
    assert code == 3 and line.startswith("stopped: all prompts of step 1 are too long for the engine")


# ------------------------------------------------------------------------------------ numbers that are none

@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["contextrl", "dapo", "sft"])
def test_weights_that_are_no_numbers_stop_the_run(world, tmp_path, model, ended, value, method):
    weights = load_file(model / "model.safetensors")
    weights["model.language_model.layers.2.mlp.down_proj.weight"][0, 0] = value
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    code, line = ended(arguments(world / "train.jsonl", tmp_path / "run", model=model, method=method))
    assert code == 3 and "not finite" in line and not (tmp_path / "run").exists()


def test_an_update_that_throws_the_weights_away_stops_the_run(world, tmp_path, ended):
    code, line = ended(arguments(world / "train.jsonl", tmp_path / "run", steps=6, learning_rate=1e30,
                                 warmup_steps=0))
    assert code == 3 and ("not finite" in line or "gradient norm is" in line)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_notices_at_any_temperature(processor, checkpoint, prompt_of, temperature):
    model = load_model(checkpoint, torch.float32)
    model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        HFEngine(model, processor).generate([Request(prompt_of("?"), [0])], temperature)


# ----------------------------------------------------------------------------------- groups of length alone

@pytest.mark.parametrize("rewards, kind", [
    ([0, 0, 0, 0], GroupKind.ALL_NEGATIVE), ([1, 1, 1, 1], GroupKind.ALL_POSITIVE),
    ([None, 0, 0, 0], GroupKind.ALL_NEGATIVE), ([1, None, 1, 1], GroupKind.ALL_POSITIVE),
    ([0, 1, 0, 0], GroupKind.ONLINE), ([1, 1, 0, 1], GroupKind.ONLINE)])
def test_dapo_keeps_a_group_by_what_is_right_and_not_by_lengths(rewards, kind):
    config = Config(method="dapo", max_new_tokens=32, overlong_buffer=8).resolve()
    samples = [Sample([1] * n, [-0.1] * n, SampleStatus.COMPLETED, "") for n in (5, 6, 30, 32)]
    verdicts = [Verdict.failed("away") if r is None else Verdict.judged(bool(r)) for r in rewards]
    group = contextrl.roll_back(Rollout(Query("q", [], "?", "s", "5"), None, "q", samples, verdicts), config)
    assert group.kind is kind
    if kind is GroupKind.ONLINE:              # among equals, the longer response pays the larger penalty
        by_reward = {}
        for member in group.members:
            by_reward.setdefault(member.reward, []).append(member.advantage)
        assert all(values == sorted(values, reverse=True) for values in by_reward.values())
        assert len({m.advantage for m in group.members}) > 2
    else:
        assert all(m.advantage == 0 for m in group.members)


@pytest.mark.parametrize("buffer, limit", [(32, 32), (40, 32), (8, 8), (1, 1), (9, 8)])
def test_a_buffer_that_is_all_of_the_response_is_refused(world, tmp_path, ended, buffer, limit):
    code, line = ended(arguments(world / "train.jsonl", tmp_path / "run", method="dapo", steps=1,
                                 max_new_tokens=limit, overlong_buffer=buffer))
    assert (code, line) == (2, f"error: --overlong_buffer {buffer} is not below --max_new_tokens {limit}")


# --------------------------------------------------------------------------------------- unfinished thoughts

OPENS = "<|im_start|>assistant\n"


@pytest.mark.parametrize("written, thought", [
    ("<think>\n", "<think>\n"), ("<think>", "<think>\n"), ("<think>\n\n</think>\n\n", ""), ("", ""),
    ("<think>a</think><think>\n", "<think>\n")])
def test_a_response_begins_with_the_thought_that_the_template_opened(model, written, thought):
    retemplate(model, OPENS, OPENS + written)
    processor = Processor(str(model))
    assert processor.decode(processor.encode("red 3 ; \\boxed{3}")) == thought + "red 3 ; \\boxed{3}"


@pytest.mark.parametrize("response, right", [
    ("so \\boxed{3}", False), ("the answer is 3", False), ("3", False), ("so \\boxed{3}</think>", False),
    ("it is 4</think>\\boxed{3}", True), ("it is 3</think>\\boxed{4}", False)])
def test_what_is_only_thought_is_no_answer(response, right):
    assert answers_match(Query("q", [], "?", "s", "3"), "<think>\n" + response) is right


def test_no_truncated_thought_is_paid(world, tmp_path, model):
    retemplate(model, OPENS, OPENS + "<think>\n")
    run = train(world / "train.jsonl", tmp_path / "run", model=model, steps=1, verifier="rule",
                verifier_context="answer", queries_per_step=12)
    rows = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    texts = [(member["text"], member["correct"]) for row in rows for member in row["stage1"]]
    assert texts and all(text.startswith("<think>") and not correct for text, correct in texts)
