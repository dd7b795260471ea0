"""Files of context pairs: bad rows, the released loaders' shapes, parquet, the hub, written and read again.

Guards against: bad pairs that pass or stop everything, pictures that are decoded and encoded on the way,
anything left out without being counted.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import command, write
from hypothesis import given, settings, strategies as st

import toy
from context_pairs import pairs
from context_pairs.pairs import ContextPair, deal_letters, load_pairs, query_of_pair, save_pairs
from data import DataError

OURS = {"id": "p", "question": "how many ?", "answer": "3", "supporting": "0.png", "confounding": "1.png"}
RELEASED = {"problem": "<image><image> Which ? A. first B. second", "answer": "A",
            "images": ["0.png", "1.png"]}
AGENTIC = {"prompt": "A: did x. B: did y. Which ?", "correct_answer": "B"}
TEXT = OURS | {"kind": "text", "supporting": "did x", "confounding": "did y"}
BAD = {
    "both contexts are the same": [OURS | {"confounding": "0.png"}, OURS | {"confounding": "copy.png"},
                                   TEXT | {"confounding": " did\tx "},
                                   RELEASED | {"images": ["0.png", "copy.png"]}],
    "field 'answer' is not a letter A or B": [RELEASED | {"answer": "C"}, RELEASED | {"answer": None}],
    "field 'correct_answer' is not a letter A or B": [AGENTIC | {"correct_answer": ""}],
    "an image is missing": [RELEASED | {"images": ["0.png", None]},
                            RELEASED | {"images": ["0.png", {"bytes": None}]}],
    "cannot read image": [OURS | {"confounding": "none.png"}, OURS | {"supporting": "half.png"}],
    "1 images, a pair needs two": [RELEASED | {"images": ["0.png"]}],
    "not UTF-8 text": ['{"id": "\\ud800", "problem": "x"}'],
    "3 images and 2 places for them, a pair has two": [RELEASED | {"images": ["0.png", "1.png", "2.png"]}],
    "2 images and 1 places for them, a pair has two": [RELEASED | {"problem": "<image> Which ?"}],
    "field 'confounding' is missing or empty": [{k: v for k, v in OURS.items() if k != "confounding"}],
    "field 'question' is missing or empty": [OURS | {"question": " "}],
    "unknown field(s) letter": [OURS | {"letter": "A"}],
    "'kind' must be image or text": [OURS | {"kind": "video"}],
    "'prompt' needs the places <image> and <image>": [OURS | {"prompt": "which ? <image>"}],
    "'prompt' needs the places {A} and {B}": [TEXT | {"prompt": "{A} or {A} ?"}],
    "neither fields of a context pair": [{"question": "how many ?"}],
    "not a JSON object (Expecting": ["{half"], "a row must be a JSON object": ["[1]"],
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_pair_is_one_line_and_is_counted(folder, capsys, reason):
    good = OURS | {"id": "good"}
    file = write(folder / "pairs.jsonl", *BAD[reason], good)
    assert [p.id for p in load_pairs(file)] == ["good"]
    lines = capsys.readouterr().err.splitlines()
    n = len(BAD[reason])
    assert len(lines) == n + 1
    for number, line in enumerate(lines[:-1], start=1):
        assert line.startswith(f"skipped {file}:{number}: ") and reason in line
    assert lines[-1] == f"{n} bad rows and 0 ordinary ones skipped, 1 pairs read from {file}"
    with pytest.raises(DataError, match="no context pair in"):
        load_pairs(write(folder / "only_bad.jsonl", *BAD[reason]))


def test_rows_of_the_released_loaders(folder, capsys):
    """Ordinary rows are left out and counted; A names the first image; the agentic order stays as it is."""
    ordinary = {"problem": "<image> how many ?", "answer": "3", "images": ["0.png"]}
    # a letter, and no pair
    choice_ = ordinary | {"problem": "<image> Which angle ? A. 1 B. 2", "answer": "A"}
    file = write(folder / "mixed.jsonl", RELEASED, ordinary, RELEASED | {"answer": "B"},
                 ordinary | {"images": []},
                 AGENTIC | {"id": None}, "", OURS, choice_)
    found = {Path(p.id).name: p for p in load_pairs(file, seed=1)}
    assert "0 bad rows and 3 ordinary ones skipped, 4 pairs read" in capsys.readouterr().err
    said = RELEASED | {"problem": RELEASED["problem"] + "\nOutput A or B directly. "}
    query = query_of_pair(load_pairs(write(folder / "said.jsonl", said))[0])
    assert query.question.count("Output A or B directly.") == 1
    first, second = found["mixed.jsonl:1"], found["mixed.jsonl:3"]
    assert Path(first.supporting).name == "0.png" and Path(second.supporting).name == "1.png"
    assert query_of_pair(first).question == RELEASED["problem"] + "\nOutput A or B directly."
    agentic = found["mixed.jsonl:5"]
    assert agentic.letter == "B" and query_of_pair(agentic).question == AGENTIC["prompt"]
    assert Counter(p.letter for p in found.values() if p.kind != "prompt")["A"] in (1, 2)


def test_parquet_with_encoded_images(folder):
    import pyarrow
    from pyarrow.parquet import write_table

    rows = [RELEASED | {"images": [{"bytes": (folder / f"{i}.png").read_bytes(), "path": None} for i in two]}
            for two in ((0, 1), (1, 2), (0, 0))]
    write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    assert len(load_pairs(folder / "train.parquet")) == 2
    (folder / "parts").mkdir()
    (folder / "train.parquet").rename(folder / "parts" / "train-0.parquet")
    found = load_pairs(folder / "parts")
    assert [p.supporting for p in found] == [row["images"][0]["bytes"] for row in rows[:2]]
    (folder / "parts" / "train-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot read .*train-0.parquet"):
        load_pairs(folder / "parts")


def test_a_data_set_of_the_hub_is_streamed_with_encoded_images(folder, monkeypatch):
    """The true library with its own feature types; only the place is a local file."""
    import datasets

    features = datasets.Features({"problem": datasets.Value("string"), "answer": datasets.Value("string"),
                                  "images": datasets.List(datasets.Image())})
    files = [{"bytes": (folder / f"{i}.png").read_bytes(), "path": None} for i in range(3)]
    rows = [RELEASED | {"images": [files[i] for i in two]} for two in ((0, 1), (1, 2), (1, 1))]
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "hub.parquet")
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, streaming: load(
        "parquet", data_files=str(folder / "hub.parquet"), split=split, streaming=streaming,
        features=features))
    found = load_pairs("someone/pairs")
    assert [p.id for p in found] == ["someone/pairs:0", "someone/pairs:1"]
    assert found[0].supporting == (folder / "0.png").read_bytes()
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="cannot read someone/none from the hub"):
        load_pairs("someone/none")


def test_missing_files_are_one_line(folder):
    for source in (folder / "none.jsonl", folder / "none.parquet"):
        with pytest.raises(DataError, match="data file not found"):
            load_pairs(source)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no parquet or JSONL files"):
        load_pairs(folder / "empty")


def test_what_is_saved_is_read_again(folder):
    few = deal_letters(toy.train_pairs(1), seed=0)
    some = [few[0], ContextPair("t", "which ?", "red", "one", "two", "text", "{A} {B} ?")]
    save_pairs(some, folder / "out.jsonl")
    again = load_pairs(folder / "out.jsonl")
    assert [replace(p, letter="A", supporting="", confounding="") for p in again] == [
        replace(p, letter="A", supporting="", confounding="") for p in some]
    assert [Path(x).read_bytes() for x in (again[0].supporting, again[0].confounding)] == [
        few[0].supporting, few[0].confounding]


def test_files_in_one_folder_do_not_take_each_others_pictures(folder):
    """The ids of both files are the same; a picture of both is there once."""
    files = [(folder / f"{i}.png").read_bytes() for i in range(3)]
    save_pairs([ContextPair("p", "?", "1", files[0], files[1])], folder / "out" / "train.jsonl")
    save_pairs([ContextPair("p", "?", "2", files[2], files[0])], folder / "out" / "heldout.jsonl")
    for name, two in (("train", files[:2]), ("heldout", [files[2], files[0]])):
        pair, = load_pairs(folder / "out" / f"{name}.jsonl")
        assert [Path(image).read_bytes() for image in (pair.supporting, pair.confounding)] == two
    assert len(list((folder / "out" / "images").iterdir())) == 3


def test_the_program_says_what_it_takes():
    done = command("--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m context_pairs.pairs [-h] FILE")
    assert command().returncode == 2


@given(st.dictionaries(
    st.sampled_from(["id", "question", "answer", "supporting", "confounding", "kind", "prompt", "problem",
                     "images", "correct_answer"]),
    st.none() | st.text(max_size=5) | st.integers() | st.lists(st.none() | st.text(max_size=3))))
@settings(max_examples=300, deadline=None)
def test_any_row_is_a_pair_or_a_data_error(row):
    try:
        pair = pairs.pair_of_row(row, Path("/nowhere"), "here")
    except DataError as error:
        assert "\n" not in str(error)
    else:
        query_of_pair(pair)
