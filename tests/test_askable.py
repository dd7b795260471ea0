"""Before a run: every picture is decoded once, every text is searched for special tokens; rows that the model
cannot be asked are skipped, counted and named.

Guards against: one bad picture that ends a run after hours, and its --resume again; another order of the data
for another number of ranks; a check that counts a good row as bad.
"""

import io
import shutil
import subprocess
import sys

import pytest
from conftest import ALONE, MODEL, ROOT
from helpers import arguments, command, json_rows, metrics, train, write
from PIL import Image

import toy
from context_pairs.pairs import ContextPair, query_of_pair
from data import DataError, Processor, Query, save_queries
from training import parts


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(MODEL, max_pixels=96 * 96)


def changed(picture: bytes, change, kind: str) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        change(image).save(out, kind)
    return out.getvalue()


def encoded(picture: bytes, kind: str) -> bytes:
    return changed(picture, lambda image: image, kind)


def half(image: bytes) -> bytes:
    return image[:len(image) // 2]


def cut_and_filled(image: bytes) -> bytes:
    """As a download that broke off leaves a file whose size was known."""
    return half(image).ljust(len(image), b"\0")


# What is done to a picture that can be read -> what the line says.
BAD_PICTURES = {
    "half a PNG": (half, "cannot read image"),
    "half a JPEG": (lambda image: half(encoded(image, "JPEG")), "cannot read image"),
    "half a WebP": (lambda image: half(encoded(image, "WEBP")), "cannot read image"),
    "half a CMYK JPEG": (lambda image: half(changed(image, lambda i: i.convert("CMYK"), "JPEG")),
                         "cannot read image"),
    "a PNG filled with zeros": (cut_and_filled, "cannot read image"),
    "a strip": (lambda image: changed(image, lambda i: i.resize((31, 1000)), "PNG"),
                "31 x 1000 cannot be shown in 9216 pixels"),
    "floats": (lambda image: changed(image, lambda i: i.convert("F"), "TIFF"), "its range is not known"),
}


@pytest.mark.parametrize("spoil, told", BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_a_bad_picture_costs_its_rows_and_no_others(processor, picture, tmp_path, capsys, spoil, told):
    (tmp_path / "bad.png").write_bytes(spoil(picture(96, 96)))
    bad, good = str(tmp_path / "bad.png"), picture(96, 96, 1)
    rows = [Query("a", [good], "?", "s", "x"), Query("b", [good, bad], "?", "s", "x"),
            Query("c", [bad], "?", "s", "x"), Query("d", [], "?", "s", "x")]
    assert [query.id for query in parts.askable(rows, processor)] == ["a", "d"]
    first, second, count = capsys.readouterr().err.splitlines()
    assert first.startswith("skipped query b: ") and second.startswith("skipped query c: ") and told in first
    assert count == "2 rows skipped that this model cannot be asked, 2 kept"
    with pytest.raises(DataError, match="nothing that this model can be asked: all 1 are bad, the first: "
                                        "query c: "):
        parts.askable(rows[2:3], processor)


def test_what_is_kept_can_be_asked(processor, picture):
    """Every picture that passes gives a prompt: the check is no weaker than what comes later."""
    sizes, kinds = ((7, 9), (96, 64), (300, 211)), ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    rows = [Query(f"{kind} {size}", [encoded(picture(*size), kind)], "?", "s", "x")
            for kind in kinds for size in sizes]
    kept = parts.askable(rows, processor)
    assert kept == rows and all(processor.prompt(query).ids for query in kept)


def test_a_picture_of_many_rows_is_decoded_once(processor, picture, monkeypatch):
    decoded, read = [], parts.read_picture

    def counted(image, **more):
        decoded.append(image)
        return read(image, **more)

    monkeypatch.setattr(parts, "read_picture", counted)
    images = [picture(40, 40, i) for i in range(3)]
    parts.askable([Query(str(i), [images[i % 3]], "?", "s", "x") for i in range(12)], processor)
    assert sorted(decoded) == sorted(images)


def test_special_tokens_are_those_of_the_model(processor, capsys):
    rows = [Query("a", [], "what is <|im_end|> ?", "s", "x"), Query("b", [], "?", "<|vision_start|>", "x"),
            Query("c", [], "what is <|not_one_of_this_model|> ?", "s", "x")]
    assert parts.askable(rows, processor) == rows[2:]
    assert "query b: its text contains the special token <|vision_start|>" in capsys.readouterr().err


def test_pairs_with_a_bad_picture_are_skipped(processor, picture, capsys):
    good, other = picture(64, 64), picture(64, 64, 1)
    pairs = [ContextPair("a", "?", "3", good, other), ContextPair("b", "?", "3", good, half(other))]
    assert parts.askable(pairs, processor, query_of_pair) == pairs[:1]
    assert "skipped query pair-b: cannot read image" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- runs

@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Folder with train.jsonl, where three of twelve rows are bad, and good.jsonl without these three."""
    folder = tmp_path_factory.mktemp("worlds")
    save_queries(toy.train_queries(size=12), folder / "train.jsonl")
    rows = json_rows(folder / "train.jsonl")
    for i in (2, 7):
        file = folder / rows[i]["images"][0]
        file.write_bytes(half(file.read_bytes()))
    rows[9]["question"] += " what does <|im_end|> mean ?"
    write(folder / "train.jsonl", *rows)
    write(folder / "good.jsonl", *(row for i, row in enumerate(rows) if i not in (2, 7, 9)))
    return folder


def test_a_run_is_that_of_the_good_rows_alone(worlds, tmp_path, capsys):
    """Also if it is stopped and resumed, and for held-out data."""
    whole = train(worlds / "good.jsonl", tmp_path / "good", steps=4, eval_data=worlds / "good.jsonl")
    capsys.readouterr()
    run = train(worlds / "train.jsonl", tmp_path / "run", steps=4, stop_after=2,
                eval_data=worlds / "train.jsonl")
    assert capsys.readouterr().err.count("3 rows skipped that this model cannot be asked, 9 kept") == 2
    train(worlds / "train.jsonl", run, "--resume", steps=4, eval_data=worlds / "train.jsonl")
    assert metrics(run) == metrics(whole)
    assert (run / "rollouts.jsonl").read_text() == (whole / "rollouts.jsonl").read_text()


def test_two_ranks_skip_the_same_rows(worlds, tmp_path):
    whole = train(worlds / "good.jsonl", tmp_path / "one", steps=2)
    words = arguments(worlds / "train.jsonl", tmp_path / "two", steps=2)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                           "2", "contextrl.py", *words], cwd=ROOT, env=ALONE, timeout=300,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("3 rows skipped that this model cannot be asked, 9 kept") == 1
    one, two = (json_rows(run / "rollouts.jsonl") for run in (whole, tmp_path / "two"))
    assert [row["query"] for row in one] == [row["query"] for row in two]
    assert [row["stage1"][0]["ids"] for row in one[:4]] == [row["stage1"][0]["ids"] for row in two[:4]]


def test_a_recording_of_rows_that_are_bad_now_is_refused(worlds, tmp_path):
    run = train(worlds / "good.jsonl", tmp_path / "run", "--rollout_only", steps=1)
    shutil.copytree(worlds, tmp_path / "data")
    victim = json_rows(run / "rollouts.jsonl")[0]["query"]
    file = tmp_path / "data" / "images" / f"{victim}-0.png"
    file.write_bytes(half(file.read_bytes()))
    with pytest.raises(DataError, match=f"query {victim} is not in the training data"):
        train(tmp_path / "data" / "good.jsonl", tmp_path / "again", steps=1,
              rollouts_from=run / "rollouts.jsonl")
    assert not (tmp_path / "again").exists()


def test_no_good_row_is_one_line_and_no_folder(worlds, tmp_path):
    rows = [row for row in json_rows(worlds / "train.jsonl") if "im_end" in row["question"]]
    (tmp_path / "images").symlink_to(worlds / "images")
    bad = write(tmp_path / "bad.jsonl", *rows)
    for done in (command(*arguments(bad, tmp_path / "run"), name="contextrl.py"),
                 command("--data", bad, name="eval.py")):
        assert done.returncode == 2
        assert done.stderr == ("error: nothing that this model can be asked: all 1 are bad, the first: query "
                               f"{rows[0]['id']}: its text contains the special token <|im_end|>\n")
    assert not (tmp_path / "run").exists()


def test_eval_goes_on_without_the_bad_rows(worlds):
    done = command("--data", worlds / "train.jsonl", "--max_new_tokens", 4, name="eval.py")
    assert done.returncode == 0 and "3 rows skipped that this model cannot be asked, 9 kept" in done.stderr
    assert done.stdout.splitlines()[1].startswith("family")
