"""What people's files hold: marks of editors, numbers for texts, marks without pictures, words that are
structure to a model, ids of any length.  Read, or skipped, counted and named in a line that stays short.

Guards against: a first row that is lost, training without the pictures that a question asks about, a message
that fills the terminal or moves its cursor, a picture under another query's name.
"""

import json
import re

import pytest
from helpers import command, write

from context_pairs.pairs import load_pairs
from data import DataError, Query, load_queries, save_image, save_queries

MARK = b"\xef\xbb\xbf"                       # byte order mark of UTF-8


def row(id="a", **changes) -> dict:
    return {"id": id, "question": "how many ?", "solution": "red 3", "answer": "3", **changes}


def line(id) -> bytes:
    return json.dumps(row(id)).encode() + b"\n"


# ------------------------------------------------------------------------------------------------------ bytes

@pytest.mark.parametrize("content", [
    MARK + line("a") + line("b"),                                        # saved by an editor on Windows
    MARK + line("a") + MARK + line("b"),                                 # two such files, joined
    MARK + MARK + line("a") + b"\n" + MARK + b"\n" + line("b"),
    line("a") + line("b") + MARK,
    MARK + line("a").replace(b"\n", b"\r\n") + line("b").strip(),
], ids=["one", "joined", "two at once", "the last", "carriage returns"])
def test_byte_order_marks_are_no_text(tmp_path, capsys, content):
    (tmp_path / "data.jsonl").write_bytes(content)
    assert [query.id for query in load_queries(tmp_path / "data.jsonl")] == ["a", "b"]
    assert not capsys.readouterr().err


def test_a_byte_order_mark_in_a_file_of_pairs(tmp_path):
    pair = {"question": "?", "answer": "3", "supporting": "red 3", "confounding": "red 4", "kind": "text"}
    text = "".join(json.dumps({"id": i, **pair}) + "\n" for i in (1, 2))                  # ids are numbers
    (tmp_path / "pairs.jsonl").write_bytes(MARK + text.encode())
    assert [pair.id for pair in load_pairs(tmp_path / "pairs.jsonl")] == ["1", "2"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_one_line_that_says_so(tmp_path, encoding):
    (tmp_path / "data.jsonl").write_text(json.dumps(row()) * 3, encoding=encoding)
    done = command(tmp_path / "data.jsonl", name="data.py")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "not UTF-8 text" in done.stderr and "UTF-16" in done.stderr


# ----------------------------------------------------------------------------------------------------- fields

@pytest.mark.parametrize("number, text", [(17, "17"), (0, "0"), (-2, "-2"), (2.5, "2.5"), (2.0, "2.0"),
                                          (10**30, "1" + 30 * "0")])
def test_a_number_is_read_as_its_text(tmp_path, number, text):
    query, = load_queries(write(tmp_path / "data.jsonl", row(number, answer=number)))
    assert (query.id, query.answer) == (text, text)


@pytest.mark.parametrize("value, told", [(True, "true"), (None, "null"), (["3"], r'\["3"\]'), ({}, "{}"),
                                         (float("nan"), "NaN"), (float("inf"), "Infinity")])
@pytest.mark.parametrize("field", ["id", "answer", "question"])
def test_what_is_no_text_is_not_called_missing(tmp_path, field, value, told):
    with pytest.raises(DataError, match=f"field '{field}' is no text: {told}$"):
        load_queries(write(tmp_path / "data.jsonl", row(**{field: value})))


def test_the_number_of_an_id_and_its_text_are_the_same_id(tmp_path, capsys):
    assert len(load_queries(write(tmp_path / "data.jsonl", row(17), row("17"), row(17.5)))) == 2
    assert "data.jsonl:2: id '17' appears twice" in capsys.readouterr().err


def test_pictures_under_another_name_are_not_left_out_in_silence(tmp_path):
    with pytest.raises(DataError, match=r"unknown field\(s\) image; a row has id, images, question, "):
        load_queries(write(tmp_path / "data.jsonl", row(image="a.png")))


MARKS = [                                    # question, pictures -> whether the row is read
    ("<image> how many ?", 1, True),
    ("how many ?", 2, True),                                             # pictures stand before the question
    ("<image> or <image> ?", 2, True),
    ("<image> how many ?", 0, False),
    ("<image> or <image> ?", 1, False),
    ("<image> how many ?", 2, False),
    ("what do <img src='a.png'>, </image> and <image href='a.png'> show ?", 0, True),            # HTML, SVG
]


@pytest.mark.parametrize("question, pictures, read", MARKS)
def test_each_mark_has_its_picture(tmp_path, capsys, picture, processor, question, pictures, read):
    images = [f"{i}.png" for i in range(pictures)]
    for name in images:
        (tmp_path / name).write_bytes(picture(32, 32))
    rows = [row("a", question=question, images=images), row("b")]
    queries = load_queries(write(tmp_path / "data.jsonl", *rows))
    assert [query.id for query in queries] == (["a", "b"] if read else ["b"])
    if read:
        assert processor.prompt(queries[0]).ids.count(processor.image_id) == pictures
    else:
        assert re.search(rf"data\.jsonl:1: {pictures} images, but \d marks <image>", capsys.readouterr().err)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>",
                                   "<|image_pad|>", "<|video_pad|>"])
def test_data_py_names_the_rows_that_a_model_could_not_be_asked(tmp_path, token):
    rows = [row("a", question=f"what is {token} ?"), row("b", solution=f"red {token} 3"),
            row("c", question="|im_end| and <|x|> and <im_end>")]
    done = command(write(tmp_path / "data.jsonl", *rows), name="data.py")
    assert done.returncode == 2 and "3 queries" in done.stdout
    assert done.stderr.splitlines() == [f"query {id}: its text contains the special token {token}"
                                        for id in "ab"]


# -------------------------------------------------------------------------------------- long and odd messages

LONG = "https://example.org/" + "a/b/c/" * 50
ODD = {
    "the same long id": [row(LONG), row(LONG)],
    "an id of many lines": [row("a\nb\x1b[2J\u202e" * 40), row("a\nb\x1b[2J\u202e" * 40)],
    "a long answer": [row(answer=["3" * 10_000])],
    "a long name of a field": [row(**{"x\n" * 5_000: "3"})],
    "a picture as text": [row(images=["data:image/png;base64," + "A" * 10_000])],
    "zero in a path": [row(images=["a\0b.png"])],
}


@pytest.mark.parametrize("rows", ODD.values(), ids=ODD)
def test_a_message_is_one_short_line(tmp_path, capsys, rows):
    assert len(load_queries(write(tmp_path / "data.jsonl", row("good"), *rows))) == len(rows)
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 3 and lines[0].startswith("skipped ") and lines[1].startswith("1 bad rows skipped")
    assert all(line.isprintable() and len(line) < 250 + len(str(tmp_path)) for line in lines)


def test_an_error_is_one_line_whatever_is_in_it():
    text = str(DataError("query a\tb\n" + "7" * 5_000 + " has no picture"))
    assert text.startswith("query a?b?7") and text.endswith("7 has no picture") and len(text) <= 501


# -------------------------------------------------------------------------------- ids as names of their files

IDS = [LONG, LONG + "/", "题目" * 60, "题目" * 60 + "二", "..", "../..", ".", "a/b", "a:b", "a\\b", "a\0b",
       "-", "q", "Q", "ß", "ss", "İ", "i", "e\u0301", "\u00e9", " ", "a" * 99, "a" * 100, "a" * 1_000,
       "a" * 1_000 + "b", "CON"]


def test_every_id_names_a_picture_of_its_own(tmp_path, picture):
    """Also on a disk that takes A for a, and within the 255 bytes that disks allow."""
    names = [save_image(picture(8, 8, i), tmp_path / "images", f"{id}-0") for i, id in enumerate(IDS)
             if (tmp_path / "images").mkdir(exist_ok=True) is None]
    assert len({name.casefold() for name in names}) == len(IDS)
    assert max(len(name.encode()) for name in names) < 200
    for i, name in enumerate(names):
        assert (tmp_path / name).read_bytes() == picture(8, 8, i)
        assert (tmp_path / name).resolve().parent == tmp_path / "images"


def test_names_of_plain_ids_stay_readable(tmp_path, picture):
    save_queries([Query("train-hard-2", [picture(8, 8)], "?", "s", "a")], tmp_path / "data.jsonl")
    assert [file.name for file in (tmp_path / "images").iterdir()] == ["train-hard-2-0.png"]


def test_long_ids_are_saved_and_read_again(tmp_path, picture):
    queries = [Query(id, [picture(8, 8, i)], "?", "s", "a") for i, id in enumerate(IDS) if id.strip()]
    save_queries(queries, tmp_path / "data.jsonl")
    assert [query.id for query in load_queries(tmp_path / "data.jsonl")] == [query.id for query in queries]
