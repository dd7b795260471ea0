"""--verifier NAME.py: a function of yours as the verifier of training, evaluation and data building.

Guards against: a number that becomes another reward, verdicts in another order, an error in the file that
becomes a wrong answer or a traceback, an example in the README that does not run.
"""

import re
import textwrap

import pytest
from conftest import ROOT
from helpers import command, json_rows, metrics, train

from data import DataError, Query, save_queries
from judges import custom
from judges.rule import RuleFirst
from reward import Verdict, VerdictStatus, VerifierUnreliable
from training import parts

QUERY = Query("q7", [], "how many red ?", "red 5 ; \\boxed{5}", "5")


@pytest.fixture
def written(tmp_path):
    """-> written(source): my_reward.py with these lines; its path."""
    def write_source(source: str) -> str:
        (tmp_path / "my_reward.py").write_text(source)
        return str(tmp_path / "my_reward.py")
    return write_source


@pytest.fixture
def opened(written):
    """-> opened(source, queries): what --verifier my_reward.py is for these queries."""
    return lambda source, queries=(QUERY,), **settings: parts.open_verifier(
        written(source), "solution", queries, **settings)


@pytest.fixture
def data(tmp_path, picture):
    """Four queries of no world that the project knows: noise, and no facts."""
    save_queries([Query(f"q{i}", [picture(64, 64, i)], "how many red ?", f"red {i} ; \\boxed{{{i}}}", str(i))
                  for i in range(4)], tmp_path / "data.jsonl")
    return tmp_path / "data.jsonl"


def returning(expression: str) -> str:
    return f"import math\n\ndef judge(query, response):\n    return {expression}\n"


# -------------------------------------------------------------------------------------------- what it returns

@pytest.mark.parametrize("value, correct", [
    (1.0, True), (0.5, True), (2, True), (True, True),
    (0.0, False), (0, False), (-0.5, False), (False, False)])
def test_a_number_is_the_reward_and_above_0_is_right(opened, value, correct):
    verdict, = opened(returning(repr(value))).judge([QUERY], ["red 5"])
    assert (verdict.status, verdict.reward, verdict.correct) == (VerdictStatus.JUDGED, float(value), correct)
    assert type(verdict.reward) is float and verdict.report == ""


def test_a_verdict_is_taken_as_it_is(opened):
    verifier = opened("from reward import Verdict\n\ndef judge(query, response):\n"
                      "    return Verdict.judged(response == query.answer, report=f'not {response}')\n")
    wrong, right = verifier.judge([QUERY, QUERY], ["4", "5"])
    assert wrong == Verdict.judged(False, report="not 4") and wrong.report == "not 4"
    assert right == Verdict.judged(True) and verifier.judge_one(QUERY, "5") == right
    assert verifier.metrics() == {}


def test_numbers_of_numpy_and_a_dataclass_in_the_file(opened):
    source = ("from __future__ import annotations\nfrom dataclasses import dataclass\nimport numpy\n\n"
              "@dataclass\nclass Share:\n    of: float\n\n\ndef judge(query, response):\n"
              "    return numpy.float32(Share(0.5).of)\n")
    verdict = opened(source).judge_one(QUERY, "5")
    assert (verdict.reward, type(verdict.reward), verdict.correct) == (0.5, float, True)


def test_a_verdict_of_your_own_may_have_failed(opened):
    failed = opened("from reward import Verdict\n\ndef judge(query, response):\n"
                    "    return Verdict.failed('no compiler')\n").judge_one(QUERY, "5")
    assert failed.reward is None and failed.error == "no compiler"


def test_verdicts_are_in_order_from_several_threads(opened):
    """Four calls wait for each other; the first of them is the last to return."""
    verifier = opened("import threading, time\n\nfour = threading.Barrier(4)\n\ndef judge(query, response):\n"
                      "    four.wait(30)\n    time.sleep(0.2 if float(response) % 4 == 0 else 0)\n"
                      "    return float(response)\n", concurrency=4)
    assert [v.reward for v in verifier.judge([QUERY] * 12, [str(i) for i in range(12)])] == list(range(12))


def test_queries_of_the_rule_never_reach_the_function(opened):
    facts = {"rule": True, "choices": {"A": "four", "B": "five"}}
    by_rule = [Query(f"r{i}", [], "which ?", "-", "B", facts=facts) for i in range(2)]
    verifier = opened(returning("0.25 if query.id == 'q7' else 1 / 0"), [QUERY, *by_rule])
    assert isinstance(verifier, RuleFirst)
    verdicts = verifier.judge([by_rule[0], QUERY, by_rule[1], QUERY], ["five", "five", "A", "A"])
    assert [v.reward for v in verdicts] == [1.0, 0.25, 0.0, 0.25]
    assert verifier.judge_one(QUERY, "A").reward == 0.25 and verifier.judge_one(by_rule[0], "B").reward == 1.0
    assert [v.reward for v in verifier.judge(by_rule, ["A", "B"])] == [0.0, 1.0] and verifier.metrics() == {}


# -------------------------------------------------------------------------------------------- what goes wrong

@pytest.mark.parametrize("source, where, told", [
    ("x = 1\ndef judge(query response):\n    return 1\n", ":2", "SyntaxError: "),
    ("import math\nimport no_such_module\n", ":2", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("from math import no_such_name\n", ":1", "ImportError: cannot import name 'no_such_name'"),
    ("import json\n\nRULES = json.loads('{')\n", ":3", "JSONDecodeError: "),
    ("import ast\n\n\nRULES = ast.literal_eval('(')\n", ":4", "SyntaxError: "),
    ("\nraise SystemExit('no\\nlicence')\n", ":2", "SystemExit: no licence"),
    ("def reward(query, response):\n    return 1\n", "", "has no function judge(query, response)"),
    ("judge = 1.0\n", "", "has no function judge(query, response)")])
def test_a_file_that_cannot_be_loaded_is_one_line_with_file_and_line(opened, tmp_path, source, where, told):
    with pytest.raises(DataError) as error:
        opened(source)
    assert f"{tmp_path / 'my_reward.py'}{where}" in str(error.value) and told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_is_one_line():
    line = r"^cannot load verifier no/my_reward\.py: .*FileNotFoundError: [^\n]*$"
    with pytest.raises(DataError, match=line):
        parts.open_verifier("no/my_reward.py", "solution", [QUERY])


@pytest.mark.parametrize("expression, where, told", [
    ("1 / 0", ":4", "ZeroDivisionError: division by zero"),
    ("math.sqrt(-1.0)", ":4", "ValueError: "),
    ("query.no_such_field", ":4", "AttributeError: "),
    ("eval('(')", ":4", "SyntaxError: "),
    ("open('a\\nb')", ":4", "FileNotFoundError: "),
    ("math.nan", "", "judge() returned nan"),
    ("__import__('reward').Verdict('judged', value=math.nan)", "", "judge() returned Verdict(status="),
    ("__import__('sys').exit(1)", ":4", "SystemExit: 1"),
    ("math.inf", "", "judge() returned inf"),
    ("'1'", "", "judge() returned '1'"),
    ("None", "", "judge() returned None"),
    ("[1.0]", "", "judge() returned [1.0]")])
def test_an_error_of_a_call_names_file_line_and_query(opened, tmp_path, expression, where, told):
    with pytest.raises(VerifierUnreliable) as error:
        opened(returning(expression)).judge([QUERY], ["5"])
    assert str(error.value).startswith(f"{tmp_path / 'my_reward.py'}{where}: {told}")
    assert "for query q7" in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ runs and programs

def test_a_run_is_rewarded_by_the_file_and_its_recording_trains_the_same(data, written, tmp_path):
    """q0 is always wrong and so has a stage 2 that is shown the report; the others get numbers."""
    file = written("from reward import Verdict\n\ndef judge(query, response):\n"
                   "    if query.id == 'q0':\n        return Verdict.judged(False, report='count again')\n"
                   "    return (1 + len(response) % 4) / 4\n")
    live = train(data, tmp_path / "live", verifier=file, steps=1)
    rows = {row["query"]: row for row in json_rows(live / "rollouts.jsonl")}
    assert rows.keys() == {"q0", "q1", "q2", "q3"}
    for member in [*rows["q0"]["stage1"], *rows["q0"]["stage2"]]:
        assert (member["correct"], member["report"], "value" in member) == (False, "count again", False)
    judged = [member for name in ("q1", "q2", "q3") for member in rows[name]["stage1"]]
    assert all(m["value"] == (1 + len(m["text"]) % 4) / 4 and m["correct"] for m in judged)
    assert len({member["value"] for member in judged}) > 1 and any(member["advantage"] for member in judged)
    assert rows["q0"]["stage2"] and not any(rows[name]["stage2"] for name in ("q1", "q2", "q3"))

    replayed = train(data, tmp_path / "replayed", verifier=file, steps=1,
                     rollouts_from=live / "rollouts.jsonl")
    assert metrics(replayed) == metrics(live) and metrics(live)[-1]["grad_norm"] > 0


def test_an_evaluation_is_judged_by_the_file_and_a_broken_one_is_one_line(data, written):
    def evaluate(source: str):
        return command("--data", data, "--verifier", written(source), "--max_new_tokens", 8, name="eval.py")

    done = evaluate(returning("(query.id == 'q0') / 2"))             # one of four is right; the mean is 0.125
    assert done.returncode == 0 and re.search(r"^all +\d\.\d\d +0\.25 ", done.stdout, re.M)
    broken = evaluate("def judge(query, response)\n")
    assert (broken.returncode, broken.stdout) == (2, "")
    line = r"error: cannot load verifier \S+: \S*my_reward\.py:1: SyntaxError: .*\n"
    assert re.fullmatch(line, broken.stderr)
    stopped = evaluate(returning("1 / 0"))
    assert (stopped.returncode, stopped.stdout) == (3, "") and "Traceback" not in stopped.stderr
    assert re.search(r"stopped: \S+my_reward\.py:4: ZeroDivisionError: .+ for query q\d\n$", stopped.stderr)


def examples() -> dict[str, str]:
    """The files that README and docstring show."""
    block = re.search(r"```python\n(# my_reward\.py .*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    return {"README.md": block, "judges/custom.py": textwrap.dedent(custom.__doc__.split("the whole of")[1])}


@pytest.mark.parametrize("place", ["README.md", "judges/custom.py"])
def test_the_examples_of_the_documents_work(opened, place):
    verdicts = opened(examples()[place]).judge([QUERY] * 2, ["red 5 ; \\boxed{5}", "red 4 ; \\boxed{4}"])
    assert [(v.reward, v.correct) for v in verdicts] == [(1.0, True), (0.0, False)]
    assert "--verifier my_reward.py" in (examples()[place] if place == "README.md" else custom.__doc__)
