"""benchmarks/: worked examples of every metric and rule, and how data is read.

Guards against: numbers that are grouped wrongly, rules that drift from what they say, a column that is
missing and nobody notices.
"""

import base64
import io
import json
import sys

import datasets
import numpy as np
import pytest
from benchmark_rows import (
    ROWS,
    SIZES,
    base64_picture,
    charxiv_rq,
    dynamath,
    item_of,
    mmstar,
    png,
    wemath,
    write_data,
)
from PIL import Image

from benchmarks.aggregate import interval, summary, value
from benchmarks.items import Score, load_items, load_rows
from benchmarks.judging import read_judgement
from benchmarks.table import BENCHMARKS, PAPER_AVERAGES, PAPER_MODELS, averages
from benchmarks.wording import LETTER, lettered, prompt_templates
from data import DataError
from tools.tables import image_bytes


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")


def items_of(name: str, rows: list[dict]) -> list:
    return load_items(BENCHMARKS[name], [row | {"_where": "here"} for row in rows], limit=len(rows))


def scored(name: str, item, response: str, harness: str = "ours"):
    return BENCHMARKS[name].score(item, response, harness)


def record(right, unit=None, label="", **keys) -> dict:
    record.count = getattr(record, "count", 0) + 1
    return {"unit": unit or f"u{record.count}", "right": right, "label": label, "keys": keys}


def numbers(name: str, records: list[dict]) -> dict[str, float]:
    return {k: value(parts) for k, parts in BENCHMARKS[name].numbers(records).items()}


# ----------------------------------------------------------------------------- worked examples of the metrics

def test_simplevqa_three_classes():
    labels = ["correct"] * 5 + ["incorrect"] * 3 + ["not attempted"] * 2
    found = numbers("simplevqa", [record(float(v == "correct"), label=v, language="EN") for v in labels])
    assert found["correct"] == 50.0 and found["attempted accuracy"] == 62.5 and round(found["F1"], 1) == 55.6
    # a judge that failed, by the harness's rule: in N, in no class
    found = numbers("simplevqa", [record(1.0, language="EN"), record(0.0, label="failed", language="EN")])
    assert found["correct"] == 50.0 and found["attempted accuracy"] == 100.0


def test_mmstar_micro_and_macro():
    rights = [("X", 1), ("X", 1), ("Y", 1), ("Y", 0), ("Y", 0), ("Y", 0)]
    found = numbers("mmstar", [record(float(r), category="c", l2_category=x) for x, r in rights])
    assert found["accuracy"] == 50.0 and found["mean of l2 categories"] == 62.5


def test_hallusionbench_by_question_figure_and_set():
    def rows(category, rights):
        return [record(float(r), unit=category, category=category, subcategory="chart",
                       set_id="0", figure_id=f,
                       question_id=q) for f, q, r in rights]
    set_ = [("1", "0", 1), ("1", "1", 0), ("2", "0", 1), ("2", "1", 1)]
    found = numbers("hallusionbench", rows("VD", set_))
    assert (found["aAcc"], found["fAcc"], found["qAcc"]) == (75.0, 50.0, 50.0)
    assert round(found["mean of the three"], 2) == 58.33
    # the same ids in the other category are other groups
    found = numbers("hallusionbench", rows("VD", set_) + rows("VS", [(f, q, 1) for f, q, _ in set_]))
    assert (found["aAcc"], found["fAcc"], found["qAcc"]) == (87.5, 75.0, 75.0)


def test_hrbench_is_the_mean_over_rotations():
    rights = {"single": (1, 1, 1, 0), "cross": (1, 0, 1, 0)}
    found = numbers("hrbench8k", [record(float(r), unit=c, category=c, cycle=str(i))
                                  for c, rs in rights.items() for i, r in enumerate(rs)])
    assert found == {"all": 62.5, "single": 75.0, "cross": 50.0}


def test_mme_realworld_letters():
    item = item_of("mme_realworld_lite", 3)
    assert item.gold == "D" and item.options["E"] == "not in the image"
    replies = {"The best answer is: D": (1, 1), "(d)": (1, 1), "Based on the map, D": (0, 1), "": (0, 0)}
    for reply, (harness, ours) in replies.items():
        assert scored("mme_realworld_lite", item, reply, "vlmevalkit").right == harness, reply
        assert scored("mme_realworld_lite", item, reply).right == ours, reply
    assert scored("mme_realworld_lite", item_of("mme_realworld_lite", 4), "E", "vlmevalkit").right == 1
    # an empty reply is A to the harness; with us it has no answer
    first = item_of("mme_realworld_lite", 0)
    assert scored("mme_realworld_lite", first, "", "vlmevalkit").right == 1
    assert scored("mme_realworld_lite", first, "") == Score("", 0.0)


def test_mathverse_final_answers():
    """Reply P: steps 1, 1, 0, wrong answer; reply Q: steps 1, 0, 0, right answer.  Only the answer counts:
    50."""
    item = item_of("mathverse", 5)
    p, q = (scored("mathverse", item, f"step 1 . step 2 . step 3 . \\boxed{{{x}}}") for x in ("4", "3"))
    assert (p.right, q.right) == (0.0, 1.0)
    assert scored("mathverse", item, "\\boxed{\\sqrt{9.1}}").right is None         # a judge may find it equal
    assert numbers("mathverse", [record(p.right, version="Vision Only"),
                                 record(q.right, version="Text Lite")]) == {
        "accuracy": 50.0, "Vision Only": 0.0, "Text Lite": 100.0}
    for gold, kind in [("(B)", "letter"), ("False", "free"), ("C\nD", "free")]:
        assert item_of("mathverse", 0, answer=gold).kind == kind
    assert scored("mathverse", item_of("mathverse", 0), "so \\boxed{C}") == Score("C", 0.0)
    assert scored("mathverse", item_of("mathverse", 0), "so \\boxed{50°}").right == 1.0
    # always a judge
    assert scored("mathverse", item_of("mathverse", 0), "so \\boxed{B}", "vlmevalkit").right is None
    # Vision Only: the text is the instruction alone
    assert item_of("mathverse", 4).prompt.startswith("Please first")


def test_mathvista_kinds():
    choice, integer, number, list_ = (item_of("mathvista", i) for i in range(4))
    assert (choice.gold, choice.options) == ("B", {"A": "red", "B": "blue"})
    for item, reply, right in [
            (choice, "\\boxed{B}", 1), (choice, "the answer is blue", 1), (choice, "\\boxed{A}", 0),
            (integer, "\\boxed{3}", 1), (integer, "\\boxed{3.0}", 1), (integer, "\\boxed{3.4}", 0),
            (number, "\\boxed{1.2504}", 1), (number, "\\boxed{1.26}", 0), (list_, "\\boxed{[1, 2]}", 1),
            (list_, "\\boxed{[2, 1]}", 0), (integer, "", 0),
            (integer, "I see many of them in this nice picture", None)]:
        assert scored("mathvista", item, reply).right == right, reply
    assert item_of("mathvista", 1, precision=float("nan")).gold == "3"
    as_text = item_of("mathvista", 0, choices="['0.5', '2']", answer="1/2")
    assert (as_text.gold, as_text.options) == ("A", {"A": "0.5", "B": "2"})
    # The harness compares the wrong variable for texts and lists, and takes a number only if it is the whole
    # reply.
    assert scored("mathvista", list_, "[1, 2]", "vlmevalkit").right == 0.0
    assert scored("mathvista", integer, "3", "vlmevalkit").right == 1.0
    assert scored("mathvista", integer, "The answer is 3", "vlmevalkit").right is None


def test_logicvista_sets_of_letters():
    item = item_of("logicvista", 1)
    for reply, right in {"C and A": 1.0, "A": 0.0, "A, C, D": 0.0, "\\boxed{A, C}": 1.0, "": 0.0}.items():
        assert scored("logicvista", item, reply).right == right, reply
    assert scored("logicvista", item, "C and A", "vlmevalkit").right is None
    assert scored("logicvista", item_of("logicvista", answer="3"), "So \\boxed{3}").right == 1.0


GROUPS = [(1, 1, 1), (1, 1, 0), (1, 0, 0), (1, 0, 1)]                  # s1, s2, m: CM, IG, IK, RM (loose: CM)


def test_wemath_four_dimensions():
    records = [record(float(r), unit=str(i), key=key) for i, rights in enumerate(GROUPS)
               for key, r in zip(("2steps_1", "2steps_2", "2steps_multi"), rights)]
    found = numbers("wemath", records)
    assert found["strict"] == 37.5 and found["loose"] == 62.5 and round(found["rows"], 1) == 66.7
    assert found["rote memorisation rate (strict)"] == 50.0 and found["rote memorisation rate (loose)"] == 0.0
    assert [found[k]
            for k in ("complete mastery (strict)", "complete mastery (loose)", "inadequate generalisation",
                               "insufficient knowledge")] == [25.0, 50.0, 25.0, 25.0]
    assert found["S1"] == 75.0 and found["S2"] == 50.0 and found["S3"] is None


def test_charxiv_judge_and_rule():
    texts, _, in_chart, counted = (item_of("charxiv_rq", i) for i in range(4))
    assert in_chart.keys["type"] == "number in chart" and in_chart.keys["source"] == "3"
    assert scored("charxiv_rq", in_chart, "\\boxed{94.2}") == Score("94.2", 0.0)
    assert scored("charxiv_rq", in_chart, "\\boxed{94}").right == 1.0
    assert scored("charxiv_rq", texts, "…so it is Joint CNN").right is None            # the judge's
    assert scored("charxiv_rq", in_chart, "about 94.2").right is None
    assert scored("charxiv_rq", counted, "two points").right == 1.0
    assert scored("charxiv_rq", in_chart, "").right == 0.0
    kinds = [("number in chart", "chart", 1), ("text in chart", "chart", 0), ("text in chart", "chart", 0)]
    found = numbers("charxiv_rq",
                    [record(float(r), where=w, type=t, source="3", subject="cs") for t, w, r in kinds])
    assert found["chart"] == 50.0 and round(found["all"], 1) == 33.3
    # Official: a judge that failed counts as 0, and never as the -1 that one harness averages in (25).
    kinds = dict(where="chart", type="text in chart", source="3", subject="cs")
    assert numbers("charxiv_rq", [record(r, **kinds) for r in (1.0, 0.0, 1.0, 0.0)])["all"] == 50.0
    for key in ("extracted_answer", "extract_answer"):
        assert read_judgement(f'{{"{key}": "94", "score": 1}}') == (1.0, "94", "")
    assert "exact integer" in counted.prompt and "94" not in in_chart.prompt
    assert "2 decimal places" in item_of("charxiv_rq", 3, reasoning_a="0.25").prompt


def test_dynamath_average_and_worst_case():
    records = [record(float(r), unit=unit, subject="s", level="l")
               for unit, rights in (("a", (1, 1, 1)), ("b", (1, 0, 1))) for r in rights]
    found = numbers("dynamath", records[::-1])                         # by seed id, not by order
    assert round(found["average"], 1) == 83.3 and found["worst case"] == 50.0


def test_dynamath_rules():
    number, choice, text = (item_of("dynamath", i) for i in (0, 10, 20))
    for item, reply, right in [(number, "\\boxed{3.1425}", 1), (number, "\\boxed{3.144}", 0),
                               (choice, "B", 1),
                               (number, "\\boxed{\\pi}", 1), (choice, "\\boxed{B}", 1),
                               (choice, "\\boxed{A}", 0),
                               (text, "\\boxed{Odd}", 1), (text, "\\boxed{even}", None), (number, "", 0)]:
        assert scored("dynamath", item, reply).right == right, reply
    for item, answer, right in [(number, "3.1425 units", 1), (number, "1.0π", 1),
                                (text, "", 1), (text, "d", 1),
                                (text, "even", 0), (choice, "(b)", 1), (choice, "A or B", None)]:
        reply = "Sure. " + json.dumps({"solution": "s", "short answer": answer}, ensure_ascii=False)
        assert scored("dynamath", item, reply, "vlmevalkit").right == right, answer
    # Without JSON it reads the response itself, else its judge rewrites it.
    for item, reply, right in [(number, "3.142", 1), (number, "It is 3.142", None),
                               (choice, "So I took b", 1),
                               (text, "od", 1)]:
        assert scored("dynamath", item, reply, "vlmevalkit").right == right, reply
    for label, gold, kind in [("single answer", "7", "number"), ("int", "7", "number"),
                              ("text", "odd", "text"),
                              ("Multiple Choice", "B", "letter")]:
        assert item_of("dynamath", 0, answer_type=label, ground_truth=gold).kind == kind


def test_harness_letters_differ():
    item = item_of("mmstar", 2)                                        # gold C
    assert item.options["B"] == "two"
    assert scored("mmstar", item, "the answer is circular", "vlmevalkit").right == 1.0
    assert scored("mmstar", item, "the answer is circular").right == 0.0
    assert scored("mmstar", item, "I cannot tell from what is here to see", "vlmevalkit").right is None
    assert scored("wemath", item_of("wemath", 0), "<Answer>: C", "vlmevalkit").right == 1.0
    assert scored("wemath", item_of("wemath", 0), "so \\boxed{C}", "vlmevalkit").right == 0.0
    assert scored("wemath", item_of("wemath", 0), "so \\boxed{C}").right == 1.0
    assert scored("hallusionbench", item_of("hallusionbench", 1), "Yes, there is no doubt",
                  "vlmevalkit").right == 0.0
    assert scored("hallusionbench", item_of("hallusionbench", 1), "Yes, there is no doubt").right == 1.0


# ---------------------------------------------------------------------------------------- intervals, averages

def test_interval_is_seeded_and_holds_the_score():
    random = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        records = [record(float(random.random() < share), category="c", l2_category=str(i % 3))
                   for i in range(200)]
        for parts in BENCHMARKS["mmstar"].numbers(records).values():
            low, high = interval(parts)
            assert low < value(parts) < high
            assert (low, high) == interval(parts)
            assert 1.5 < (high - low) / (1.96 * np.sqrt(share * (1 - share) / 200) * 100) < 2.6


    assert len({interval(parts, seed) for seed in range(5)}) > 1


def test_interval_resamples_groups():
    """Ten rows that are always right or wrong together say as much as one: sqrt(10) times wider."""
    random = np.random.default_rng(0)
    rights = [float(r) for r in random.random(60) < 0.5]
    together = [record(r, unit=str(i), subject="s", level="l") for i, r in enumerate(rights)
                for _ in range(10)]
    apart = [r | {"unit": str(i)} for i, r in enumerate(together)]
    wide, narrow = (np.diff(interval(BENCHMARKS["dynamath"].numbers(rs)["average"]))[0]
                    for rs in (together, apart))
    assert 2.5 < wide / narrow < 4


def test_undecided_items_make_a_bracket():
    records = [record(r, version="Text Lite") for r in (1.0, 0.0, None, None)]
    found = summary(BENCHMARKS["mathverse"], records)["accuracy"]
    assert (found["low"], found["high"]) == (25.0, 75.0)
    assert found["interval"][0] <= 25.0 and found["interval"][1] >= 75.0


def test_averages_are_the_papers():
    """The paper's own columns give the paper's own averages; without a benchmark none is formed."""
    for i, _ in enumerate(PAPER_MODELS):
        columns = {b.name: {c: {"low": v[i], "high": v[i]} for c, v in b.paper.items()}
                   for b in BENCHMARKS.values()}
        found = averages(columns)
        for area, paper in PAPER_AVERAGES.items():
            assert abs(found[area]["low"] - paper[i]) < 0.011
        assert sum(len(b.paper) for b in BENCHMARKS.values()) == 20
    found = averages({name: c for name, c in columns.items() if name != "mmstar"})
    assert found["perception"] is None and found["reasoning"]


# ------------------------------------------------------------------------------------------- reading the data

def test_options_in_texts():
    for text in ("Choices:\nA:40°\nB:50°", "(A) 40° (B) 50°", "A. 40°；B．50°", "A) 40°, B) 50°"):
        assert lettered(text) == {"A": "40°", "B": "50°"}, text
    # C is not read
    assert list(item_of("mmstar", 0, question="A. x B. y ?", answer="C").options) == list("ABCD")
    odd = item_of("wemath", 0, option="1) one 2) two")
    assert "1) one 2) two" in odd.prompt and scored("wemath", odd, "\\boxed{C}").right == 1.0
    assert lettered("Select from A, B and C. In figure A the car is red.") == {}
    assert list(lettered(
        "A. a; B. b; C. c; D. d; E. e; F. f; G. g; H. No correct answer")) == list("ABCDEFGH")


def test_pictures_in_all_forms(tmp_path):
    raw = png()
    (tmp_path / "p.png").write_bytes(raw)
    url = "data:image/png;base64," + base64.b64encode(raw).decode()
    for form in (raw, {"bytes": raw, "path": None}, {"bytes": None, "path": str(tmp_path / "p.png")},
                 base64.b64encode(raw).decode(), base64.encodebytes(raw).decode(), url, "p.png"):
        assert image_bytes(form, str(tmp_path)) == raw
    with Image.open(io.BytesIO(image_bytes(Image.open(io.BytesIO(raw))))) as picture_:
        assert picture_.mode == "RGB" and picture_.size == (64, 48)
    for bad in (None, b"", b"no picture", "q", "/" + "x" * 900, {"bytes": None, "path": None}, 5):
        with pytest.raises(DataError, match="no picture"):
            image_bytes(bad)


@pytest.mark.parametrize("name, changes, gold", [
    ("mmstar", {"answer": "b"}, "B"), ("mmstar", {"answer": "(B)"}, "B"), ("mmstar", {"answer": "E"}, None),
    ("hrbench8k", {"answer": "a."}, "A"), ("hrbench8k", {"answer": "one"}, None),
    ("mme_realworld_lite", {"answer": "(E)"}, "E"), ("mme_realworld_lite", {"answer": "F"}, None),
    ("mathverse", {"answer": "(b)"}, "B"), ("mathverse", {"answer": "F"}, "F"),
    ("mathverse", {"answer": "J"}, None),
    ("mathvista", {"answer": "blue."}, "B"), ("mathvista", {"answer": "green"}, None),
    ("logicvista", {"answer": "c, (A)"}, "A, C"), ("logicvista", {"answer": "A, K"}, None),
    ("logicvista", {"answer": "3"}, "3"), ("wemath", {"answer": "(c)"}, "C"),
    ("wemath", {"answer": "G"}, "G")])
def test_a_gold_answer_is_one_of_the_options(name, changes, gold):
    """Else it could never match, and every response would be wrong."""
    rows = [ROWS[name](i) | changes
            for i in range(SIZES[name])] if name in ("wemath",) else [ROWS[name](0) | changes]
    if gold:
        assert items_of(name, rows)[0].gold == gold
    else:
        with pytest.raises(DataError, match=f"row 0: .* '{changes['answer']}' is none of the options"):
            items_of(name, rows)


def test_files_that_cannot_be_meant(tmp_path):
    row = {k: v for k, v in mmstar(0).items() if k != "image"} | {"image": base64_picture(0)}
    (tmp_path / "mmstar").mkdir()
    for file in ("mmstar.jsonl", "mmstar/a.jsonl"):
        (tmp_path / file).write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"both .*mmstar.jsonl and .*mmstar/a.jsonl; which is meant"):
        load_rows(BENCHMARKS["mmstar"], tmp_path)
    (tmp_path / "mmstar/a.jsonl").unlink()
    (tmp_path / "mmstar.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(DataError, match="mmstar.jsonl.*: not a "):
        load_rows(BENCHMARKS["mmstar"], tmp_path)
    (tmp_path / "mmstar.jsonl").unlink()
    for i, index in enumerate((1, [1])):
        datasets.Dataset.from_list([row | {"index": index}]).to_parquet(tmp_path / f"mmstar-{i}.parquet")
    with pytest.raises(DataError, match="MMStar: its files have columns of different types"):
        load_rows(BENCHMARKS["mmstar"], tmp_path)


def test_variants_of_jsonl_files(tmp_path):
    for v in range(1, 11):
        row = {k: x for k, x in dynamath(v - 1).items()
               if k != "variant"} | {"decoded_image": base64_picture(0)}
        (tmp_path / f"dynamath_variant{v}.jsonl").write_text(json.dumps(row) + "\n")
    rows = load_rows(BENCHMARKS["dynamath"], tmp_path)
    assert len(load_items(BENCHMARKS["dynamath"], rows, limit=1)) == 10


def test_templates_read_no_picture(tmp_path):
    benchmark = BENCHMARKS["mmstar"]
    rows = load_rows(benchmark, write_data("mmstar", tmp_path))
    items = load_items(benchmark, rows, limit=4)
    read = []
    rows.set_transform(lambda part: read.extend(part) or part)
    assert prompt_templates(benchmark, items, rows, "ours") == ["{question}\n" + LETTER]
    assert "question" in read and "image" not in read


@pytest.mark.parametrize("name", ROWS)
def test_every_column_that_is_needed_is_named_when_missing(name, tmp_path):
    """Renamed, in JSONL (quick, all columns) and in parquet (one)."""
    benchmark = BENCHMARKS[name]
    row = {k: base64.b64encode(v["bytes"]).decode() if isinstance(v, dict) and "bytes" in v else v
           for k, v in ROWS[name](0).items()}
    for column in benchmark.columns:
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps({"renamed" if k == column else k: v for k, v in row.items()}) + "\n")
        with pytest.raises(DataError) as error:
            load_rows(benchmark, tmp_path)
        message = str(error.value)
        assert f"has no column '{column}'" in message and "renamed" in message and f"{file}:1" in message
        assert benchmark.title in message and "\n" not in message
    file.unlink()
    column = benchmark.columns[-1]
    write_data(name, tmp_path,
               change=lambda row: {"renamed" if k == column else k: v for k, v in row.items()})
    with pytest.raises(DataError, match=f"has no column '{column}'; it has .*renamed"):
        load_rows(benchmark, tmp_path)


def test_one_odd_reference_answer_among_many_is_named_and_kept(capsys):
    rows = [ROWS["mmstar"](i) | {"answer": "Q" if i == 7 else ROWS["mmstar"](i)["answer"]} for i in range(60)]
    assert len(items_of("mmstar", rows)) == 60
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("MMStar, row 7: the reference answer 'Q'") and line.endswith(
        "can only be scored wrong")


def test_incomplete_groups_are_refused(tmp_path):
    rows = [wemath(i) for i in range(7)]
    assert len(items_of("wemath", rows)) == 7
    with pytest.raises(DataError, match=r"group '2-0' has 2 of 3 members \(2steps_1, 2steps_multi\)"):
        items_of("wemath", [row for row in rows if row["key"] != "2steps_2"])
    with pytest.raises(DataError, match="2 of 525 groups; for a part of it use --limit"):
        load_items(BENCHMARKS["wemath"], rows)
    with pytest.raises(DataError, match="group '0' has 9 of 10 members"):
        items_of("dynamath", [dynamath(i) for i in range(9)])
    with pytest.raises(DataError, match="id '2-0/2steps_1' appears twice"):
        items_of("wemath", [wemath(0), wemath(0)])
    with pytest.raises(DataError, match="group 'x' has 1 of 0 members"):
        items_of("wemath", [wemath(0) | {"key": "steps", "ID": "x"}])
    assert [item.id for item in items_of("mmstar", [mmstar(0), mmstar(0)])] == ["0", "0 (2)"]
    with pytest.raises(DataError, match="row 0: no reference answer"):
        items_of("mmstar", [mmstar(0) | {"answer": None}])
    with pytest.raises(DataError, match="row 0: ValueError: reasoning_a_type must be 1, 2, 3 or 4, not '9'"):
        items_of("charxiv_rq", [charxiv_rq(0) | {"reasoning_a_type": 9}])
    assert len(load_items(BENCHMARKS["dynamath"], [dynamath(i) for i in range(20)], limit=1)) == 10


def test_files_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"MMStar: no mmstar\*.parquet or mmstar\*.jsonl in"):
        load_rows(BENCHMARKS["mmstar"], tmp_path)
    with pytest.raises(DataError, match=r"MMStar: cannot load Lin-Chen/MMStar .*--data_dir"):
        load_rows(BENCHMARKS["mmstar"])                     # HF_HUB_OFFLINE
    (tmp_path / "mmstar.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="mmstar.parquet: cannot be read as parquet"):
        load_rows(BENCHMARKS["mmstar"], tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="mmstar.parquet needs: pip install datasets"):
        load_rows(BENCHMARKS["mmstar"], tmp_path)
