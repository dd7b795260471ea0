"""Stages 1 to 3 of the recipe, row by row: questions and answers, filters, copies, benchmarks.

Guards against: answers that do not belong to their question or solution, rows that are dropped without a
reason, copies and benchmark pictures that slip through.
"""

import io
import json
import random
from argparse import Namespace

import pytest
from PIL import Image, ImageDraw

from data import DataError
from recipe import stages
from recipe.candidates import clean_batch, clean_question, last_named
from recipe.duplicates import HashIndex, benchmark_index, grams, perceptual_hash

# ------------------------------------------------------------------------------------------------ questions

CLEANED = [
    ("<image>\nWhat is shown?", "What is shown?", None),
    ("What is in [image] and <image_1>?", "What is in and ?", None),
    ("Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
     "\nQuestion: Find x.\nChoices:\n(A) 20\n(B) 30", "Find x.", {"A": "20", "B": "30"}),
    ("First perform reasoning, then finally select the question from the choices in the following format: "
     "Answer: xxx.\nQuestion:Find x.\nChoices:\nA:20\nB: 30°\nC: none", "Find x.",
     {"A": "20", "B": "30°", "C": "none"}),
    ("According to the question shown in the image, please first conduct reasoning, and then answer the "
     "question and provide the final value, e.g., The answer is xxx\nQuestion: How long is AB?",
     "How long is AB?", None),
    ("Which?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly.", "Which?",
     {"A": "red", "B": "blue"}),
    ("How many?\nAnswer the question using a single word or phrase.", "How many?", None),
    ("What is it? Please provide a short answer.", "What is it?", None),
    ("Pick. Options: A. one, B. two; C. three", "Pick.", {"A": "one", "B": "two", "C": "three"}),
    ("Which? (A) a cat (B) a dog", "Which?", {"A": "a cat", "B": "a dog"}),
    ("Hint: The passage is about bees.\nWho flies?", "Hint: The passage is about bees.\nWho flies?", None),
    ("Point A. Where is B. on the line?", "Point A. Where is B. on the line?", None),
    ("What is the answer in number of apples?", "What is the answer in number of apples?", None),
    ("Choose the correct answer. In triangle ABC, AB = 5. Find AC.\nA. 3\nB. 4",
     "In triangle ABC, AB = 5. Find AC.", {"A": "3", "B": "4"}),
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


# -------------------------------------------------------------------------------------------------- filters

WORKED = ("The two angles of the triangle are 60 and 80 degrees, as it is written in the picture. They sum "
          "to 140 degrees, so the third one has 180 - 140 = 40 degrees. ")
OPTIONS = "\nChoices:\nA: 20\nB: 30\nC: 40\nD: 50"


@pytest.fixture
def one(tmp_path, picture):
    """-> one(user, assistant, **changes): what becomes of one turn."""
    (tmp_path / "images").mkdir()

    def call(user="How large is angle D?", assistant=WORKED + "The answer is 40.", **changes) -> dict:
        turn = {"id": "a", "subset": "geomverse", "turn": 0, "user": user, "assistant": assistant,
                "ratings": {}, "images": [picture(60, 40)], "facts": {}, **changes}
        row, = clean_batch([turn], Namespace(out=tmp_path, verifier="http://v", min_words=30))
        return row
    return call


def test_a_sound_turn_becomes_a_candidate(one, tmp_path):
    row = one()
    assert "why" not in row
    assert (row["answer"], row["answer_type"], row["solution_kind"]) == ("40", "number", "native")
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
    ({"images": []}, "no picture"), ({"images": [b"", b""]}, "several pictures"),
    ({"bad": "no texts"}, "no texts"),
    ({"turn": 1, "user": "As in the previous question, how large is it?"}, "about another turn"),
    ({"user": "<image>"}, "no question"),
    ({"assistant": "It is one of those things that nobody can know for sure."}, "no final answer"),
    ({"assistant": WORKED + "The answer is E.", "user": "How large?" + OPTIONS},
     "answer is not among the options"),
    ({"assistant": WORKED + "The answer is C."}, "a letter, but no options"),
    ({"assistant": WORKED + "The answer is a large and very old tree in spring."},
     "answer has more than 5 words"),
    ({"ratings": LOW | {"relevance": 3}}, "relevance below 4"),
    ({"ratings": LOW, "subset": "chartqa"}, "visual_dependency below 4"),
    ({"assistant": "See https://example.org. " + WORKED + "The answer is 40."}, "solution has a link"),
    ({"assistant": "I'm sorry. " + WORKED + "The answer is 40."}, "solution is a refusal"),
    ({"assistant": "word " * 1600 + "The answer is 40."}, "solution is too long"),
    ({"assistant": (WORKED * 5) * 3 + "The answer is 40."}, "solution repeats itself"),
    ({"assistant": "角度の合計は百八十度です。" * 9 + "The answer is 40."}, "solution is in another script"),
    ({"assistant": "The answer is forty-one. " + WORKED * 2}, "solution does not end with the answer"),
    ({"images": [None]}, "picture is not in the file"),
    ({"images": [b"no picture"]}, "picture cannot be read"),
]


@pytest.mark.parametrize("changes, why", DROPPED, ids=[why for _, why in DROPPED])
def test_each_filter(one, changes, why):
    assert one(**changes).get("why") == why


def test_what_the_verifier_cannot_judge_goes(tmp_path):
    turn = {"id": "a", "subset": "x", "turn": 0, "user": "?", "images": [b""], "facts": {"counts": [1]}}
    row, = clean_batch([turn], Namespace(out=tmp_path, verifier="toy", min_words=30))
    assert (row["stage"], row["why"]) == ("shape", "no facts for the exact verifier")


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


# ------------------------------------------------------------------------------------ copies and benchmarks

def drawing(seed: int, size: int = 200) -> Image.Image:
    rng, picture = random.Random(seed), Image.new("RGB", (200, 200), "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y, r = rng.randrange(20, 180), rng.randrange(20, 180), rng.randrange(15, 60)
        pen.ellipse([x - r, y - r, x + r, y + r], fill=tuple(rng.randrange(256) for _ in range(3)))
    return picture.resize((size, size))


def test_near_finds_what_a_search_of_all_pairs_finds():
    rng = random.Random(0)
    known = [rng.getrandbits(64) for _ in range(300)]
    asked = [k ^ sum(1 << b for b in rng.sample(range(64), rng.randrange(10)))
             for k in known for _ in range(3)]
    for distance in (4, 6):
        near = HashIndex(distance)
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

    # Drawings that differ in a number look alike to a perceptual hash: another answer is another problem.
    another = row("another answer", "How large is it?", 1, 151, "JPEG") | {"answer": "another"}
    batch = [row("first", "How large is it?", 1), row("copy", "How large is  IT ?", 1, 150, "JPEG"), another,
             row("other question", "How small is it?", 1), row("third", "How red is it?", 1),
             row("other picture", "How large is it?", 2)]
    out = stages.drop_copies(Namespace())(batch)
    assert {row["id"]: row["why"] for row in out if "why" in row} == {
        "copy": "same question and picture as another", "third": "more than 2 turns of a picture"}


def test_what_is_in_a_benchmark_goes(one, tmp_path):
    from pyarrow import Table
    from pyarrow.parquet import write_table

    long = "In the figure a circle with centre O has a radius of five, how long is the chord AB?"
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    rows = [{"decoded_image": {"bytes": encoded(drawing(1)), "path": None}, "question": long}]
    write_table(Table.from_pylist(rows), folder / "test.parquet")
    encoded_file = folder / "two.png"
    drawing(2).save(encoded_file)
    (folder / "other.jsonl").write_text(json.dumps({"image_path": "two.png", "query": "How many?"}))
    batch = [one("Another question?", images=[encoded(drawing(1, 140), "JPEG")], id="picture"),
             one("Another question?", images=[encoded(drawing(2, 160))], id="picture by path"),
             one(f"<image>{long} Answer the question using a single word or phrase.", id="question"),
             one(long.replace("chord", "line"), id="almost the question"),
             one("How many?", images=[encoded(drawing(5))], id="short question"), one(id="free")]
    out = stages.drop_benchmarks(Namespace(benchmarks=folder, out=tmp_path))(batch)
    assert {row["id"]: row["why"] for row in out if "why" in row} == {
        "picture": "picture is in a benchmark", "picture by path": "picture is in a benchmark",
        "question": "question is in a benchmark", "almost the question": "question is in a benchmark"}
    each = {"rows": 1, "pictures": 1, "questions": 1}
    counts = json.loads((tmp_path / "benchmarks.json").read_text())
    assert counts == {"other.jsonl": each, "test.parquet": each}
    # Half a benchmark would let its other half through.
    (folder / "third.jsonl").write_text(json.dumps({"image_path": "missing.png", "reasoning_q": "How many?"}))
    with pytest.raises(DataError, match="third.jsonl: .*'pictures that cannot be read': 1"):
        stages.drop_benchmarks(Namespace(benchmarks=folder, out=tmp_path))
    (folder / "third.jsonl").rename(folder / "third.tsv")
    with pytest.raises(DataError, match="third.tsv is neither parquet nor JSONL"):
        stages.drop_benchmarks(Namespace(benchmarks=folder, out=tmp_path))
    (folder / "third.tsv").unlink()
    assert len(grams(long)) == len(long.split()) - 7
    (folder / "broken.jsonl").write_text("{")
    with pytest.raises(DataError, match="broken.jsonl cannot be read"):
        benchmark_index(folder, 6, str)


def test_flat_pictures_have_one_hash():
    assert len({perceptual_hash(Image.new("RGB", (50, 40), (x, 3, 9))) for x in range(0, 256, 15)}) == 1
