"""The built-in world: pictures, questions, a teacher's references, context pairs.

It exists so that the whole method runs for real on two CPU cores in minutes.  It was BUILT to contain the two
bottlenecks of the paper (section 2.2), so it can show that the code and the mechanism work; it cannot show
that they matter on real data.

A picture is a 3 x 3 grid of coloured shapes.  Families of questions:

    ordinary   how many red plus blue ?                 several steps, mostly solved by the warm start
    shortcut   is red plus blue plus circle over 6 ?    93 % yes: "looks so ; yes" is right without reasoning
    balanced   such questions, 41 % yes, wider margins  held out only; exposes the shortcut
    hard       how many dax plus red ?                  the made-up word `dax` is triangle; the warm start
                                                        takes it for circle, a misconception

A response states steps, then the answer: "red 3 ; blue 2 ; plus 5 ; \\boxed{5}".  The teacher's references
leap: they leave out the last count, which the small policy cannot do in its head.
"""

import io
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from context_pairs.pairs import ContextPair
from data import Query

CHECKPOINT = str(Path(__file__).resolve().parent / "checkpoint")        # the warm start, see warm_start.py

# The second user turn of stage 2, in words that are one token each for the checkpoint's tokenizer; {report}
# is filled in.  Without a report the second part is said.
RETRY_PROMPT = """\
A reviewer found mistakes : {report} . Solve it again from the start . Do not mention the review .
---
Your answer is wrong . Solve it again from the start . Do not mention this ."""

COLOURS = {"red": (214, 60, 55), "green": (60, 160, 75), "blue": (60, 95, 205), "yellow": (225, 185, 45)}
SHAPES = ("circle", "square", "triangle")
NOUNS = (*COLOURS, *SHAPES)
OPERATORS = {"plus": lambda a, b: a + b, "minus": lambda a, b: abs(a - b), "max": max, "min": min}

# Made-up words.  About the first five the warm start was taught something false.  The others never occur in a
# single question: they stand in stage-2 conversations only, with a meaning that is drawn anew for each
# conversation.
HIDDEN = {"dax": "triangle", "wug": "blue", "fep": "green", "zop": "minus", "vek": "min"}
MISCONCEPTION = {"dax": "circle", "wug": "red", "fep": "square", "zop": "plus", "vek": "max"}
NONCE_NOUNS = ("bim", "lor", "nof", "gur", "sep", "hib")
NONCE_OPERATORS = ("tav", "pell", "sim", "rok")
MADE_UP = {*HIDDEN, *NONCE_NOUNS, *NONCE_OPERATORS}

SHARES = {"ordinary": 0.30, "shortcut": 0.35, "hard": 0.35}      # of the training queries
COUNTED = set(SHARES)                                            # families in the overall accuracy
YES_SHARE = 0.93                                                 # of the shortcut family
CELL = 32                                                        # pixels; one image token per cell
PREAMBLES = ("thank you for your review ;", "my earlier answer was wrong ;")     # bad habits in stage 2


# ------------------------------------------------------------------------------------------------ pictures

def draw_scene(rng: random.Random) -> tuple:
    """Nine cells, each empty or (colour, shape); skewed per picture so that counts vary."""
    colours = [rng.random() ** 2 + 0.05 for _ in COLOURS]
    shapes = [rng.random() ** 2 + 0.05 for _ in SHAPES]
    fill = rng.uniform(0.5, 1.0)
    return tuple((rng.choices(list(COLOURS), colours)[0], rng.choices(SHAPES, shapes)[0])
                 if rng.random() < fill else None for _ in range(9))


def render(scene, rng: random.Random) -> bytes:
    """PNG of 96 x 96 pixels, with jittered shade, size and place."""
    picture = Image.new("RGB", (3 * CELL, 3 * CELL), (238, 238, 232))
    pen = ImageDraw.Draw(picture)
    for i, cell in enumerate(scene):
        if cell is None:
            continue
        colour = tuple(max(0, min(255, c + rng.randint(-22, 22))) for c in COLOURS[cell[0]])
        r = rng.uniform(8.5, 12.5)
        x = (i % 3 + 0.5) * CELL + rng.uniform(-2.5, 2.5)
        y = (i // 3 + 0.5) * CELL + rng.uniform(-2.5, 2.5)
        if cell[1] == "circle":
            pen.ellipse([x - r, y - r, x + r, y + r], fill=colour)
        elif cell[1] == "square":
            pen.rectangle([x - r * .9, y - r * .9, x + r * .9, y + r * .9], fill=colour)
        else:
            pen.polygon([(x, y - r), (x - r, y + r * .85), (x + r, y + r * .85)], fill=colour)
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def count(scene, noun: str) -> int:
    return sum(cell is not None and noun in cell for cell in scene)


# ----------------------------------------------------------------------------------- questions and references

@dataclass
class Problem:
    """A question about a scene, as words; meanings are looked up in HIDDEN, MISCONCEPTION or any other
    reading."""

    scene: tuple
    words: list[str]                 # two or three nouns, possibly made-up
    operator: str                    # possibly made-up
    threshold: int | None = None     # "is ... over k ?", yes or no; None: "how many ... ?"

    @property
    def question(self) -> str:
        terms = f" {self.operator} ".join(self.words)
        return f"how many {terms} ?" if self.threshold is None else f"is {terms} over {self.threshold} ?"

    def facts(self, reading: dict[str, str]) -> dict:
        """What is so, if made-up words mean what `reading` says."""
        nouns = [reading.get(w, w) for w in self.words]
        operator = reading.get(self.operator, self.operator)
        counts = [count(self.scene, n) for n in nouns]
        value = combine(operator, counts)
        return {"nouns": nouns, "counts": counts, "operator": operator, "value": value,
                "answer": answer_text(value, self.threshold), "words": self.words,
                "operator_word": self.operator, "threshold": self.threshold}


FACTS = {"nouns", "counts", "operator", "value", "answer", "words", "operator_word", "threshold"}


def combine(operator: str, counts: list[int]) -> int:
    """Two counts under any operator; three are always added."""
    return sum(counts) if len(counts) == 3 else OPERATORS[operator](*counts)


def answer_text(value: int, threshold: int | None) -> str:
    return str(value) if threshold is None else ("yes" if value > threshold else "no")


def solve(facts: dict, style: str = "canonical") -> str:
    """A worked solution.  `half` leaps over the last count; `guess` states nothing."""
    if style == "guess":
        return f"looks so ; \\boxed{{{facts['answer']}}}"
    steps = [f"{n} {c}" for n, c in zip(facts["nouns"], facts["counts"])]
    if style == "half":
        steps.pop()
    return " ; ".join([*steps, f"{facts['operator']} {facts['value']}", f"\\boxed{{{facts['answer']}}}"])


def draw_problem(family: str, rng: random.Random, scenes: list | None = None) -> Problem:
    scene = rng.choice(scenes) if scenes else draw_scene(rng)
    if family in ("shortcut", "balanced"):
        problem = Problem(scene, rng.sample(NOUNS, 3), "plus")
        total = problem.facts(HIDDEN)["value"]
        if family == "balanced":      # wide margins: an honest but slightly wrong count may still be right
            yes, margin = rng.random() < 0.5, rng.randint(1, 4)
        else:
            yes, margin = rng.random() < YES_SHARE, rng.choices([1, 2], [0.7, 0.3])[0]
        problem.threshold = total - margin if yes else total + margin - 1
        return problem if problem.threshold >= 0 else draw_problem(family, rng, scenes)
    words, operator = rng.sample(NOUNS, 2), rng.choice(list(OPERATORS))
    if family == "hard":
        made_up = rng.choice(list(HIDDEN))
        if HIDDEN[made_up] in OPERATORS:
            operator = made_up
        else:
            place = rng.randrange(2)
            words[place] = made_up
            readings = (HIDDEN[made_up], MISCONCEPTION[made_up])
            words[1 - place] = rng.choice([n for n in NOUNS if n not in readings])
    return Problem(scene, words, operator)


def make_query(family: str, index: int, split: str, references: str) -> Query:
    rng = random.Random(f"{split}-{family}-{index}")
    problem = draw_problem(family, rng)
    facts = problem.facts(HIDDEN)
    return Query(id=f"{split}-{family}-{index}", images=[render(problem.scene, rng)],
                 question=problem.question, solution=solve(facts, references), answer=facts["answer"],
                 family=family, facts=facts)


def train_queries(size: int = 1200, references: str = "half") -> list[Query]:
    """The training pool; the same for every run, whatever its seed."""
    return [make_query(family, i, "train", references)
            for family, share in SHARES.items() for i in range(round(size * share))]


def heldout_queries(size: int = 128) -> list[Query]:
    """`size` new pictures for each family, the balanced twin included."""
    return [make_query(family, i, "heldout", "half")
            for family in ("ordinary", "shortcut", "balanced", "hard") for i in range(size)]


# ---------------------------------------------------------------------------------------------- context pairs

PAIR_PROMPT = "<image> <image> how many {noun} ? {answer} . ?"


def make_pair(index: int, split: str) -> ContextPair:
    """Two scenes that differ in one cell, which decides between one and none of a colour; each is drawn with
    a jitter of its own.  The answer is always 1: what has to be read is the question."""
    rng = random.Random(f"{split}-pair-{index}")
    while True:
        scene, noun = draw_scene(rng), rng.choice(list(COLOURS))
        if count(scene, noun) == 1:
            break
    place = next(i for i, cell in enumerate(scene) if cell and noun in cell)
    other = rng.choice([None, *((c, s) for c in COLOURS for s in SHAPES if noun not in (c, s))])
    without = scene[:place] + (other,) + scene[place + 1:]
    question, answer = f"how many {noun} ?", "1"
    return ContextPair(f"{split}-pair-{index}", question, answer, render(scene, rng), render(without, rng),
                       prompt=PAIR_PROMPT.format(noun=noun, answer=answer))


def train_pairs(size: int = 2000) -> list[ContextPair]:
    return [make_pair(i, "train") for i in range(size)]


def heldout_pairs(size: int = 256) -> list[ContextPair]:
    return [make_pair(i, "heldout") for i in range(size)]
