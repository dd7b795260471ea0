"""context_pairs/build.py: similarity search, condition filtering, editing by a program; functions, then the
command line.

Guards against: pairs that are no pairs, a context that tells its answer, a bad picture or program that ends a
build, and anything left out without being counted.
"""

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ALONE, MODEL, ROOT
from PIL import Image

import toy
from context_pairs import build as build_pairs
from context_pairs.pairs import load_pairs
from data import DataError, Query, save_queries


def pool(*rows) -> list[Query]:
    return [Query(f"q{i}", [b"%d" % i], question, "-", answer) for i, (question, answer) in enumerate(rows)]


def test_similar_pairs_ask_the_same_question_with_another_answer():
    asked = "how many ?"
    queries = pool((asked, "1"), ("How  many ?", "2"), (asked, "1.0"), ("which ?", "2"), (asked, "7"))
    vectors = np.array([[1, 0], [0.98, 0.2], [1, 0.01], [1, 0], [-3, 0.1]], dtype=np.float32)
    left_out = Counter()
    found = list(build_pairs.similar_pairs(queries, vectors, 0.85, left_out))
    assert [(p.id, p.answer, p.supporting, p.confounding) for p in found] == [
        ("q0", "1", b"0", b"1"), ("q1", "2", b"1", b"2"), ("q2", "1.0", b"2", b"1")]
    assert left_out == {"no other answer to the question in the pool": 1,                        # which ?
                        "no picture with another answer within a cosine of 0.85": 1}             # the far one
    # A large part that all vectors share says nothing; the same picture under two answers is a wrong label.
    moved = build_pairs.similar_pairs(queries, vectors + 100, 0.85, Counter())
    assert [p.id for p in moved] == ["q0", "q1", "q2"]
    far = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1]], dtype=np.float32)
    assert not list(build_pairs.similar_pairs(queries, far + 100, 0.85, Counter()))
    queries[1].images, left_out = queries[0].images, Counter()
    assert [p.id for p in build_pairs.similar_pairs(queries[:2], vectors[:2], -1, left_out)] == []
    assert left_out == {"the nearest picture with another answer is the same picture: a wrong label": 2}


def test_filtered_pairs_agree_in_the_fields_and_do_not_tell_the_answer():
    def row(name, issue, patch, repo="r", file="a.py"):
        return {"id": name, "question": issue, "answer": patch, "repo": repo, "file": file,
                "context": f"read {file}\nedit: {patch[1:].strip()}\nran the tests of {name}"}

    rows = [row("x", "it crashes", "+    return value + 1"),
            row("y", "it is slow", "+    cache[key] = value"), row("z", "it is slow", "+    other_patch = 1"),
            row("w", "it leaks", "+    del reference", file="b.py"),
            row("v", "it leaks", "+    del reference", repo="")]
    left_out = Counter()
    found = list(build_pairs.filtered_pairs(rows, ["repo", "file"], left_out))
    assert [(p.id, p.kind) for p in found] == [("x", "text"), ("y", "text"), ("z", "text")]
    assert found[0].supporting == "read a.py\nedit: [masked]\nran the tests of x"
    assert found[0].confounding == "read a.py\nedit: [masked]\nran the tests of y"
    assert found[2].confounding.endswith("tests of x")                     # not y: that was the same question
    assert left_out == {"no partner": 1, "a field of --same is missing": 1}
    same = [r | {"context": "the same"} for r in rows[:2]]
    assert not list(build_pairs.filtered_pairs(same, ["repo"], left_out))
    assert left_out["the same context once the answers are masked"] == 2


@pytest.mark.parametrize("context, answer, left", [
    ("set x = 1\ny = 2 in the file", "x = 1\ny = 2", "set [masked] in the file"),
    ("run:\n    a()\n\tb()\n", "a()\nb()\n", "run:\n    [masked]\n"),             # other blanks
    ("+x = 1\n+y = 2", "x = 1\ny = 2", "+[masked]"), ("x = 1\ny = 2", "+x = 1\n+y = 2", "[masked]"),
    ("x = 1\ny = 22", "x = 1\ny = 2", "x = 1\ny = 22"),                           # of words, whole ones
    ("if x:\n    return value + 1\nelse:\n    y", "if x:\n  return value + 1\nelse:", "[masked]\n    y"),
    ("only return value + 1 of it", "if x:\n    return value + 1", "only [masked] of it"),
    ("-5 or 5", "-5", "[masked] or 5"), ("a + b", "+\n+", "a + b")])
def test_what_an_answer_says_is_masked(context, answer, left):
    assert build_pairs.masked(context, answer, "something else") == left


EDITOR = """
import json, sys
from PIL import Image
asked = json.load(sys.stdin)
what = asked["question"]
if what == "refuse": sys.exit(1)
if what == "babble": print("sure!"); sys.exit(0)
picture = Image.open(asked["image"])
if what != "untouched": picture.paste((1, 2, 3), (0, 0, 20, 20))
if what != "unwritten": picture.save(asked["output"])
print(json.dumps({"answer": asked["answer"] if what == "unchanged" else "4"}))
"""


def test_edited_pairs_come_from_a_program(folder):
    (folder / "editor.py").write_text(EDITOR)
    queries = [Query(w, [str(folder / "0.png")], w, "-", "3") for w in
               ("edit", "refuse", "babble", "untouched", "unwritten", "unchanged")]
    left_out = Counter()
    found = list(build_pairs.edited_pairs(queries, f"{sys.executable} {folder / 'editor.py'}", 60, left_out))
    assert [(p.id, p.answer) for p in found] == [("edit", "3"), ("edit-edited", "4")]
    assert found[0].supporting == found[1].confounding and found[0].confounding == found[1].supporting
    with Image.open(io.BytesIO(found[0].confounding)) as edited:
        assert edited.convert("RGB").getpixel((5, 5)) == (1, 2, 3)
    assert left_out == {"the program declined (exit code 1)": 1, "the program printed no answer": 1,
                        "the picture did not change": 1, "the answer did not change": 1,
                        "the program wrote no picture that can be read": 1}
    pid = folder / "pid"
    list(build_pairs.edited_pairs(queries[:1], f"sleep 30 & echo $! > {pid}; wait", 1.0, left_out))
    assert left_out["the program took too long"] == 1
    state = Path(f"/proc/{pid.read_text().strip()}/stat")             # gone, or dead and not yet waited for
    assert not state.exists() or state.read_text().split()[2] == "Z"
    with pytest.raises(DataError, match="--command cannot be run: no_such_program"):
        list(build_pairs.edited_pairs(queries[:1], "no_such_program", 5, left_out))


def program(name: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", f"context_pairs.{name}", *map(str, arguments)], cwd=ROOT,
                          env=ALONE, timeout=120, capture_output=True, text=True)


def build(*arguments) -> subprocess.CompletedProcess:
    return program("build", *arguments)


def write(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_builders_on_the_command_line(folder):
    (folder / "pool").mkdir()
    save_queries(toy.train_queries(300), folder / "pool" / "train.jsonl")
    done = build("similar", folder / "pool" / "train.jsonl", folder / "out" / "pairs.jsonl", "--model", MODEL,
                   "--cosine", "0.3")
    assert done.returncode == 0, done.stderr
    found = load_pairs(folder / "out" / "pairs.jsonl")
    assert done.stdout.splitlines()[-1] == f"{len(found)} context pairs written to {folder}/out/pairs.jsonl"
    by_id = {q.id: q for q in toy.train_queries(300)}
    assert found and all(by_id[p.id].question == p.question and by_id[p.id].answer == p.answer for p in found)
    shown = program("pairs", folder / "out" / "pairs.jsonl")
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"{len(found)} context pairs ({len(found)} image), ")
    np.save(folder / "wrong.npy", np.zeros((3, 2)))
    done = build("similar", folder / "pool" / "train.jsonl", folder / "x.jsonl",
                 "--vectors", folder / "wrong.npy")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "finite rows for 300 queries" in done.stderr
    (folder / "empty.npy").write_bytes(b"")
    for file, out, line in ((folder / "empty.npy", folder / "x.jsonl", "as one .npy array"),
                            (folder / "none.npy", folder / "x.jsonl", "as one .npy array"),
                            (folder / "wrong.npy", folder, "is a folder")):
        done = build("similar", folder / "pool" / "train.jsonl", out, "--vectors", file)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and line in done.stderr
    row = {"id": "a", "question": "q", "answer": "+ some patch",
           "context": [{"role": "user", "content": "c"}]}
    write(folder / "t.jsonl", row, {"id": "b"}, row, row | {"id": "c", "context": [3]})
    done = build("filter", folder / "t.jsonl", folder / "x.jsonl", "--same", "repo")
    assert done.returncode == 2 and done.stderr.splitlines() == [
        f"skipped {folder}/t.jsonl:2: field 'question' is missing or empty",
        f"skipped {folder}/t.jsonl:3: id 'a' appears twice", f"skipped {folder}/t.jsonl:4: a message is none",
        "error: no pair found; left out: 3, bad rows; left out: 1, a field of --same is missing"]
    assert not (folder / "x.jsonl").exists()


def test_a_file_of_pairs_is_replaced_by_a_whole_one_only(folder):
    """A program that does not start leaves the earlier file; one that fails later leaves it too, and beside
    it what was made."""
    out, part = folder / "pairs.jsonl", folder / "pairs.jsonl.part"
    (folder / "editor.py").write_text(EDITOR)
    write(folder / "pool.jsonl", *(
        {"id": name, "images": ["0.png"], "question": name, "solution": "-", "answer": "3"}
        for name in ("edit", "edit again")))
    editor = f"{sys.executable} {folder / 'editor.py'}"
    assert build("edit", folder / "pool.jsonl", out, "--command", editor).returncode == 0
    before = out.read_bytes()
    assert before and not part.exists()
    for command, told, left in [("no_such_program", "--command cannot be run", 0),
                                ("exit 1", "no pair found", 0),
                                (f"[ -e {folder}/once ] && exit 127; touch {folder}/once; {editor}",
                                 "--command cannot be run", 2)]:
        done = build("edit", folder / "pool.jsonl", out, "--command", command)
        assert done.returncode == 2 and told in done.stderr.splitlines()[-1]
        assert out.read_bytes() == before
        assert part.exists() == bool(left) and (not left or len(load_pairs(part)) == left)


def test_one_bad_picture_does_not_end_a_build(folder):
    """A picture whose end is missing: its header is sound, so only the build itself finds out."""
    (folder / "torn.png").write_bytes((folder / "2.png").read_bytes()[:-200])
    write(folder / "pool.jsonl", *(
        {"id": f"q{i}", "images": [name], "question": "how many ?", "solution": "-", "answer": str(i)}
        for i, name in enumerate(["0.png", "torn.png", "1.png"])))
    np.save(folder / "v.npy", np.eye(3))
    for more in (["similar", "--vectors", folder / "v.npy", "--cosine", "-1"],
                 ["similar", "--model", MODEL, "--cosine", "-1"],
                 ["edit", "--command", f"{sys.executable} {folder / 'editor.py'}"]):
        (folder / "editor.py").write_text(EDITOR)
        done = build(more[0], folder / "pool.jsonl", folder / "o.jsonl", *more[1:])
        assert done.returncode == 0, done.stderr
        assert "left out: 1, the picture cannot be read" in done.stdout
        assert len(load_pairs(folder / "o.jsonl")) == {"similar": 2, "edit": 4}[more[0]]
