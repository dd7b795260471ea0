"""The built-in world: pictures, questions, a teacher's references, context pairs, and two verifiers.

It exists so that the whole method runs for real on two CPU cores in minutes.  It was BUILT to contain the two
bottlenecks of the paper (section 2.2), so it can show that the code and the mechanism work; it cannot show that
they matter on real data.

A picture is a 3 x 3 grid of coloured shapes.  Families of questions:

    ordinary   how many red plus blue ?                    several steps, mostly solved by the warm start
    shortcut   is red plus blue plus circle over 6 ?       93 % yes: "looks so ; yes" is right without any reasoning
    balanced   such questions, 41 % yes, wider margins     held out only; exposes the shortcut
    hard       how many dax plus red ?                     `dax` is a made-up word about which the warm start holds a
                                                           misconception (it takes it for circle; it is triangle)

A response states steps, then the answer: "red 3 ; blue 2 ; plus 5 ; \\boxed{5}".  The teacher's references leap:
they leave out the last count, which the small policy cannot do in its head.  The verifier judges meaning: the right
answer, the result stated, and every stated claim true of the picture, in any order or style.

    python toy.py show [--n 8]                               prints questions and references
    python toy.py data DIR [--references half|canonical]     writes the world as ordinary data files
    python toy.py finevision DIR [--size 24]                 a small data set in the shape of FineVision, faults and all

The policy that starts here comes from warm_start.py.
"""

import argparse
import io
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from answers import boxed
from data import Query, save_queries
from pairs import ContextPair, save_pairs
from reward import Verdict, answers_match, has_revision_cue

COLOURS = {"red": (214, 60, 55), "green": (60, 160, 75), "blue": (60, 95, 205), "yellow": (225, 185, 45)}
SHAPES = ("circle", "square", "triangle")
NOUNS = (*COLOURS, *SHAPES)
OPERATORS = {"plus": lambda a, b: a + b, "minus": lambda a, b: abs(a - b), "max": max, "min": min}

# Made-up words.  About the first five the warm start was taught something false.  The others never occur in a single
# question: they stand in stage-2 conversations only, with a meaning that is drawn anew for each conversation.
HIDDEN = {"dax": "triangle", "wug": "blue", "fep": "green", "zop": "minus", "vek": "min"}
MISCONCEPTION = {"dax": "circle", "wug": "red", "fep": "square", "zop": "plus", "vek": "max"}
NONCE_NOUNS = ("bim", "lor", "nof", "gur", "sep", "hib")
NONCE_OPERATORS = ("tav", "pell", "sim", "rok")
MADE_UP = {*HIDDEN, *NONCE_NOUNS, *NONCE_OPERATORS}

SHARES = {"ordinary": 0.30, "shortcut": 0.35, "hard": 0.35}      # of the training queries
COUNTED = set(SHARES)                                           # families in the overall accuracy
YES_SHARE = 0.93                                                 # of the shortcut family
CELL = 32                                                        # pixels; one image token per cell
PREAMBLES = ("thank you for your review ;", "my earlier answer was wrong ;")     # warm start's bad habits in stage 2


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


# ------------------------------------------------------------------------------------- questions and references

@dataclass
class Problem:
    """A question about a scene, as words; meanings are looked up in HIDDEN, MISCONCEPTION or any other reading."""

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
                "answer": final(value, self.threshold), "words": self.words, "operator_word": self.operator,
                "threshold": self.threshold}


FACTS = {"nouns", "counts", "operator", "value", "answer", "words", "operator_word", "threshold"}


def combine(operator: str, counts: list[int]) -> int:
    """Two counts under any operator; three are always added."""
    return sum(counts) if len(counts) == 3 else OPERATORS[operator](*counts)


def final(value: int, threshold: int | None) -> str:
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
        if family == "balanced":          # wide margins, so that an honest but slightly wrong count may still be right
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
            words[1 - place] = rng.choice([n for n in NOUNS if n not in (HIDDEN[made_up], MISCONCEPTION[made_up])])
    return Problem(scene, words, operator)


def make_query(family: str, index: int, split: str, references: str) -> Query:
    rng = random.Random(f"{split}-{family}-{index}")
    problem = draw_problem(family, rng)
    facts = problem.facts(HIDDEN)
    return Query(id=f"{split}-{family}-{index}", images=[render(problem.scene, rng)], question=problem.question,
                 solution=solve(facts, references), answer=facts["answer"], family=family, facts=facts)


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
    """Two scenes that differ in one cell, which decides between one and none of a colour; each is drawn with a jitter
    of its own.  The answer is always 1: what has to be read is the question."""
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


# ------------------------------------------------------------------------------------- a sample for data building

def finevision_sample(folder: Path, size: int = 24) -> None:
    """Three subsets in the shape of FineVision, with what real ones are known for: several turns for a picture, the
    phrases of their sources, fields in another order, ratings here and none there, double and bad rows.

    `size`: sound rows of each subset.  Only the column `facts` is ours: it is for the exact verifier.
    """
    def conversation(queries: list[Query], texts: list[tuple[str, str]], **more) -> dict:
        return {"images": [{"bytes": queries[0].images[0], "path": None}],
                "facts": [json.dumps(query.facts) for query in queries],
                "texts": [{"user": user, "assistant": assistant} for user, assistant in texts], **more}

    # Worked solutions, two turns for every third picture, ratings.
    rows = []
    for i in range(size):
        rng = random.Random(f"sample-worked-{i}")
        families = (("hard", "ordinary")[i % 2], "ordinary")[:2 if i % 3 == 0 else 1]
        problems = [draw_problem(family, rng) for family in families]
        image = render(problems[0].scene, rng)
        for problem in problems:
            problem.scene = problems[0].scene
        queries = [Query("", [image], p.question, solve(p.facts(HIDDEN)), "", facts=p.facts(HIDDEN)) for p in problems]
        rows.append(conversation(queries, [(f"<image>\n{q.question}", q.solution) for q in queries],
                                 ratings=[5] * len(queries)))
    rows[1]["ratings"] = [2]
    with Image.open(io.BytesIO(rows[3]["images"][0]["bytes"])) as picture:      # the same picture in another file
        file = io.BytesIO()
        picture.resize((120, 120)).save(file, "JPEG", quality=80)
    rows.append(rows[3] | {"images": [{"bytes": file.getvalue(), "path": "copy.jpg"}]})
    write_subset(folder / "toy_worked", rows)

    # Options to choose from, in the words of two families of sources; no ratings; assistant before user.
    rows = []
    for i in range(size):
        query, rng = make_query("ordinary", i, "choices", "canonical"), random.Random(i)
        values = rng.sample([v for v in range(28) if v != int(query.answer)], 3)
        values.insert(rng.randrange(4), int(query.answer))
        right = "ABCD"[values.index(int(query.answer))]
        if i % 2:
            user = ("Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the "
                    f"end.\nQuestion: {query.question}\nChoices:\n")
            user += "\n".join(f"({name}) {value}" for name, value in zip("ABCD", values))
            assistant = f"The answer is {right}"
        else:
            user = ("First perform reasoning, then finally select the question from the choices in the following "
                    f"format: Answer: xxx.\nQuestion:{query.question}\nChoices:\n")
            user += "\n".join(f"{name}:{value}" for name, value in zip("ABCD", values))
            steps = query.solution.split(" ; \\boxed")[0]
            assistant = f"{steps}\nTherefore, the answer is: {right}.\nAnswer:{right}"
        rows.append(conversation([query], [(f"[image] {user}", assistant)]))
    write_subset(folder / "toy_choices(mathv360k)", rows, ("assistant", "user"))

    # Short answers, which need a teacher; and rows that no one can use.
    queries = [make_query(("ordinary", "shortcut")[i % 2], i, "short", "half") for i in range(size + 6)]
    rows = [conversation([q], [(f"<image_1>{q.question}\nAnswer the question using a single word or phrase.",
                                f"{q.answer}.")], ratings=[4] if i % 2 else []) for i, q in enumerate(queries)]
    broken = rows[-1]["images"][0]["bytes"]
    rows[-1]["images"] = [{"bytes": broken[:len(broken) // 2], "path": None}]
    rows[-2]["images"] *= 2
    rows[-3]["images"] = []
    rows[-4]["images"] = [{"bytes": None, "path": "elsewhere.png"}]
    rows[-5]["texts"] = [{"user": "<image> What does it show ?", "assistant": "It shows many things of many kinds."}]
    rows[-6]["texts"] = []
    write_subset(folder / "toy_short+vqa", rows)


def write_subset(folder: Path, rows: list[dict], fields: tuple[str, str] = ("user", "assistant")) -> None:
    """One parquet file, typed as FineVision's."""
    import pyarrow
    from pyarrow.parquet import write_table

    folder.mkdir(parents=True, exist_ok=True)
    text = pyarrow.struct([(name, pyarrow.string()) for name in fields])
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"images": ([r["images"] for r in rows], image), "texts": ([r["texts"] for r in rows], text),
               "facts": ([r["facts"] for r in rows], pyarrow.string())}
    if "ratings" in rows[0]:
        columns |= {f"{axis}_ratings": ([r["ratings"] for r in rows], pyarrow.int64()) for axis in
                    ("relevance", "image_correspondence", "visual_dependency", "formatting")}
    table = {name: pyarrow.array(values, pyarrow.list_(kind)) for name, (values, kind) in columns.items()}
    table["source"] = pyarrow.array([folder.name] * len(rows))
    write_table(pyarrow.table(table), folder / "train-00000-of-00001.parquet", row_group_size=8)


# ---------------------------------------------------------------------------------------------- exact verifier

NO_CLAIM = {"looks so", *(p.rstrip(" ;") for p in PREAMBLES)}       # says nothing of the picture
CLAIM = re.compile(r"^([a-z]+) (\d+)$")


def knows(query: Query) -> bool:
    """Whether the exact verifier can judge responses to this query."""
    return bool(query.facts.get("rule")) or FACTS <= set(query.facts)


def stated(text: str) -> str:
    """Final answer of a response of this world: what is in the last box, "" without one."""
    return (boxed(text) or "").strip()


class ToyVerifier:
    """Judges from what the picture shows.  Same type as a language-model judge: (queries, texts) -> verdicts.

    context 'solution'  right answer, the result stated, and every stated claim true of the picture
    context 'answer'    right answer is enough; the report cannot name a step
    context 'none'      the response agrees with itself
    A report names what is wrong and never what is right.
    """

    def __init__(self, context: str = "solution"):
        self.context = context

    def judge(self, queries: list[Query], texts: list[str]) -> list[Verdict]:
        return [self.judge_one(query, text) for query, text in zip(queries, texts, strict=True)]

    def judge_one(self, query: Query, text: str) -> Verdict:
        if query.facts.get("rule"):                      # a context pair as a query: the letter is all there is
            return Verdict.judged(answers_match(query, text))
        return self.judge_facts(query.facts, text)

    def judge_facts(self, facts: dict, text: str) -> Verdict:
        answer = stated(text)
        steps = [s.strip() for s in re.sub(r"\\boxed\{[^{}]*\}", "", text).split(";") if s.strip()]
        steps = [s for s in steps if s not in NO_CLAIM]
        claims = [CLAIM.match(step) for step in steps]
        results = [int(c[2]) for c in claims if c and c[1] in OPERATORS]
        if has_revision_cue(text) or (answer and results and answer != final(results[-1], facts["threshold"])):
            return Verdict.judged(correct=False, consistent=False)
        if self.context == "none":
            return Verdict.judged(bool(answer and results), report="the steps do not lead to an answer")
        if self.context == "answer":
            return Verdict.judged(answer == facts["answer"], report="the final answer is wrong")
        errors = [] if results else ["no result is shown"]
        for number, (step, claim) in enumerate(zip(steps, claims), start=1):
            error = self._error(facts, claim, [int(c[2]) for c in claims[:number - 1] if c and c[1] in NOUNS])
            if error:
                errors.append(f"step {number} is wrong : {error}")
        if answer != facts["answer"] and not errors:
            errors = ["no final answer" if not answer else "the final answer does not follow"]
        return Verdict.judged(correct=not errors, report=" , ".join(errors))

    def _error(self, facts: dict, claim, counts: list[int]) -> str:
        """What is wrong with one step, or "".  A result that follows from wrong counts is not a second mistake."""
        if not claim:
            return "it is not clear"
        word, number = claim[1], int(claim[2])
        if word in NOUNS:
            if word not in facts["nouns"]:
                misread = [w for w in facts["words"] if w in MADE_UP]
                return f"{misread[0]} is not {word}" if misread else f"{word} is not asked"
            true = facts["counts"][facts["nouns"].index(word)]
            return "" if number == true else f"{word} is not {number}"
        if word not in OPERATORS:
            return "it is not clear"
        if word != facts["operator"]:
            misread = facts["operator_word"]
            return f"{misread} is not {word}" if misread not in OPERATORS else f"{word} is not asked"
        true = combine(word, counts) if len(counts) == len(facts["counts"]) else facts["value"]
        return "" if number == true else f"{word} is not {number}"


class Onlooker:
    """A judge with eyes and beliefs of its own, behind the same prompt as any language model: batch(messages) -> texts.

    It sees the picture as a checkpoint describes it (at T = 1: sometimes wrongly), takes made-up words for what the
    warm start takes them, and believes the prompt more than itself.  Told the answer only, it can tell that it is
    wrong, not where.
    """

    def __init__(self, engine, processor):
        self.engine, self.processor, self.seen = engine, processor, {}

    def batch(self, conversations: list[list[dict]]) -> list[str]:
        from sampler import Request, seed_of

        images = {m[0]["content"][0]["image"] for m in conversations} - self.seen.keys()
        requests = [Request(self.processor.prompt(Query("look", [image], "describe ?", "-", "-")),
                            [seed_of("onlooker", image)]) for image in images]
        for image, (sample,) in zip(images, self.engine.generate(requests, temperature=1.0), strict=True):
            cells = [tuple(cell.split()) for cell in sample.text.split(" ; ")]
            self.seen[image] = tuple(cell if len(cell) == 2 else None for cell in cells)
        return [self.verdict(m[0]["content"][0]["image"], m[0]["content"][-1]["text"]) for m in conversations]

    def verdict(self, image, text: str) -> str:
        question, response = read_judge_prompt(text)
        told = {level: found[1] for level in ("answer", "solution")
                if (found := re.search(rf"\nReference {level}:\n(.*)\n", text))}
        facts = self.believe(self.seen[image], question, told.get("solution"))
        if told.get("answer", facts["answer"]) != facts["answer"]:
            verdict = ToyVerifier("answer").judge_facts(facts | {"answer": told["answer"]}, response)
        else:
            verdict = ToyVerifier("solution").judge_facts(facts, response)
        return json.dumps({"Analysis": "", "Self-Consistency": int(verdict.consistent),
                           "Correctness": int(verdict.correct), "Mistake Report": verdict.report})

    @staticmethod
    def believe(scene, question: str, solution: str | None) -> dict:
        """Facts by one's own eyes and reading, overruled by what a solution states."""
        words, threshold = re.fullmatch(r"(?:how many|is) (.*?)(?: over (\d+))? \?", question).groups()
        nouns, operator = words.split()[::2], words.split()[1]
        facts = Problem(scene, nouns, operator, int(threshold) if threshold else None).facts(MISCONCEPTION)
        claims = [c for c in map(CLAIM.match, (solution or "").split(" ; ")) if c]
        for place, claim in enumerate(c for c in claims if c[1] in NOUNS):
            facts["nouns"][place], facts["counts"][place] = claim[1], int(claim[2])
        result = next((c for c in claims if c[1] in OPERATORS), None)
        if result:
            facts["operator"], facts["value"] = result[1], int(result[2])
            facts["answer"] = final(facts["value"], facts["threshold"])
        return facts


def read_judge_prompt(text: str) -> tuple[str, str]:
    """-> (question, response) of a judge's prompt: the response stands between the two equal boundary lines."""
    question = re.search(r"\n\nQuestion:\n(.*?)\n\n(?:Reference|Generated solution:)", text, re.DOTALL)[1]
    boundary = re.search(r"\n(=====[0-9a-f]{16}=====)\n\n[^\n]*Your JSON object:$", text)[1]
    return question, text.split(f"\n{boundary}\n")[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show")
    show.add_argument("--n", type=int, default=8)
    data = commands.add_parser("data")
    data.add_argument("folder", type=Path)
    data.add_argument("--references", choices=("half", "canonical"), default="half")
    sample = commands.add_parser("finevision")
    sample.add_argument("folder", type=Path)
    sample.add_argument("--size", type=int, default=24)
    args = parser.parse_args()
    if args.command == "finevision":
        finevision_sample(args.folder, args.size)
        print(f"wrote {', '.join(sorted(f.name for f in args.folder.iterdir()))} to {args.folder}")
    elif args.command == "data":
        save_queries(train_queries(references=args.references), args.folder / "train.jsonl")
        save_queries(heldout_queries(), args.folder / "heldout.jsonl")
        save_pairs(train_pairs(212), args.folder / "pairs.jsonl")               # 15 % of what is trained on
        save_pairs(heldout_pairs(), args.folder / "heldout_pairs.jsonl")
        print(f"wrote train, heldout, pairs and heldout_pairs (.jsonl) to {args.folder}")
    else:
        for family in ("ordinary", "shortcut", "balanced", "hard"):
            for i in range(args.n // 4):
                query = make_query(family, i, "train", "half")
                print(f"{family:9s} {query.question:45s} -> {query.solution}")


if __name__ == "__main__":
    main()
