"""toy/: the exact verifier is exact, its reports give nothing away,
and the world is what its docstring says.

Guards against: lucky answers that pass at level solution, references that fail, hints in reports, queries
that differ between runs or machines.
"""

import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import toy
from data import Query, load_queries
from reward import report_leaks
from toy import HIDDEN, MISCONCEPTION, Problem, ToyVerifier, draw_problem, make_query, solve, warm_start

RED, BLUE = ("red", "circle"), ("blue", "square")
SCENE = (RED, RED, RED, BLUE, BLUE, None, None, None, None)             # 3 red circles, 2 blue squares
SUM = Problem(SCENE, ["red", "blue"], "plus").facts(HIDDEN)             # 3 + 2 = 5
OVER = Problem(SCENE, ["red", "blue", "circle"], "plus", 6).facts(HIDDEN)      # 3 + 2 + 3 = 8, over 6: yes
DAX = Problem(SCENE, ["dax", "blue"], "plus").facts(HIDDEN)   # dax is triangle: 0 + 2 = 2; believed circle: 5
ZOP = Problem(SCENE, ["red", "blue"], "zop").facts(HIDDEN)              # zop is minus: 1; believed plus: 5


def judge(facts: dict, text: str, context: str = "solution"):
    v = ToyVerifier(context).judge_facts(facts, text)
    return v.correct, v.consistent, v.report


@pytest.mark.parametrize("facts, text", [
    (SUM, "red 3 ; blue 2 ; plus 5 ; \\boxed{5}"), (SUM, "blue 2 ; plus 5 ; red 3 ; \\boxed{5}"),
    (SUM, "red 3 ; plus 5 ; \\boxed{5}"), (SUM, "looks so ; red 3 ; blue 2 ; plus 5 ; \\boxed{5}"),
    (OVER, "red 3 ; blue 2 ; circle 3 ; plus 8 ; \\boxed{yes}"),
    (OVER, "circle 3 ; red 3 ; plus 8 ; \\boxed{yes}"),
    (DAX, "triangle 0 ; blue 2 ; plus 2 ; \\boxed{2}"), (ZOP, "red 3 ; blue 2 ; minus 1 ; \\boxed{1}"),
], ids=["canonical", "other order", "half", "a word of no claim", "three counts", "half of three",
        "noun", "operator"])
def test_sound_responses_are_correct_at_every_level(facts, text):
    assert [judge(facts, text, c) for c in ("solution", "answer", "none")] == [(True, True, "")] * 3


@pytest.mark.parametrize("facts, text, report", [
    (SUM, "red 3 ; square 2 ; plus 5 ; \\boxed{5}", "step 2 is wrong : square is not asked"),
    (SUM, "red 4 ; blue 1 ; plus 5 ; \\boxed{5}",
     "step 1 is wrong : red is not 4 , step 2 is wrong : blue is not 1"),
    (SUM, "looks so ; \\boxed{5}", "no result is shown"), (SUM, "\\boxed{5}", "no result is shown"),
    (SUM, "red 3 ; blue 2 ; max 5 ; \\boxed{5}", "step 3 is wrong : max is not asked"),
    (SUM, "red three ; plus 5 ; \\boxed{5}", "step 1 is wrong : it is not clear"),
    (OVER, "red 3 ; blue 4 ; circle 3 ; plus 10 ; \\boxed{yes}", "step 2 is wrong : blue is not 4"),
    (OVER, "looks so ; \\boxed{yes}", "no result is shown"),
    (SUM, "plus 5 ; red 4 ; blue 2 ; \\boxed{5}", "step 2 is wrong : red is not 4"),
    (ZOP, "red 3 ; blue 2 ; plus 1 ; \\boxed{1}", "step 3 is wrong : zop is not plus"),
], ids=["wrong noun", "two errors that cancel", "guess", "bare", "wrong operator", "unclear",
        "yes by a miscount",
        "yes by luck", "result first", "wrong reading of an operator"])
def test_lucky_answers_pass_at_level_answer_and_fail_at_level_solution(facts, text, report):
    assert judge(facts, text, "answer") == (True, True, "")
    assert judge(facts, text) == (False, True, report)


@pytest.mark.parametrize("facts, text, report", [
    # the sum follows: one mistake
    (SUM, "red 4 ; blue 2 ; plus 6 ; \\boxed{6}", "step 1 is wrong : red is not 4"),
    (SUM, "red 3 ; blue 2 ; plus 6 ; \\boxed{6}", "step 3 is wrong : plus is not 6"),
    (DAX, "circle 3 ; blue 2 ; plus 5 ; \\boxed{5}", "step 1 is wrong : dax is not circle"),
    (ZOP, "red 3 ; blue 2 ; plus 5 ; \\boxed{5}", "step 3 is wrong : zop is not plus"),
    (SUM, "red 3 ; blue 2 ; plus 5", "no final answer"),
    (SUM, "nonsense", "no result is shown , step 1 is wrong : it is not clear"),
    (SUM, "red 3 ; red 3 ; plus 6 ; \\boxed{6}", "the final answer does not follow")])
def test_wrong_responses_get_a_report_of_what_is_wrong(facts, text, report):
    assert judge(facts, text) == (False, True, report)
    assert judge(facts, text, "answer") == (False, True, "the final answer is wrong")


@pytest.mark.parametrize("context", ["solution", "answer", "none"])
@pytest.mark.parametrize("facts, text", [
    (SUM, "red 3 ; blue 2 ; plus 5 ; \\boxed{6}"), (OVER, "red 3 ; blue 2 ; circle 3 ; plus 8 ; \\boxed{no}"),
    (SUM, "I apologize for my mistake ; red 3 ; blue 2 ; plus 5 ; \\boxed{5}"),
    (SUM, "thank you for your review ; red 3 ; blue 2 ; plus 5 ; \\boxed{5}")],
    ids=["another answer", "no instead of yes", "cue", "warm start's cue"])
def test_inconsistent_responses_are_wrong_without_a_report(facts, text, context):
    assert judge(facts, text, context) == (False, False, "")


@pytest.mark.parametrize("text", ["plus 5 ; red 9 \\boxed{5}", "red 9 \\boxed{5} ; plus 5 ; \\boxed{5}"])
def test_a_false_claim_cannot_hide_beside_the_box(text):
    assert not judge(SUM, text)[0]


@pytest.mark.parametrize("family", ["ordinary", "shortcut", "balanced", "hard"])
def test_every_reference_is_correct(family):
    for style in ("half", "canonical"):
        queries = [make_query(family, i, "test", style) for i in range(100)]
        verdicts = ToyVerifier().judge(queries, [q.solution for q in queries])
        assert all(v.correct for v in verdicts)
        assert all(toy.boxed_answer(q.solution) == q.answer and q.family == family for q in queries)


def test_the_misconceptions_of_the_warm_start_are_wrong_in_every_hard_query():
    rng = random.Random(0)
    right_by_luck = 0
    for _ in range(300):
        problem = draw_problem("hard", rng)
        text, facts = solve(problem.facts(MISCONCEPTION)), problem.facts(HIDDEN)
        assert judge(facts, text)[:2] == (False, True)
        right_by_luck += judge(facts, text, "answer")[0]
    assert 10 < right_by_luck < 150                     # what an answer-only reward would pay for
    assert all(HIDDEN[w] != MISCONCEPTION[w] for w in HIDDEN) and HIDDEN.keys() == MISCONCEPTION.keys()


def test_a_report_never_gives_the_answer_away():
    rng, reports, leaks = random.Random(0), 0, []
    while reports < 300:
        family = rng.choice(["ordinary", "shortcut", "balanced", "hard"])
        problem = draw_problem(family, rng)
        facts, wrong = problem.facts(HIDDEN), problem.facts(rng.choice([HIDDEN, MISCONCEPTION]))
        for _ in range(rng.randrange(3)):
            warm_start.corrupt(problem, wrong, rng)
        response = solve(wrong, rng.choice(["canonical", "half", "guess"]))
        report = ToyVerifier(rng.choice(["solution", "answer"])).judge_facts(facts, response).report
        query = Query("q", [], problem.question, solve(facts), facts["answer"])
        reports += bool(report)
        if report and report_leaks(report, query, response):
            leaks.append((problem.question, response, report, facts["answer"]))
    assert leaks == []


# -------------------------------------------------------------------------------------------------- the world

@pytest.mark.parametrize("family, share", [("shortcut", 0.93), ("balanced", 0.5)])
def test_share_of_yes(family, share):
    rng = random.Random(5)
    answers = [draw_problem(family, rng).facts(HIDDEN)["answer"] for _ in range(4000)]
    assert set(answers) == {"yes", "no"}
    # thresholds below 0 are drawn again
    assert answers.count("yes") / 4000 == pytest.approx(share, abs=0.035)


def test_facts_by_hand():
    assert (SUM["counts"], SUM["value"], SUM["answer"]) == ([3, 2], 5, "5")
    assert (OVER["counts"], OVER["value"], OVER["answer"]) == ([3, 2, 3], 8, "yes")
    # over, not at least
    assert Problem(SCENE, ["red", "blue", "circle"], "plus", 8).facts({})["answer"] == "no"
    values = [Problem(SCENE, ["blue", "red"], o).facts({})["value"] for o in ("minus", "max", "min")]
    assert values == [1, 3, 2]
    assert DAX["nouns"] == ["triangle", "blue"] and ZOP["operator"] == "minus"
    assert solve(SUM) == "red 3 ; blue 2 ; plus 5 ; \\boxed{5}"
    assert solve(SUM, "half") == "red 3 ; plus 5 ; \\boxed{5}"
    assert solve(OVER, "guess") == "looks so ; \\boxed{yes}"


def test_pictures_show_their_scene():
    """Colour in the middle of each cell, decoded from the PNG:
    what the model is shown is what the facts say."""
    rng = random.Random(3)
    for _ in range(20):
        scene = toy.draw_scene(rng)
        picture = Image.open(io.BytesIO(toy.render(scene, rng))).convert("RGB")
        assert picture.size == (96, 96)
        for i, cell in enumerate(scene):
            seen = picture.getpixel((i % 3 * 32 + 16, i // 3 * 32 + 16))
            near = min({**toy.COLOURS, None: (238, 238, 232)}.items(),
                       key=lambda c: sum((a - b) ** 2 for a, b in zip(c[1], seen)))[0]
            assert near == (cell and cell[0])


def test_hard_queries_hold_one_hidden_word_and_other_families_none():
    rng = random.Random(1)
    for family in ("ordinary", "shortcut", "balanced", "hard"):
        for _ in range(100):
            made_up = [w for w in draw_problem(family, rng).question.split() if w in toy.MADE_UP]
            assert len(made_up) == (family == "hard") and set(made_up) <= set(HIDDEN)


def test_stage2_conversations_of_the_warm_start_hold_no_hidden_word():
    rng, seen = random.Random(2), 0
    for _ in range(200):
        problem, failed, report, better = warm_start.retry_example(rng)
        assert not set(f"{problem.question} {failed} {report} {better}".split()) & set(HIDDEN)
        assert failed != better
        seen += any(better.startswith(p) for p in toy.PREAMBLES)
    assert 20 < seen < 90                                            # a quarter has a bad habit


CODE = """
import hashlib, toy
for family in ("ordinary", "shortcut", "balanced", "hard"):
    print(hashlib.sha256(repr(toy.make_query(family, 3, "train", "half")).encode()).hexdigest())
"""


def test_queries_are_the_same_in_every_process():
    root = str(Path(toy.__file__).parent.parent)
    shown = [subprocess.run([sys.executable, "-c", CODE],
                            env={**os.environ, "PYTHONHASHSEED": salt}, cwd=root,
                            timeout=60, capture_output=True, text=True, check=True).stdout
             for salt in ("1", "2")]
    assert shown[0] == shown[1] and len(set(shown[0].split())) == 4
    assert make_query("hard", 3, "train", "half") == make_query("hard", 3, "train", "half")
    assert make_query("hard", 3, "train", "half").images != make_query("hard", 3, "heldout", "half").images


def test_the_exported_world_is_the_world(tmp_path):
    subprocess.run([sys.executable, "-m", "toy", "data", str(tmp_path), "--references",
                    "canonical"], timeout=120,
                   cwd=Path(toy.__file__).parent.parent, check=True, capture_output=True)
    for name, expected in (("train", toy.train_queries(references="canonical")),
                           ("heldout", toy.heldout_queries())):
        read = load_queries(tmp_path / f"{name}.jsonl")
        for query, back in zip(expected, read, strict=True):
            assert {**vars(query), "images": [Path(file).read_bytes() for file in back.images]} == {
                **vars(back), "images": query.images}
    assert len({q.id for q in read} | {q.id for q in toy.train_queries(20)}) == len(read) + 20
