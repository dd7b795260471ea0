"""experiments/: a verifier's own errors, tables and figures: numbers by hand, then the commands.

Guards against: a verifier's error that is counted on the wrong side, failed verdicts taken for rejections, a
judge of the built-in world that knows what it cannot know, tables that mix up rows, and injected data that
differ in more than their reasoning.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ALONE, ROOT
from helpers import train
from judge_server import JudgeServer
from PIL import Image

import toy
from context_pairs.pairs import load_pairs, query_of_pair, save_pairs
from data import DataError, Query, load_queries, read_picture, save_queries
from experiments import figures, run as experiments, tables
from experiments.verifier import family_table, label_built_in, load_labelled, verifier_errors, verifier_table
from reward import CONTEXTS, Verdict, VerdictStatus, Verifier, judge_messages, judge_prompt
from tools.files import read_rows
from tools.numbers import bootstrap_interval, spread
from tools.programs import Stopped


def command(module: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, env=ALONE,
                          timeout=200, capture_output=True, text=True)


def query(name: str = "q", answer: str = "5") -> Query:
    return Query(name, [], "how many red plus blue ?", "-", answer)


# ---------------------------------------------------------------------------------------- a verifier's errors

class Script:
    """True: correct, False: rejected, None: failed; in order."""

    def __init__(self, *verdicts):
        self.verdicts = verdicts

    def judge(self, queries, texts):
        return [Verdict.failed("x") if v is None else Verdict.judged(v) for v in self.verdicts]


def test_each_error_is_counted_on_its_side():
    a, b = query("a"), query("b")
    items = ([(a, "red 4 ; \\boxed{5}", False)] * 4 + [(b, "red 3 ; \\boxed{5}", True)] * 3
             + [(a, "\\boxed{6}", False)] * 3 + [(b, "\\boxed{6}", False)]
             + [(a, "\\boxed{5}", False), (b, "\\boxed{5}", True)])
    script = Script(False, False, False, True, False, True, True, True, True, True, False, None, None)
    found = verifier_errors(script, items)
    assert {kind: (part["n"], part["failed"], part["rejected"]) for kind, part in found.items()} == {
        "false positives": (4, 1, 75.0), "sound": (3, 1, pytest.approx(100 / 3)),
        "wrong answers": (4, 0, 25.0)}
    # Of the wrong answers all three of one query are accepted and the one of the other query is not.
    assert found["wrong answers"]["interval"] == [0.0, 100.0]
    table = verifier_table({"judge": {"none": found}}).splitlines()
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells[:2] == ["judge", "none"] and cells[2].startswith("75.0 [") and cells[2].endswith("] of 4")
    assert cells[3].startswith("33.3 [") and cells[4] == "75.0 [0.0, 100.0] of 4" and cells[5] == "1, 1, 0"
    found["wrong answers"]["interval"] = [10.0, 30.0]
    assert "75.0 [70.0, 90.0] of 4" in verifier_table({"judge": {"none": found}})  # accepted = 100 - rejected
    flagged = {"32B": (46.25, 50.03, 81.98), "235B": (51.25, 54.6, 82.12)}
    for name, (none, answer, solution) in flagged.items():
        for context, value in (("none", none), ("answer", answer), ("solution", solution)):
            assert f"| paper, {name} | {context} | {value:.2f} | not measured | not measured |  |" in table
    assert family_table({"judge": {"none": found}}).splitlines()[2] == "| judge | none | 3 of 4, 1 of 3 |"
    nothing = verifier_errors(Script(True), [(query(), "\\boxed{5}", True)])
    assert nothing["false positives"]["rejected"] is None
    assert "| – |" in verifier_table({"j": {"answer": nothing}})


def test_the_interval_draws_whole_queries():
    independent = bootstrap_interval([[x] for x in [0, 1] * 50])
    together = bootstrap_interval([[0] * 10] * 5 + [[1] * 10] * 5)    # as many zeros and ones, of ten queries
    assert independent[0] == pytest.approx(0.4, abs=0.03) and independent[1] == pytest.approx(0.6, abs=0.03)
    assert together[0] < 0.3 and together[1] > 0.7
    uneven = bootstrap_interval([[1]] * 50 + [[0] * 9] * 50)  # a share of responses: .1, not a mean of means
    assert uneven[0] < 0.1 < uneven[1] < 0.2
    # Nothing varies: the exact interval, 1 - 0.025^(1/n) wide.
    assert bootstrap_interval([[1, 1], [1]]) == [pytest.approx(0.025 ** 0.5), 1.0]
    assert bootstrap_interval([[0]] * 100) == [0.0, pytest.approx(0.0362, abs=1e-4)]


def test_a_labelled_file_with_bad_rows(tmp_path, capsys):
    good = {"id": "a", "question": "q", "solution": "s", "answer": "1", "response": "r", "sound": False}
    bad = [{**good, "sound": "no"}, {k: v for k, v in good.items() if k != "sound"}, {**good, "response": 3},
           {**good, "images": ["none.png"]}, {**good, "extra": 1}, {**good, "answer": ""}, [1],
           {**good, "response": "red \ud800"}]
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [good, *bad])
                    + '{"sound": true, ' + json.dumps(good)[1:] + "\n" + json.dumps(good) + "\n")
    assert [(q.id, text, sound) for q, text, sound in load_labelled(file)] == [("a", "r", False)] * 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "9 bad rows skipped, 2 read" and len(lines) == 10
    for line, reason in zip(lines, ("'response' must be a text and 'sound' true or false",
                                    "field 'sound' is missing",
                                    "'response' must be", "cannot read image", "unknown field(s) extra",
                                    "field 'answer' is missing or empty", "not a JSON object",
                                    "not a JSON object", "not a JSON object")):
        assert reason in line
    file.write_text(json.dumps(bad[0]) + "\n")
    message = "no labelled response in .*, the first bad row: .*:1: 'response' must"
    with pytest.raises(DataError, match=message):
        load_labelled(file)


# ----------------------------------------------------------------------------------------------- the onlooker

SCENE = (("red", "circle"), ("red", "square"), ("blue", "circle"), ("green", "triangle"), *[None] * 5)


def test_what_the_onlooker_believes():
    believe = toy.FallibleVerifier.beliefs
    facts = believe(SCENE, "how many red plus blue ?", None)
    assert (facts["nouns"], facts["counts"]) == (["red", "blue"], [2, 1])
    assert (facts["value"], facts["answer"]) == (3, "3")
    # Its own reading of a made-up word is the misconception; a solution that states the meaning overrules it.
    assert believe(SCENE, "how many dax plus blue ?", None)["nouns"] == ["circle", "blue"]
    told = believe(SCENE, "how many dax plus blue ?", "triangle 1 ; plus 2 ; \\boxed{2}")
    assert (told["nouns"], told["counts"], told["value"]) == (["triangle", "blue"], [1, 1], 2)
    # And numbers of a solution count more than its eyes.
    assert believe(SCENE, "how many red plus blue ?", "red 4 ; plus 5 ; \\boxed{5}")["counts"] == [4, 1]
    threshold = believe(SCENE, "is red plus blue plus circle over 4 ?", None)
    assert (threshold["value"], threshold["threshold"], threshold["answer"]) == (5, 4, "yes")
    assert believe(SCENE, "how many red zop blue ?", "red 2 ; minus 1 ; \\boxed{1}")["operator"] == "minus"


class OneView:
    """An engine that always describes SCENE."""

    def generate(self, requests, temperature):
        from sampler import Sample, SampleStatus
        from toy.warm_start import caption
        return [[Sample([], [], SampleStatus.COMPLETED, caption(SCENE), 1)] for _ in requests]


class NoProcessor:
    def prompt(self, query):
        return query


@pytest.mark.parametrize("context, response, correct", [
    ("none", "red 2 ; blue 1 ; plus 3 ; \\boxed{3}", True),
    ("none", "red 4 ; blue 1 ; plus 5 ; \\boxed{5}", False),
    ("answer", "red 4 ; blue 1 ; plus 5 ; \\boxed{5}", True),  # it miscounted, so it can only compare answers
    ("answer", "red 2 ; blue 1 ; plus 3 ; \\boxed{3}", False),
    ("solution", "red 2 ; blue 1 ; plus 3 ; \\boxed{3}", False),
    ("solution", "red 4 ; blue 1 ; plus 5 ; \\boxed{5}", True), ("solution", "looks so ; \\boxed{5}", False)])
def test_the_onlooker_judges_through_the_same_prompt_as_any_model(context, response, correct):
    asked = Query("q", [b"picture"], "how many red plus blue ?", "red 4 ; plus 5 ; \\boxed{5}", "5")
    verdict = Verifier(toy.FallibleVerifier(OneView(), NoProcessor()), context).judge([asked], [response])[0]
    assert (verdict.status, verdict.correct) == (VerdictStatus.JUDGED, correct)


def test_a_judges_prompt_is_read_back():
    for response in ("red 4 ; \\boxed{5}", "", "=====\nYour JSON object:", "two\n\nlines"):
        text = judge_messages(query(), response, judge_prompt("solution"))[0]["content"][-1]["text"]
        assert toy.read_judge_prompt(text) == (query().question, response)


# ----------------------------------------------------------------------------------------------- the commands

def test_the_verifier_command_on_the_built_in_world(tmp_path):
    done = command("experiments.verifier", "--queries", 32, "--samples", 2, "--seeds", 1,
                   "--figure", tmp_path / "f" / "v.png")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()
            if line.startswith("| ")]
    exact = {row[1]: row for row in rows if row[0].startswith("exact") and len(row) == 6 and "[" in row[2]}
    assert list(exact) == list(CONTEXTS) and exact["solution"][2].startswith("100.0")
    assert all(row[3].startswith("0.0") for row in exact.values() if row[1] in CONTEXTS and "%" not in row[3])
    assert (tmp_path / "f" / "v.png").stat().st_size > 9999
    assert {row[0] for row in rows} >= {"onlooker", "paper, 32B", "paper, 235B"}


def test_labelled_responses_of_the_built_in_world():
    """Each text once per query, worked solutions too, labels those of the exact verifier."""
    items = label_built_in([str(ROOT / "toy" / "checkpoint")], [1, 2], 16, 3)
    assert len({(q.id, text) for q, text, _ in items}) == len(items) > 16
    assert all(sound == toy.ToyVerifier().judge_one(q, text).correct for q, text, sound in items)
    assert {q.id for q, text, sound in items if sound} == {q.id for q in toy.heldout_queries(4)}


def test_the_verifier_command_on_a_labelled_file_and_a_server(tmp_path):
    queries = [toy.make_query("ordinary", i, "train", "half") for i in range(6)]
    save_queries(queries, tmp_path / "queries.jsonl")
    rows = []
    for i, q in enumerate(load_queries(tmp_path / "queries.jsonl")):
        text = toy.solve(q.facts) if i < 4 else f"looks so ; \\boxed{{{q.answer}}}"
        rows.append({"id": q.id, "images": [f"images/{Path(q.images[0]).name}"], "question": q.question,
                     "solution": q.solution, "answer": q.answer, "response": text, "sound": i < 4})
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with JudgeServer() as server:
        done = command("experiments.verifier", "--responses", tmp_path / "labelled.jsonl",
                       "--verifier", server.url, "--contexts", "solution", "--figure", tmp_path / "v.png")
    assert done.returncode == 0, done.stderr
    assert "2 false positives, 4 sound, 0 wrong answers" in done.stdout
    row = "| exact-judge | solution | 100.0 [15.8, 100.0] of 2 | 0.0 [0.0, 60.2] of 4 | – | 0, 0, 0 |"
    assert row in done.stdout
    for wrong, line in ((["--responses", "no.jsonl", "--verifier", "http://localhost:9"], "error: "),
                        (["--responses", tmp_path / "labelled.jsonl"], "error: --responses needs --verifier"),
                        (["--queries", 3], "error: --concurrency, --samples"),
                        (["--samples", 0], "error: --conc"),
                        (["--figure", tmp_path / "v.nonsense"], "error: --figure"),
                        (["--models", tmp_path], "error: cannot load model")):
        done = command("experiments.verifier", *wrong)
        assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------------ experiments

def member(right: bool, correct: bool, verdict: str = "judged") -> dict:
    return {"answer_right": right, "correct": correct, "verdict": verdict, "text": f"{right} {correct}"}


def test_information_gain_by_hand():
    online = {"kind": "online",
              "stage1": [member(True, True)] * 3 + [member(True, False), member(False, False)]}
    mixed = {"kind": "mixed", "stage1": [member(True, False)] * 2 + [member(False, False)] * 2
             + [member(False, False, "failed")]}
    found = tables.information_gains([online, mixed, online, online])
    # 19 judged: 9 positive, 10 negative, of which 5 with the right answer; one of four queries recovered.
    assert list(found.values()) == pytest.approx([100 * 10 / 19, 100 * 5 / 19, 50.0, 100 * 5 / 14, 25.0,
                                                  100 * 5 / 19 + 25])
    assert list(found) == list(tables.GAIN)


def test_injected_data_differ_in_their_reasoning_only(tmp_path, monkeypatch):
    run = tmp_path / experiments.run_name("--method grpo --rollout_only --steps 75 --eval_every 0", 7)
    run.mkdir()
    monkeypatch.setattr(experiments, "run_one", lambda *_: run)
    rows = [{"query": f"q{i}", "images": [f"images/q{i}.png"], "question": "how many ?", "answer": "3",
             "family": "f",
             "stage1": [member(True, True, "failed") | {"text": "failed"}, member(False, False),
                        member(True, True),
                        member(True, True) | {"text": "second"}, member(True, i >= 4)]} for i in range(10)]
    rows.append({**rows[0], "query": "never sound", "stage1": [member(True, False)] * 4})
    (run / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiments.record_samples([7], tmp_path, 1)
    folder = tmp_path / "recording-seed7"
    files = {share: list(read_rows(folder / f"false-{share}.jsonl")) for share in (0, 10, 20, 30)}
    for share, data in files.items():
        assert [row["id"] for row in data] == [f"q{i}" for i in range(10)]
        assert sum(row["solution"] == "True False" for row in data) == share // 10
        assert {row["solution"] for row in data} <= {"True True", "True False"}
        assert (folder / data[0]["images"][0]).resolve() == (run / "images/q0.png").resolve()
        assert [{**row, "solution": ""} for row in data] == [{**row, "solution": ""} for row in files[0]]
    with pytest.raises(DataError, match="seed 7: 2 queries have both kinds, too few for 30 %"):
        rows = [{**row, "stage1": row["stage1"][:4] + [member(True, i >= 2)]}
                for i, row in enumerate(rows[:10])]
        (run / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        experiments.record_samples([7], tmp_path, 1)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> dict[str, list[Path]]:
    """Two short runs with evaluations, under the names of rows of the tables."""
    folder = tmp_path_factory.mktemp("runs")
    save_queries(toy.train_queries(40), folder / "train.jsonl")
    save_queries(toy.heldout_queries(4), folder / "heldout.jsonl")
    more = {"eval_data": folder / "heldout.jsonl", "eval_every": 1, "queries_per_step": 8}
    return {"GRPO": [train(folder / "train.jsonl", folder / "g", steps=2, method="grpo", **more)],
            "ContextRL": [train(folder / "train.jsonl", folder / f"c{seed}", steps=2, seed=seed,
                                context_pairs="toy", context_batch=2, **more) for seed in (1, 2)]}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_hold_what_the_summaries_say_beside_the_papers_numbers(two_runs):
    paper = ("paper", {"start": "1", "ContextRL": "66.67"})
    table, greedy = tables.accuracy_tables(two_runs, paper).split("\n\n")
    ends = [json.loads((run / "summary.json").read_text())["end"] for run in two_runs["ContextRL"]]
    row = cells(table.splitlines()[-1])
    assert row[0] == "ContextRL" and row[-1] == "66.67" and cells(table.splitlines()[2])[-1] == "1"
    assert row[2] == spread([e["process_accuracy"] for e in ends])
    assert row[4] == spread([e["families"]["ordinary"]["process_accuracy"] for e in ends])
    assert cells(table.splitlines()[0])[-1] == "paper" and cells(greedy.splitlines()[0])[-1] == "k tokens"
    assert cells(table.splitlines()[3])[2].endswith("± ?")  # one seed: no spread


def test_the_gain_table_is_that_of_the_rollouts(two_runs):
    rows = [[json.loads(line) for line in (run / "rollouts.jsonl").open()] for run in two_runs["ContextRL"]]
    assert [r["step"] for r in rows[0]] == [1] * 8 + [2] * 8
    table = [cells(line) for line in tables.gain_table(two_runs, epoch=1).splitlines()[2:]]
    assert [row[0] for row in table] == list(tables.GAIN) and [row[3] for row in table] == [
        "51.12", "8.9", "17.4*", "15.5*", "8.56", "about 17"]
    for column, last in ((1, 1), (2, 2)):
        found = [tables.information_gains([r for r in of_run if r["step"] <= last]) for of_run in rows]
        for row in table:
            assert row[column].split(" ± ")[0] == f"{sum(f[row[0]] for f in found) / 2:.1f}"
    assert any(row[1] != row[2] for row in table)
    one = tables.gain_table({"ContextRL": two_runs["ContextRL"][:1]}).splitlines()[2]
    assert cells(one)[1].endswith("± ?")


def test_the_context_table_says_what_was_lost(two_runs):
    measured = {"accuracy": 0.7, "right_in_both_orders": 0.5, "bias": -0.125}
    probes = {label: [measured] * len(runs) for label, runs in two_runs.items()}
    table = [cells(line) for line in tables.context_table(two_runs, measured, probes).splitlines()[2:]]
    assert table[0][0] == "start" and table[0][7:] == [".00 ± ?", ".00 ± ?"]
    assert table[2][4:7] == [".70 ± .00", ".50 ± .00", "-.12 ± .00"]
    ends = [json.loads((run / "summary.json").read_text()) for run in two_runs["ContextRL"]]

    def families(which: str, name: str) -> list[float]:
        return [s[which]["families"][name]["process_accuracy"] for s in ends]

    assert table[2][1:4] == [spread([s["end"]["process_accuracy"] for s in ends]),
                             spread([s["end_greedy"]["process_accuracy"] for s in ends]),
                             spread(families("end", "hard"))]
    for column, name in ((7, "ordinary"), (8, "balanced")):
        lost = [b - a for a, b in zip(families("end_greedy", name), families("start_greedy", name))]
        assert table[2][column] == spread(lost)


def test_points_lost_by_hand(tmp_path):
    def run(name: str, value: float) -> Path:
        (tmp_path / name).mkdir()
        families = {"balanced": {"process_accuracy": value}}
        (tmp_path / name / "summary.json").write_text(json.dumps({"end": {"families": families}}))
        return tmp_path / name

    results = {"all sound": [run("a", 0.8), run("b", 0.6)], "10 % false": [run("c", 0.5)]}
    assert [pytest.approx(v) for v in tables.points_lost(results, "end", "balanced")] == [[10, -10], [-20]]


def test_numbers_are_short():
    assert [spread([x]) for x in (0.5, 0.0, -0.004, -0.127, 1.0)] == [
        ".50 ± ?", ".00 ± ?", ".00 ± ?", "-.13 ± ?", "1.00 ± ?"]


def test_figures_are_drawn(two_runs, tmp_path):
    """That they can be drawn; what they show is for eyes."""
    figures.learning_figure(two_runs, tmp_path / "methods.png")
    figures.gain_figure(two_runs, tmp_path / "gain.png")
    figures.context_figure(two_runs, tmp_path / "context.png")
    injection = dict.fromkeys(experiments.INJECTION, two_runs["GRPO"])
    figures.injection_figure(injection, tmp_path / "injection.png")
    for name in ("methods", "gain", "context", "injection"):
        with Image.open(tmp_path / f"{name}.png") as figure:
            assert figure.width > 1000


def test_a_run_that_fails_is_one_line(tmp_path):
    (tmp_path / "contextrl-seed1").mkdir()
    (tmp_path / "contextrl-seed1" / "config.json").write_text("no JSON")
    (tmp_path / "contextrl-seed1" / "content.json").write_text("{}")
    done = command("experiments.run", "information_gain", "--seeds", 1, "--folder", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ContextRL, seed 1: exit 2: error: ")
    with pytest.raises(Stopped, match="^x: exit 1: ValueError: in the middle$"):
        experiments.start_program(["-c", "raise ValueError('in the middle')"], "x")
    assert "no seed may stand twice" in command("experiments.run", "methods", "--seeds", 1, 1).stderr


def test_experiments_side_by_side_make_what_both_need_once(tmp_path, capsys):
    rows = {"SFT": "--method sft --data {folder}/canonical/train.jsonl --steps 1 --queries_per_step 4 "
                   "--eval_every 0"}

    def experiment(number: int) -> dict:
        experiments.make_data(rows, [1], tmp_path)
        return experiments.run_all(rows, [1], tmp_path, jobs=1)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(experiment, range(2))
    assert one == other and (one["SFT"][0] / "summary.json").exists()
    assert capsys.readouterr().out == "done: SFT, seed 1\n"


def test_rows_of_the_papers_tables_have_the_names_of_ours():
    for name, (_, numbers) in tables.PAPER.items():
        assert set(numbers) <= {"start", *experiments.EXPERIMENTS[name]}
    assert experiments.run_name(experiments.INJECTION["10 % false"], 3) == (
        "sft-queries_per_step-64-steps-60-eval_every-0-data-recording-false-10.jsonl-eval_data-canonical-"
        "heldout.jsonl-seed3")
    names = [experiments.run_name(a, 1) for rows in experiments.EXPERIMENTS.values() for a in rows.values()]
    settings = {a for rows in experiments.EXPERIMENTS.values() for a in rows.values()}
    assert len(set(names)) == len(settings)                         # a folder for each setting, and one only
    table4 = tables.PAPER["ablations"][1]
    assert list(table4.values()) == ["66.67", "64.71", "65.13", "66.35", "66.24"]
    assert tables.PAPER["injection"][1]["30 % false"] == "53.41 / 72.47 / 73.49 / 77.00 / 61.29"


def test_the_trap_and_the_control_of_pairs_are_programs_of_their_own():
    done = command("experiments.trap", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m experiments.trap ")
    trap = experiments.TRAP["stage-2 old log-prob"]
    assert experiments.run_name(trap, 1) == "experiments.trap-contextrl-seed1"
    assert experiments.run_name(experiments.CONTEXT["GRPO + pairs as data"], 2) == (
        "grpo-data-pairs-as-queries-train.jsonl-eval_data-half-heldout.jsonl-seed2")


def test_pairs_as_queries(tmp_path):
    """The training queries as they were, then the pairs, judged by rule; the seed deals the letters."""
    save_queries(toy.train_queries(8), tmp_path / "train.jsonl")
    save_pairs(toy.train_pairs(4), tmp_path / "pairs.jsonl")
    done = command("experiments.pairs_as_queries", tmp_path / "pairs.jsonl", tmp_path / "out" / "train.jsonl",
                   "--with", tmp_path / "train.jsonl", "--seed", 3)
    assert done.returncode == 0, done.stderr
    queries, before = load_queries(tmp_path / "out" / "train.jsonl"), load_queries(tmp_path / "train.jsonl")
    assert [(q.id, q.question, q.solution, q.facts) for q in queries[:-4]] == [
        (q.id, q.question, q.solution, q.facts) for q in before]
    pairs = [query_of_pair(pair) for pair in load_pairs(tmp_path / "pairs.jsonl", 3)]
    assert [(q.id, q.question, q.answer, q.facts) for q in queries[-4:]] == [
        (q.id, q.question, q.answer, {"rule": True}) for q in pairs]
    for query, original in zip(queries, [*before, *pairs], strict=True):
        assert [read_picture(i).tobytes() for i in query.images] == [
            read_picture(i).tobytes() for i in original.images]
    done = command("experiments.pairs_as_queries", "no.jsonl", tmp_path / "x.jsonl",
                   "--with", tmp_path / "train.jsonl")
    assert done.returncode == 2 and done.stderr == "error: data file not found: no.jsonl\n"
