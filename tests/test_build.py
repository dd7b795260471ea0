"""python data.py build: what is read, dropped and kept; the same result for the same input, also after kills.

Guards against: rows that are lost without a word, copies and benchmark pictures that slip through, answers that do not
belong to their question or solution, and a resumed build that differs from an uninterrupted one.
"""

import io
import json
import signal
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
from conftest import ALONE, MODEL, ROOT
from PIL import Image, ImageDraw

from recipe import build
import contextrl
import toy
from recipe.candidates import clean_question, last_named, read
from data import DataError, Query, load_queries
from recipe.duplicates import Near, benchmark_index, grams, perceptual_hash
from recipe.finevision import finevision_turns
from reward import JudgeError, RuleVerifier, Verdict, VerifierUnreliable

FLAGS = ["--policy", MODEL, "--verifier", "toy", "--teacher", MODEL, "--max_new_tokens", "32", "--min_words", "4",
         "--instruction", "", "--per_class", "50", "--samples", "2"]
NAMES = ("train.jsonl", "dropped.jsonl", "funnel.md", "samples.html", "manifest.json", *(f"{s}.jsonl" for s in
                                                                                     build.STAGES))


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finevision")
    toy.finevision_sample(folder, size=8)
    return folder


@pytest.fixture(scope="module")
def built(sample, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built")
    assert build.main([str(out), "--finevision", str(sample), *FLAGS]) == 0
    return out


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def contents(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*")) if f.is_file()}


# ------------------------------------------------------------------------------------------------ the whole build

def test_every_turn_is_either_kept_or_dropped_with_a_reason(sample, built):
    turns = Counter(turn["subset"] for _, turn in finevision_turns(str(sample)))
    kept, dropped = rows(built / "train.jsonl"), rows(built / "dropped.jsonl")
    ids = [row["id"] for row in kept + dropped]
    assert len(ids) == len(set(ids)) == turns.total()
    assert all(row["why"] and row["stage"] in build.ORDER for row in dropped)
    counts = json.loads((built / "manifest.json").read_text())["counts"]
    for subset, n in turns.items():
        assert counts[subset]["read"] == n == counts[subset]["kept"] + sum(counts[subset]["dropped"].values())
    table = [line.strip("| ").split(" | ") for line in (built / "funnel.md").read_text().splitlines()[2:]]
    lines = {line[0]: list(map(int, line[1:])) for line in table[2:2 + len(turns) + 1]}
    assert lines["all"] == [sum(column) for column in zip(*(lines[s] for s in turns))]
    assert lines["all"][0] == turns.total() and lines["all"][-1] == len(kept)
    assert all(a >= b for line in lines.values() for a, b in zip(line, line[1:]))
    reasons = {(row["stage"], row["why"]) for row in dropped}
    assert {("whole", "several pictures"), ("whole", "no picture"), ("whole", "no texts"),
            ("answer", "no final answer"), ("rating", "relevance below 4"), ("picture", "picture cannot be read"),
            ("picture", "picture is not in the file"), ("unique", "same question and picture as another"),
            ("answers", "solved 2 of 2 times")} <= reasons


def test_what_is_kept_can_be_trained_on(built, tmp_path, monkeypatch):
    queries = load_queries(built / "train.jsonl")
    kinds = Counter((query.family, query.facts["solution_kind"]) for query in queries)
    assert kinds["toy_worked", "native"] and kinds["toy_short+vqa", "generated"]
    assert {name for _, name in kinds} == {"native", "generated"}
    verifier = toy.ToyVerifier("answer")
    for query in queries:
        facts = query.facts
        assert facts["licence"] and facts["samples"] == 2 and facts["solved"] in (0, 1)
        assert facts["answer_type"] == ("letter" if facts["choices"] else "yes_no" if query.answer in ("yes", "no")
                                        else "number")
        assert facts["choices"] is None or facts["choices"][query.answer] == facts["answer"]
        if facts["solution_kind"] == "generated":
            assert verifier.judge_one(query, query.solution).correct
        assert "<image" not in query.question and "Hint" not in query.question and "xxx" not in query.question
    run = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["contextrl.py", "--model", MODEL, "--data", str(built / "train.jsonl"),
                                      "--output_dir", str(run), *"--steps 1 --queries_per_step 2 --group_size 2 "
                                      "--max_new_tokens 32 --eval_every 0 --device cpu".split()])
    contextrl.main()
    assert (run / "summary.json").exists()


# Runs a build that kills itself in the middle of writing a stage: half of a chunk is on disk then.
KILLED = """
import os, signal, sys
from recipe import build

build.CHUNK, stage = 4, sys.argv[1]
append, calls = build.append, 0

def dying(file, rows):
    global calls
    calls += os.path.basename(file.name).startswith(stage)
    if calls == 2:
        text = b"".join(build.json.dumps(row).encode() + b"\\n" for row in rows)
        file.write(text[:len(text) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    append(file, rows)

build.append = dying
sys.exit(build.main(sys.argv[2:]))
"""


def test_killed_in_every_stage_and_resumed_is_the_same(sample, tmp_path, monkeypatch):
    """One build is killed in each stage, one after the other; in the end nothing tells it from an uninterrupted one."""
    monkeypatch.setattr(build, "CHUNK", 4)
    command = [str(tmp_path / "out"), "--finevision", f"{sample}:toy_choices(mathv360k),toy_worked", *FLAGS]
    whole = tmp_path / "whole"
    assert build.main([str(whole), *command[1:]]) == 0
    for stage in ("01", "02", "03", "04", "05", "06", "train"):
        done = subprocess.run([sys.executable, "-c", KILLED, stage, *command], cwd=ROOT, env=ALONE, timeout=120,
                              capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, (stage, done.stderr)
    assert build.main(command) == 0
    assert contents(tmp_path / "out") == contents(whole)
    before = contents(whole)
    assert build.main([str(whole), *command[1:]]) == 0                    # finished: the same again, from the files
    assert contents(whole) == before


def test_another_setting_in_the_same_folder_is_refused(sample, built, capsys):
    before = contents(built)
    assert build.main([str(built), "--finevision", str(sample), *FLAGS, "--seed", "1"]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "other settings (seed)" in line and contents(built) == before


@pytest.mark.parametrize("changed, named", [
    (["--finevision", "nothing_here"], "nothing_here"), (["--finevision", "{sample}:toy_none"], "toy_none"),
    (["--benchmarks", "{sample}/toy_worked"], "a column image"), (["--benchmarks", "nowhere"], "nowhere"),
    (["--policy", "nowhere"], "nowhere"), (["--verifier", "http://localhost:1"], "http://localhost:1"),
    (["--verifier", "judge"], "--verifier judge"), (["--caps", "x=3"], "--caps x"),
])
def test_bad_arguments_are_one_line(sample, tmp_path, capsys, changed, named):
    arguments = [text.format(sample=sample) for text in changed]
    command = [str(tmp_path / "out"), "--finevision", str(sample), *FLAGS, *arguments]
    assert build.main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and named in line, line


def test_limit_is_rows_of_each_subset_and_the_seed_chooses_files(tmp_path, picture):
    for part in range(6):
        toy.write_subset(tmp_path / "x", [{"images": [{"bytes": picture(40, 40), "path": None}], "facts": ["{}"],
                                           "texts": [{"user": f"{part}-{i}", "assistant": "1"}]} for i in range(3)])
        (tmp_path / "x" / "train-00000-of-00001.parquet").rename(tmp_path / "x" / f"train-{part}.parquet")

    def read_(*more) -> list[str]:
        return [turn["user"] for _, turn in finevision_turns(str(tmp_path / "x"), *more)]

    assert read_() == [f"{part}-{i}" for part in range(6) for i in range(3)]
    first = read_(0, 4)
    assert len(first) == 4 and first == read_(0, 4) and first[:3] == [f"{first[0][0]}-{i}" for i in range(3)]
    assert len({tuple(read_(seed, 4)) for seed in range(9)}) > 3


def test_servers_write_and_judge(sample, tmp_path, monkeypatch):
    """Policy and judge behind URLs: seeds and temperature go out, the judge is told the answer, verdicts count."""
    asked = []
    monkeypatch.setattr(build.Writer, "check", lambda self: setattr(self, "model", "m"))
    monkeypatch.setattr(build.OpenAIChat, "check", lambda self: setattr(self, "model", "m"))

    def answer(self, url, path, body=None, timeout=0):
        request = json.loads(body)
        asked.append(request)
        text = request["messages"][0]["content"][-1]["text"]
        if "response_format" in request:
            said = {"Analysis": "", "Self-Consistency": 1, "Correctness": int("step" in text.split("Generated")[-1]),
                    "Mistake Report": ""}
            content = json.dumps(said)
        else:
            content = ["step one ; step two ; \\boxed{1}", "no idea at all"][request["seed"] % 2]
        return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}).encode()

    monkeypatch.setattr(build.OpenAIChat, "_http", answer)
    flags = ["--policy", "http://p:1", "--verifier", "http://v:1", "--samples", "2", "--min_words", "4"]
    assert build.main([str(tmp_path), "--finevision", f"{sample}:toy_worked", *flags]) == 0
    samples = [request for request in asked if "response_format" not in request]
    assert len({request["seed"] for request in samples}) == len(samples) and samples[0]["temperature"] == 1.0
    assert all("Reference answer" in r["messages"][0]["content"][-1]["text"] for r in asked if "response_format" in r)
    solved = Counter(row.get("solved", 2) for row in rows(tmp_path / "04-answers.jsonl"))
    assert set(solved) <= {0, 1, 2} and solved[1]


# ---------------------------------------------------------------------------------------------------- questions

CLEANED = [
    ("<image>\nWhat is shown?", "What is shown?", None),
    ("What is in [image] and <image_1>?", "What is in and ?", None),
    ("Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
     "\nQuestion: Find x.\nChoices:\n(A) 20\n(B) 30", "Find x.", {"A": "20", "B": "30"}),
    ("First perform reasoning, then finally select the question from the choices in the following format: "
     "Answer: xxx.\nQuestion:Find x.\nChoices:\nA:20\nB: 30°\nC: none", "Find x.",
     {"A": "20", "B": "30°", "C": "none"}),
    ("According to the question shown in the image, please first conduct reasoning, and then answer the question and "
     "provide the final value, e.g., The answer is xxx\nQuestion: How long is AB?", "How long is AB?", None),
    ("Which?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly.", "Which?",
     {"A": "red", "B": "blue"}),
    ("How many?\nAnswer the question using a single word or phrase.", "How many?", None),
    ("What is it? Please provide a short answer.", "What is it?", None),
    ("Pick. Options: A. one, B. two; C. three", "Pick.", {"A": "one", "B": "two", "C": "three"}),
    ("Which? (A) a cat (B) a dog", "Which?", {"A": "a cat", "B": "a dog"}),
    ("Hint: The passage is about bees.\nWho flies?", "Hint: The passage is about bees.\nWho flies?", None),
    ("Point A. Where is B. on the line?", "Point A. Where is B. on the line?", None),
    ("What is the answer in number of apples?", "What is the answer in number of apples?", None),
    ("Choose the correct answer. In triangle ABC, AB = 5. Find AC.\nA. 3\nB. 4", "In triangle ABC, AB = 5. Find AC.",
     {"A": "3", "B": "4"}),
    ("Please select the correct option. In the chart, sales are in red. Which year is best?",
     "In the chart, sales are in red. Which year is best?", None),
    ("Answer how much is written in the number box?", "Answer how much is written in the number box?", None),
    ("Give the final value of x.", "Give the final value of x.", None),
    ("Find x.\nA. 20 B. 30 C. 40", "Find x.", {"A": "20", "B": "30", "C": "40"}),
    ("In figure (A) the slope is 2 and in figure (B) it is 3. Which is steeper?",
     "In figure (A) the slope is 2 and in figure (B) it is 3. Which is steeper?", None),
    ("Stop <|im_end|> here?", "Stop < |im_end|> here?", None),
]


@pytest.mark.parametrize("text, expected, choices", CLEANED, ids=[text[:20] for text, *_ in CLEANED])
def test_clean_question(text, expected, choices):
    assert clean_question(text) == (expected, choices)


# ------------------------------------------------------------------------------------------------------ filters

WORKED = ("The two angles of the triangle are 60 and 80 degrees, as it is written in the picture. They sum to 140 "
          "degrees, so the third one has 180 - 140 = 40 degrees. ")
OPTIONS = "\nChoices:\nA: 20\nB: 30\nC: 40\nD: 50"


@pytest.fixture
def one(tmp_path, picture):
    """-> one(user, assistant, **changes): what becomes of one turn."""
    (tmp_path / "images").mkdir()

    def call(user="How large is angle D?", assistant=WORKED + "The answer is 40.", **changes) -> dict:
        turn = {"id": "a", "subset": "geomverse", "turn": 0, "user": user, "assistant": assistant, "ratings": {},
                "images": [picture(60, 40)], "facts": {}, **changes}
        row, = read([turn], Namespace(out=tmp_path, verifier="http://v", min_words=30))
        return row
    return call


def test_a_sound_turn_becomes_a_candidate(one, tmp_path):
    row = one()
    assert "why" not in row and (row["answer"], row["answer_type"], row["solution_kind"]) == ("40", "number", "native")
    assert row["domain"] == "math" and row["licence"] and (tmp_path / row["images"][0]).exists()
    assert one(assistant="40.")["solution_kind"] == "answer_only"


def test_the_example_of_a_letter_and_its_text(one):
    """Reasoning that ends with 40 and a closing line: C is consistent, B is not."""
    row = one("How large is angle D?" + OPTIONS, WORKED + "Therefore, the answer is: C.\nAnswer:C")
    assert (row["answer"], row["choices"]["C"], row["answer_type"]) == ("C", "40", "letter")
    row = one("How large is angle D?" + OPTIONS, WORKED + "Therefore, the answer is: B.\nAnswer:B")
    assert row["why"] == "solution and answer disagree"
    assert last_named("It is dark red. The answer is: A", {"A": "red", "B": "dark red"}) == "B"


LOW = {"relevance": 5, "image_correspondence": 5, "formatting": 5, "visual_dependency": 3}
DROPPED = [
    ({"images": []}, "no picture"), ({"images": [b"", b""]}, "several pictures"), ({"bad": "no texts"}, "no texts"),
    ({"turn": 1, "user": "As in the previous question, how large is it?"}, "about another turn"),
    ({"user": "<image>"}, "no question"),
    ({"assistant": "It is one of those things that nobody can know for sure."}, "no final answer"),
    ({"assistant": WORKED + "The answer is E.", "user": "How large?" + OPTIONS}, "answer is not among the options"),
    ({"assistant": WORKED + "The answer is C."}, "a letter, but no options"),
    ({"assistant": WORKED + "The answer is a large and very old tree in spring."}, "answer has more than 5 words"),
    ({"ratings": LOW | {"relevance": 3}}, "relevance below 4"),
    ({"ratings": LOW, "subset": "chartqa"}, "visual_dependency below 4"),
    ({"assistant": "See https://example.org. " + WORKED + "The answer is 40."}, "solution has a link"),
    ({"assistant": "I'm sorry. " + WORKED + "The answer is 40."}, "solution is a refusal"),
    ({"assistant": "word " * 1600 + "The answer is 40."}, "solution is too long"),
    ({"assistant": (WORKED * 5) * 3 + "The answer is 40."}, "solution repeats itself"),
    ({"assistant": "角度の合計は百八十度です。" * 9 + "The answer is 40."}, "solution is in another script"),
    ({"assistant": "The answer is forty-one. " + WORKED * 2}, "solution does not end with the answer"),
    ({"images": [None]}, "picture is not in the file"), ({"images": [b"no picture"]}, "picture cannot be read"),
]


@pytest.mark.parametrize("changes, why", DROPPED, ids=[why for _, why in DROPPED])
def test_each_filter(one, changes, why):
    assert one(**changes).get("why") == why


def test_ratings_that_are_high_enough_or_missing_stay(one):
    assert "why" not in one(ratings=LOW) and "why" not in one(ratings={"relevance": 4})


def encoded(picture: Image.Image, format: str = "PNG", **more) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **more)
    return out.getvalue()


def test_pictures_are_bounded_and_a_fine_file_is_not_written_anew(one, tmp_path, picture):
    jpeg = encoded(Image.open(io.BytesIO(picture(60, 40))), "JPEG")
    assert (tmp_path / one(images=[jpeg])["images"][0]).read_bytes() == jpeg
    large = one(images=[encoded(Image.new("RGB", (4096, 1024), "red"))])
    with Image.open(tmp_path / large["images"][0]) as file:
        assert file.size == (2048, 512)
    assert one(images=[picture(200, 20)])["why"] == "picture is smaller than 28"
    assert one(images=[picture(60, 40)])["images"] == one(images=[picture(60, 40)])["images"]


# ------------------------------------------------------------------------------------- copies and benchmarks

def drawing(seed: int, size: int = 200) -> Image.Image:
    import random
    rng, picture = random.Random(seed), Image.new("RGB", (200, 200), "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y, r = rng.randrange(20, 180), rng.randrange(20, 180), rng.randrange(15, 60)
        pen.ellipse([x - r, y - r, x + r, y + r], fill=tuple(rng.randrange(256) for _ in range(3)))
    return picture.resize((size, size))


def test_near_finds_what_a_search_of_all_pairs_finds():
    import random
    rng = random.Random(0)
    known = [rng.getrandbits(64) for _ in range(300)]
    asked = [k ^ sum(1 << b for b in rng.sample(range(64), rng.randrange(10))) for k in known for _ in range(3)]
    for distance in (4, 6):
        near = Near(distance)
        for value in known:
            near.add(value)
        for value in asked:
            assert near.has(value) == any((value ^ k).bit_count() <= distance for k in known)
        assert not near.has(known[0], group=1)


def test_perceptual_hash_knows_a_picture_again():
    hashes = [perceptual_hash(drawing(i)) for i in range(60)]
    for i, value in enumerate(hashes):
        copy = Image.open(io.BytesIO(encoded(drawing(i, 311), "JPEG", quality=50)))
        assert (perceptual_hash(copy) ^ value).bit_count() <= 4
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) > 6


def test_copies_of_picture_and_question_go(one, tmp_path):
    def row(name: str, user: str, seed: int, size: int = 200, format: str = "PNG") -> dict:
        return one(user, id=name, images=[encoded(drawing(seed, size), format)])

    # Drawings that differ in a number only look alike to a perceptual hash: another answer is another problem.
    another = row("another answer", "How large is it?", 1, 151, "JPEG") | {"answer": "another"}
    batch = [row("first", "How large is it?", 1), row("copy", "How large is  IT ?", 1, 150, "JPEG"), another,
             row("other question", "How small is it?", 1), row("third", "How red is it?", 1),
             row("other picture", "How large is it?", 2)]
    out = build.unique(Namespace())(batch)
    assert {row["id"]: row["why"] for row in out if "why" in row} == {
        "copy": "same question and picture as another", "third": "more than 2 turns of a picture"}


def test_what_is_in_a_benchmark_goes(one, tmp_path):
    from pyarrow import Table
    from pyarrow.parquet import write_table

    long = "In the figure a circle with centre O has a radius of five, how long is the chord AB?"
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    write_table(Table.from_pylist([{"decoded_image": {"bytes": encoded(drawing(1)), "path": None}, "question": long}]),
                folder / "test.parquet")
    encoded_file = folder / "two.png"
    drawing(2).save(encoded_file)
    (folder / "other.jsonl").write_text(json.dumps({"image_path": "two.png", "query": "How many?"}))
    batch = [one("Another question?", images=[encoded(drawing(1, 140), "JPEG")], id="picture"),
             one("Another question?", images=[encoded(drawing(2, 160))], id="picture by path"),
             one(f"<image>{long} Answer the question using a single word or phrase.", id="question"),
             one(long.replace("chord", "line"), id="almost the question"),
             one("How many?", images=[encoded(drawing(5))], id="short question"), one(id="free")]
    out = build.benchmarks(Namespace(benchmarks=folder, out=tmp_path))(batch)
    assert {row["id"]: row["why"] for row in out if "why" in row} == {
        "picture": "picture is in a benchmark", "picture by path": "picture is in a benchmark",
        "question": "question is in a benchmark", "almost the question": "question is in a benchmark"}
    each = {"rows": 1, "pictures": 1, "questions": 1}
    assert json.loads((tmp_path / "benchmarks.json").read_text()) == {"other.jsonl": each, "test.parquet": each}
    # Half a benchmark would let its other half through.
    (folder / "third.jsonl").write_text(json.dumps({"image_path": "missing.png", "reasoning_q": "How many?"}))
    with pytest.raises(DataError, match="third.jsonl: .*'pictures that cannot be read': 1"):
        build.benchmarks(Namespace(benchmarks=folder, out=tmp_path))
    (folder / "third.jsonl").rename(folder / "third.tsv")
    with pytest.raises(DataError, match="third.tsv is neither parquet nor JSONL"):
        build.benchmarks(Namespace(benchmarks=folder, out=tmp_path))
    (folder / "third.tsv").unlink()
    assert len(grams(long)) == len(long.split()) - 7
    (folder / "broken.jsonl").write_text("{")
    with pytest.raises(DataError, match="broken.jsonl cannot be read"):
        benchmark_index(folder, 6, str)


# ------------------------------------------------------------------------------------------------------ balance

@pytest.mark.parametrize("whole", [0, 63, 64, 65, 128])
def test_a_line_that_was_cut_off_is_written_again(tmp_path, whole):
    part = tmp_path / "01-read.part"
    part.write_bytes(b"{}\n" * whole + b'{"id": "half')
    assert build.finished_rows(part) == whole - whole % 64
    assert part.read_bytes() == b"{}\n" * (whole - whole % 64)


def test_prompts_that_are_refused_end_a_build_only_if_there_are_many():
    class Refuses(build.Writer):
        def __init__(self):
            pass

        def write(self, query, seed):
            return JudgeError("HTTP 400", "too long")

    few, many = ([Query(str(i), [], "?", "-", "-") for i in range(n)] for n in (1, 9))
    assert [str(t) for t in build.write(Refuses(), few, 1, ())[0]] == ["HTTP 400: too long"]
    with pytest.raises(JudgeError):
        build.write(Refuses(), many, 1, ())


def test_a_judge_that_is_away_for_a_chunk_drops_nothing(tmp_path):
    class Away:
        def judge(self, queries, texts):
            return [RuleVerifier().judge_one(*pair) if i else Verdict.failed("HTTP 500")
                    for i, pair in enumerate(zip(queries, texts))] if self.one else [Verdict.failed("HTTP 500")
                                                                                   for _ in texts]

    class Writes:
        def generate(self, requests):
            raise AssertionError

    judge, args = Away(), Namespace(samples=2, out=tmp_path, instruction="")
    batch = [{"id": str(i), "images": [], "question": "?", "choices": None, "solution": "5", "answer": "5",
              "subset": "s", "facts": {}} for i in range(3)]
    for judge.one, ends in ((True, False), (False, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "write", lambda writer, queries, n, key: [["\\boxed{5}"] * n for _ in queries])
            if ends:
                with pytest.raises(VerifierUnreliable, match="6 of 6 verdicts failed"):
                    list(build.written_and_judged(batch, Writes(), judge, (), args))
            else:
                whys = [why for *_, why in build.written_and_judged(batch, Writes(), judge, (), args)]
                assert whys == ["a verdict failed", "", ""]


def test_two_builds_do_not_share_a_folder(sample, built, capsys):
    import fcntl

    with open(built / "lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert build.main([str(built), "--finevision", str(sample), *FLAGS]) == 2
    assert capsys.readouterr().err == f"error: another build is at work in {built}\n"


def test_flat_pictures_have_one_hash():
    assert len({perceptual_hash(Image.new("RGB", (50, 40), (x, 3, 9))) for x in range(0, 256, 15)}) == 1


def test_caps_and_classes(tmp_path):
    """40 rows of each class 0, 1, 2 in subset x and 10 of class 0 and 3 in y; classes are cut to the smallest."""
    given = [{"id": f"{s}{c}{i}", "subset": s, "solved": c, "images": [], "question": "", "solution": "", "answer": ""}
             for s, c, n in (("x", 0, 40), ("x", 1, 40), ("x", 2, 40), ("y", 0, 10), ("y", 3, 10)) for i in range(n)]
    (tmp_path / "05-references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))

    def classes(per_class, seed=0, **caps) -> tuple[Counter, set]:
        args = Namespace(out=tmp_path, seed=seed, caps=caps, per_class=per_class)
        out = [row for row in build.balance(args)(given) if "why" not in row]
        return Counter((row["subset"], row["solved"]) for row in out), {row["id"] for row in out}

    counts, names = classes(1000, x=31)
    assert sorted(counts[("x", c)] for c in range(3)) == [10, 10, 11] and counts["y", 0] == counts["y", 3] == 10
    assert classes(1000, x=31)[1] == names != classes(1000, 1, x=31)[1]
    counts, _ = classes(None)
    assert [sum(n for (_, c), n in counts.items() if c == k) for k in range(4)] == [10] * 4
    counts, _ = classes(25)
    assert [sum(n for (_, c), n in counts.items() if c == k) for k in range(4)] == [25, 25, 25, 10]


def test_a_verdict_that_failed_is_not_guessed(tmp_path):
    from reward import Verdict

    class Broken:
        def judge(self, queries, texts):
            return [Verdict.failed("HTTP 500") if q.id == "b" else Verdict.judged(True) for q in queries]

    batch = [{"id": name, "subset": "s", "images": [], "question": "?", "choices": None, "solution": "s", "answer": "1",
              "facts": {}} for name in "ab"]
    writer = Namespace(generate=lambda requests: [[Namespace(status="completed", text="1")] * 2 for _ in requests],
                       processor=Namespace(prompt=lambda query: query))
    args = Namespace(out=tmp_path, samples=2, instruction="")
    out = list(build.written_and_judged(batch, writer, Broken(), (0,), args))
    assert [why for *_, why in out] == ["", "a verdict failed"]
