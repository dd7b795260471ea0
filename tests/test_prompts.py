"""prompts/: what the judge reads and what stage 2 says, as files of ours or of a user's.

Guards against: a field that is not filled or filled twice, words that never reach the model they are for, and
a file that lacks what it needs and is found out in the middle of a run.
"""

import json
import sys

import pytest
from helpers import arguments, json_rows, train

import contextrl
import toy
from data import DataError, Query, fill_prompt, retry_message, retry_template
from reward import CONTEXTS, Verifier, judge_messages, judge_prompt
from sampler import HFEngine

QUERY = Query("q", [], "What is {response}?", "2x = 6, so x = 3. {answer}", "3")


@pytest.fixture
def shown(monkeypatch, processor) -> list[str]:
    """Texts of all prompts that the engine was asked to continue."""
    seen, generate = [], HFEngine.generate

    def spy(self, requests, temperature=None):
        seen.extend(self.processor.tokenizer.decode(request.prompt.ids) for request in requests)
        return generate(self, requests, temperature)
    monkeypatch.setattr(HFEngine, "generate", spy)
    return seen


def refusal(monkeypatch, capsys, *flags: str) -> str:
    monkeypatch.setattr(sys, "argv", ["contextrl.py", *flags])
    with pytest.raises(SystemExit) as stop:
        contextrl.main()
    line, = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ")
    return line


def two_turns(text: str) -> bool:
    return text.count("<|im_start|>user\n") == 2


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_judge_is_told_what_its_context_says_and_no_field_is_left(context):
    text = judge_messages(QUERY, "x = 4", judge_prompt(context))[0]["content"][-1]["text"]
    assert ("2x = 6" in text, "\n3\n" in text) == (context == "solution", context == "answer")
    assert "What is {response}?" in text and text.count("x = 4") == 1      # braces of the data stay
    assert not {"{question}", "{solution}", "{cues}", "{reminder}"} & set(text.split())


def test_a_file_of_yours_is_what_the_judge_reads(tmp_path):
    (tmp_path / "mine.txt").write_text("Mark {question} with {solution}: {response} Be kind to {nobody}.")
    read = []

    def chat(messages):
        read.append(messages[0]["content"][-1]["text"])
        return json.dumps({"Analysis": "", "Self-Consistency": 1, "Correctness": 1, "Mistake Report": ""})
    verifier = Verifier(chat, prompt_file=str(tmp_path / "mine.txt"))
    assert verifier.judge_one(QUERY, "x = 3").reward == 1.0
    assert read[0].startswith("Mark What is {response}? with 2x = 6, so x = 3. {answer}: =====")
    assert "\nx = 3\n=====" in read[0] and read[0].endswith("Be kind to {nobody}.")


def test_fields_are_filled_in_one_pass():
    assert fill_prompt("{a} {b} {c}", a="{b}", b="{a}") == "{b} {a} {c}"


def test_stage_2_says_what_the_file_says(world, tmp_path, shown):
    (tmp_path / "again.txt").write_text("yellow : {report} ; describe\n---\nyellow ; describe")
    run = train(world / "hard.jsonl", tmp_path / "run", "--rollout_only", steps=1,
                retry_prompt=tmp_path / "again.txt")
    rows = json_rows(run / "rollouts.jsonl")
    reports = [m["report"] for row in rows if row["stage2"] for m in row["stage1"]]
    last_turns = [text.rsplit("<|im_start|>user\n", 1)[1] for text in filter(two_turns, shown)]
    assert [turn.split("<|im_end|>")[0] for turn in last_turns] == [
        f"yellow : {report} ; describe" if report else "yellow ; describe" for report in reports]
    assert any(reports)


def test_the_built_in_world_has_words_of_its_own_and_other_data_have_english():
    toy_words = retry_message("red is not 4", toy.RETRY_PROMPT)
    assert toy_words.startswith("A reviewer found mistakes : red is not 4 . Solve")
    english = retry_message("Step 2 is wrong.", retry_template())
    assert "your solution: Step 2 is wrong. Solve" in english and " ." not in english and " :" not in english


@pytest.mark.parametrize("content, told", [
    (None, "cannot read prompt"),
    ("Solve it again.\n---\nAgain.", "has no field {report}"),
    ("Mistakes: {report}", "needs one line '---'"),
])
def test_a_bad_retry_prompt_is_one_line(world, tmp_path, monkeypatch, capsys, content, told):
    if content is not None:
        (tmp_path / "again.txt").write_text(content)
    flags = arguments(world / "hard.jsonl", tmp_path / "run", steps=1, retry_prompt=tmp_path / "again.txt")
    assert told in refusal(monkeypatch, capsys, *flags) and not (tmp_path / "run").exists()


def test_a_judge_prompt_without_a_judge_is_one_line(world, tmp_path, monkeypatch, capsys):
    flags = arguments(world / "hard.jsonl", tmp_path / "run", steps=1, judge_prompt="mine.txt")
    assert "--judge_prompt mine.txt needs a judge" in refusal(monkeypatch, capsys, *flags)


def test_a_bad_judge_prompt_is_one_line(tmp_path):
    (tmp_path / "mine.txt").write_text("Mark {question}.")
    with pytest.raises(DataError, match=r"mine.txt has no field \{response\}; its fields are \{question\}, "):
        Verifier(lambda messages: "", prompt_file=str(tmp_path / "mine.txt"))
