"""Data sets in the shape of FineVision: every turn is read or counted as bad, from files and from the hub.

Guards against: rows that are lost without a word, a damaged file that costs more than its own rows, a data
file that looks whole although its writer was interrupted.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ALONE, ROOT

from data import DataError, Query, load_queries
from recipe.finevision import finevision_turns, write_data
from toy.sample import write_subset


@pytest.fixture
def source(tmp_path, picture) -> Path:
    """Folder with two subsets of FineVision's shape and brackets in a name; some rows are bad."""
    def line(*texts, images=1) -> dict:
        return {"texts": [{"user": user, "assistant": assistant} for user, assistant in texts],
                "facts": ["{}"] * 9,
                "images": [{"bytes": picture(40, 32 + i), "path": "x.png"} for i in range(images)]}

    broken = line(("?", "The answer is 3."))
    broken["images"][0]["bytes"] = b"no picture"
    good = line(("<image>\nhow many ?", "red 3 ; \\boxed{3}"), ("and ?", "5."))
    write_subset(tmp_path / "fv" / "geo(a+b)", [good, line(), broken], ("assistant", "user"))
    write_subset(tmp_path / "fv" / "vqa", [line(("<image_1><image_2> same ?", "Yes."), images=2),
                                          line(("what ?", "nobody can say for sure what that may be"))])
    return tmp_path / "fv"


@pytest.fixture
def load(tmp_path):
    """-> load(source): queries of what the program writes."""
    def call(source, **more) -> list[Query]:
        call.number += 1
        return load_queries(write_data(str(source), tmp_path / f"out{call.number}", **more))
    call.number = 0
    return call


def test_parquet_of_finevisions_shape_is_read(source, load, picture, processor, capsys):
    first, second, two = load(source)
    assert (first.question, first.solution, first.answer, first.family) == (
        "how many ?", "red 3 ; \\boxed{3}", "3", "geo(a+b)")
    assert second.answer == "5" and second.images == first.images and second.id != first.id
    assert Path(first.images[0]).read_bytes() == picture(40, 32)                  # the very file, stored once
    assert two.answer == "Yes" and processor.prompt(two).ids.count(processor.image_id) == 2    # two pictures
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("3 bad rows skipped, 3 read from")
    for problem in (r"geo\(a\+b\)/train-00000-of-00001.parquet:1: no texts",
                    "parquet:2: cannot read image of 10 bytes",
                    "vqa/train-00000-of-00001.parquet:1: no final answer"):
        assert any(re.search(problem, line) for line in lines), problem
    assert [q.id for q in load(f"{source}:geo(a+b)")] == [first.id, second.id]
    assert len(load(source / "vqa")) == 1 and len(load(source / "vqa", limit=1)) == 1
    with pytest.raises(DataError, match="no parquet files in .*/none"):
        load(f"{source}:none")


def dots(**columns) -> dict:
    return {"texts": [{"user": "<image>\nhow many dots ?", "assistant": "There are two. The answer is 2."}],
            **columns}


def parquet(file: Path, *rows: dict) -> Path:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    write_table(Table.from_pylist(list(rows)), file)
    return file


def test_a_column_image_is_read_in_each_of_its_forms(tmp_path, load, picture):
    encoded = picture(40, 32)
    for i, value in enumerate(({"bytes": encoded, "path": None}, encoded, [{"bytes": encoded}], [encoded])):
        query, = load(parquet(tmp_path / f"{i}.parquet", dots(image=value)))
        assert [Path(image).read_bytes() for image in query.images] == [encoded]
    # With both columns, the one that holds the pictures counts.
    query, = load(parquet(tmp_path / "both.parquet", dots(images=[], image={"bytes": encoded})))
    assert len(query.images) == 1


NO_PICTURES = [                              # the columns beside the texts -> what the line names
    ({"picture": {"bytes": b"x", "path": "x.png"}}, "a picture in the column picture"),
    ({"image": {"bytes": None, "path": "x.png"}}, "a picture is not in the file"),
    ({"images": []}, "0 images, but 1 places for them in the text"),
    ({"score": 3}, "0 images, but 1 places for them in the text"),
    ({"image": b"no picture"}, "cannot read image of 10 bytes"),
]


@pytest.mark.parametrize("columns, told", NO_PICTURES, ids=[told for _, told in NO_PICTURES])
def test_a_row_does_not_lose_its_picture_in_silence(tmp_path, columns, told):
    with pytest.raises(DataError, match=f"no usable row in .*: all 1 are bad, the first: .*{told}"):
        write_data(str(parquet(tmp_path / "a.parquet", dots(**columns))), tmp_path / "out")


def test_a_picture_may_be_named_twice_in_a_text(tmp_path, load, picture):
    texts = [{"user": "is <image_1> like <image_2>, or is <image_2> larger ?", "assistant": "Yes."},
             {"user": "what does <b>this</b> show ?", "assistant": "Two."}]
    images = [{"bytes": picture(40, 32, i)} for i in range(2)]
    assert len(load(parquet(tmp_path / "a.parquet", {"texts": texts, "images": images}))) == 2


def test_a_parquet_file_that_is_none_is_a_bad_row(source, load, capsys):
    (source / "vqa" / "train-00001-of-00001.parquet").write_bytes(b"PAR1 but not really")
    assert len(load(source)) == 3
    assert "the file cannot be read" in capsys.readouterr().err


def test_a_data_set_of_the_hub_is_streamed(source, load, monkeypatch):
    import datasets
    from_files = datasets.load_dataset

    def local(path, name, split, streaming, revision=None):
        assert (path, split, streaming, revision) == ("somebody/fv", "train", True, "v1")
        files = str(source / name / "*.parquet")
        return from_files("parquet", data_files=files, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", local)
    query, = load("somebody/fv:vqa", revision="v1")
    assert query.answer == "Yes" and len(query.images) == 2 and query.id == "vqa:0/0"
    assert [where for where, _ in finevision_turns("somebody/fv:vqa", 0, 1, "v1")] == ["vqa:0"]
    monkeypatch.setattr(datasets, "load_dataset",
                        lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no\nnet")))
    with pytest.raises(DataError, match="cannot read somebody/fv:vqa from the hub: no net"):
        load("somebody/fv:vqa")


def test_a_damaged_row_group_costs_its_own_rows_and_each_is_counted(tmp_path):
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile, write_table

    file = tmp_path / "part.parquet"
    texts = [{"texts": [{"user": f"how many {i} ?" * 20, "assistant": str(i)}]} for i in range(60)]
    write_table(Table.from_pylist(texts), file, row_group_size=20, compression="none")
    column = ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start:start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(data)
    turns = list(finevision_turns(str(file)))
    assert len(turns) == 60 and sum("bad" in turn for _, turn in turns) == 20
    assert [i for i, (_, turn) in enumerate(turns) if "bad" in turn] == list(range(20, 40))
    write_table(Table.from_pylist([{"words": "a"}]), file)
    (_, turn), = finevision_turns(str(file))
    assert turn["bad"] == "the file cannot be read (no column texts)"


# Runs the program and kills it once two rows are written.
KILLED = """
import os, signal, sys
from recipe import finevision

store, stored = finevision.store_picture, []

def dying(image, out):
    stored.append(store(image, out))
    if len(stored) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return stored[-1]

finevision.store_picture = dying
finevision.main()
"""


def test_the_program(source, tmp_path):
    """Killed on the way it leaves no data file; again, it writes the whole one; a whole one is not
    replaced."""
    out = tmp_path / "out"

    def run(*arguments) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=ALONE, timeout=120,
                              capture_output=True, text=True)

    assert run("-c", KILLED, source, out).returncode == -signal.SIGKILL
    assert not (out / "train.jsonl").exists() and list((out / "images").iterdir())
    done = run("-m", "recipe.finevision", source, out)
    assert done.returncode == 0 and done.stdout.startswith(f"wrote {out}/train.jsonl"), done.stderr
    assert "3 bad rows skipped, 3 read from" in done.stderr
    assert len(load_queries(out / "train.jsonl")) == 3
    assert sorted(file.name for file in out.iterdir()) == ["images", "train.jsonl"]
    for arguments, line in (((source, out), "train.jsonl exists already"),
                            (("none", tmp_path / "new"), "data not found: none"),
                            ((source, tmp_path / "new", "--limit", "0"), "'0' is not a number above 0")):
        done = run("-m", "recipe.finevision", *arguments)
        assert done.returncode == 2 and line in done.stderr.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_no_usable_row_is_an_error(source, tmp_path):
    file = source / "vqa" / "train-00000-of-00001.parquet"
    file.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="no usable row in .*: all 1 are bad, the first: vqa/train-00000"):
        write_data(str(source / "vqa"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("train*"))
