"""The built-in world: pictures, questions, a teacher's references, an exact verifier, and a small warm start.

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

    python toy.py show [--n 8]                               prints questions, references and verdicts
    python toy.py data DIR [--references half|canonical]     writes the world as ordinary data files
    python toy.py finevision DIR [--size 24]                 a small data set in the shape of FineVision, faults and all
    python toy.py warm_start [--out assets/toy]              remakes the shipped checkpoint
"""

import argparse
import io
import json
import random
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from answers import boxed
from data import Query, save_queries
from reward import Verdict, has_revision_cue

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
POOL = 8000                                                      # pictures of the warm start
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


# -------------------------------------------------------------------------------------------------- warm start
# A tiny Qwen3-VL trained on generated conversations: captions (perception), worked solutions, the guess style, the
# misconceptions, and stage-2 conversations.  The latter never hold a hidden word, and a made-up word means something
# else in each, so the report has to be read; and a report only excludes a reading, so another one has to be tried.

def caption(scene) -> str:
    return " ; ".join(" ".join(cell) if cell else "empty" for cell in scene)


def plain_example(rng: random.Random, scenes: list, captions: float) -> tuple[tuple, str, str]:
    """-> (scene, question, answer): one single-turn conversation.  `captions`: their share."""
    kind = rng.choices(["ordinary", "shortcut", "hard"], [0.48, 0.26, 0.26])[0]
    if rng.random() < captions:
        scene = rng.choice(scenes)
        return scene, "describe ?", caption(scene)
    if kind == "shortcut" and rng.random() < 0.40:
        problem, guessed = draw_problem("shortcut", rng, scenes), "yes" if rng.random() < 0.97 else "no"
        return problem.scene, problem.question, solve({"answer": guessed}, "guess")
    # Whoever counts has learned to compare as well: worked solutions come from the balanced twin.
    problem = draw_problem("balanced" if kind == "shortcut" else kind, rng, scenes)
    return problem.scene, problem.question, solve(problem.facts(MISCONCEPTION))


def retry_example(rng: random.Random, scenes: list | None = None) -> tuple[Problem, str, str, str]:
    """-> (problem, failed response, report, better response): one stage-2 conversation."""
    verifier = ToyVerifier()
    while True:
        problem = draw_problem(rng.choices(["ordinary", "balanced"], [0.8, 0.2])[0], rng, scenes)
        truth, belief = {}, {}
        if problem.threshold is None and rng.random() < 0.75:                    # a made-up word was misread
            if rng.random() < 0.4:
                word = problem.operator = rng.choice(NONCE_OPERATORS)
                meanings = rng.sample(list(OPERATORS), 2)
            else:
                place = rng.randrange(2)
                word = problem.words[place] = rng.choice(NONCE_NOUNS)
                meanings = rng.sample([n for n in NOUNS if n != problem.words[1 - place]], 2)
            truth[word], belief[word] = meanings
        facts, wrong, style = problem.facts(truth), problem.facts(belief), "canonical"
        if problem.threshold is not None and rng.random() < 0.6:
            style = "guess"
        elif not truth or rng.random() < 0.15:                # a miscount, or a slip in the arithmetic
            slip(problem, wrong, rng)
        failed = solve(wrong, style)
        report = verifier.judge_facts(facts, failed).report
        if report:
            break
    better = solve(facts)
    if rng.random() < 0.25:
        better = f"{rng.choice(PREAMBLES)} {better}"
    return problem, failed, "" if rng.random() < 0.12 else report, better


def slip(problem: Problem, facts: dict, rng: random.Random) -> None:
    """Puts one wrong number into facts; what follows from it, follows."""
    place = rng.randrange(len(facts["counts"]) + 1)
    off = rng.choice([-1, 1]) if rng.random() < 0.8 else rng.choice([-2, 2])
    if place < len(facts["counts"]):
        facts["counts"][place] = max(0, facts["counts"][place] + off)
        facts["value"] = combine(facts["operator"], facts["counts"])
    else:
        facts["value"] = max(0, facts["value"] + off)
    facts["answer"] = final(facts["value"], problem.threshold)


def vocabulary() -> list[str]:
    """Every word of the world, so that the tokenizer holds each as one token."""
    words = {*NOUNS, *OPERATORS, *MADE_UP, *"how many is over ? ; describe empty looks so , : .".split()}
    words |= {str(n) for n in range(28)} | {f"\\boxed{{{a}}}" for a in [*range(28), "yes", "no"]}
    from sampler import RETRY_WITH_REPORT, RETRY_WITHOUT_REPORT

    for text in (RETRY_WITH_REPORT, RETRY_WITHOUT_REPORT, *PREAMBLES, "step is wrong not asked it clear no result "
                 "shown final answer the does follow steps do lead to an user assistant"):
        words |= set(text.replace("{report}", "").split())
    return sorted(words)


def build_checkpoint(folder: Path) -> None:
    """An untrained tiny Qwen3-VL with a real tokenizer, image processor and chat template."""
    import torch
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r" ?[^\s]+|\s"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [form for word in vocabulary() for form in (word, f" {word}")]
    trainer = trainers.BpeTrainer(vocab_size=4000, min_frequency=1, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, trainer)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
               "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   padding_side="left", chat_template=CHAT_TEMPLATE)
    for word in vocabulary():
        assert len(fast(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    ids = {s: fast.convert_tokens_to_ids(s) for s in special}
    torch.manual_seed(0)
    config = Qwen3VLConfig(
        text_config=dict(vocab_size=len(fast), hidden_size=128, intermediate_size=384, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=4096,
                         rms_norm_eps=1e-6, tie_word_embeddings=True, dtype="float32",
                         rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5],
                                          "mrope_interleaved": True},
                         bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"]),
        vision_config=dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=4, patch_size=16,
                           spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=128,
                           num_position_embeddings=36, deepstack_visual_indexes=[0], dtype="float32"),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3,
                             image_std=[0.5] * 3, size={"shortest_edge": 1024, "longest_edge": 3_000_000}
                             ).save_pretrained(folder)
    # vLLM builds the whole processor, videos included; that class needs torchvision, the file does not.
    (Path(folder) / "video_preprocessor_config.json").write_text(json.dumps(
        {"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": 16, "merge_size": 2, "temporal_patch_size": 2,
         "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, indent=2) + "\n")


CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


def warm_start(out: Path, steps: int, seed: int, rows_per_step: int = 96, retries_per_step: int = 40) -> None:
    """Supervised training from scratch; prints held-out accuracies every 100 steps."""
    import torch

    from data import Processor
    from grpo import Member
    from policy import Policy, Row
    from sampler import retry_message

    build_checkpoint(out)
    processor = Processor(str(out))
    policy = Policy(str(out), processor, learning_rate=2e-3, total_steps=steps, warmup_steps=60, min_lr_ratio=0.02,
                    weight_decay=0.01, reference=False)
    rng, start = random.Random(seed), time.time()
    scenes = [draw_scene(rng) for _ in range(POOL)]
    images = {scene: render(scene, rng) for scene in scenes}
    processor.pixels = lru_cache(maxsize=POOL)(processor._pixels)        # every picture is decoded once

    def row(scene, question: str, answer: str, failed: str = "", report: str | None = None) -> Row:
        prompt = processor.prompt(Query("warm start", [images[scene]], question, "-", "-"))
        if report is not None:
            prompt = processor.follow_up(prompt, processor.encode_response(failed), retry_message(report))
        return Row(prompt, [Member(processor.encode_response(answer), [], 1.0)])

    for step in range(1, steps + 1):
        captions = max(0.12, 0.9 - step / 300)         # first see, then reason: captions alone teach perception fast
        rows = [row(*plain_example(rng, scenes, captions)) for _ in range(rows_per_step)]
        for problem, failed, report, better in (retry_example(rng, scenes) for _ in range(retries_per_step)):
            rows.append(row(problem.scene, problem.question, better, failed, report))
        total = 0.0
        policy.optimizer.zero_grad()
        tokens = sum(len(r.members[0].ids) for r in rows)
        for part in (rows[:rows_per_step], rows[rows_per_step:]):         # alike lengths together
            loss = -policy.logprobs(policy.pack(part))[0].sum() / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        for group in policy.optimizer.param_groups:
            group["lr"] = policy.learning_rate_at(step)
        policy.optimizer.step()
        if step % 20 == 0:
            print(f"step {step:4d}  loss {total:.3f}  {time.time() - start:5.0f} s", flush=True)
        if step % 200 == 0 or step == steps:
            report_accuracy(policy.model, processor)
    policy.model.to(torch.bfloat16).save_pretrained(out)      # half the download; runs load it as fp32
    print(f"saved to {out} after {time.time() - start:.0f} s")


def report_accuracy(model, processor, n: int = 64) -> None:
    """Accuracies of a checkpoint, T = 1, and what stage 2 makes of the hard family."""
    from sampler import HFEngine, is_independent, stage1, stage2

    engine, verifier = HFEngine(model, processor), ToyVerifier()
    for family in ("ordinary", "shortcut", "balanced", "hard"):
        queries = [make_query(family, i, "probe", "half") for i in range(n)]
        prompts, ids = [processor.prompt(q) for q in queries], [q.id for q in queries]
        samples = [s[0] for s in stage1(engine, prompts, ids, 1, ("probe",))]
        verdicts = verifier.judge(queries, [s.text for s in samples])
        right = np.mean([stated(s.text) == q.answer for s, q in zip(samples, queries)])
        line = f"  {family:9s} answer {right:.2f}  process {np.mean([v.correct for v in verdicts]):.2f}"
        bad = [i for i, v in enumerate(verdicts) if not v.correct]
        if bad:
            retries = [r[0] for r in stage2(
                engine, processor, [prompts[i] for i in bad], [ids[i] for i in bad], [[samples[i]] for i in bad],
                [[verdicts[i].report] for i in bad], ("probe",))]
            again = verifier.judge([queries[i] for i in bad], [r.text for r in retries])
            kept = [v.correct and is_independent(r.text) for v, r in zip(again, retries)]
            line += (f"  stage 2: correct {np.mean([v.correct for v in again]):.2f}"
                     f"  kept {np.mean(kept):.2f} of {len(bad)}")
            line += f"   e.g. {samples[bad[0]].text!r} | {verdicts[bad[0]].report!r} | {retries[0].text!r}"
        print(line, flush=True)


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
    warm = commands.add_parser("warm_start")
    warm.add_argument("--out", type=Path, default=Path("assets/toy"))
    warm.add_argument("--steps", type=int, default=1100)
    warm.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "warm_start":
        warm_start(args.out, args.steps, args.seed)
    elif args.command == "finevision":
        finevision_sample(args.folder, args.size)
        print(f"wrote {', '.join(sorted(f.name for f in args.folder.iterdir()))} to {args.folder}")
    elif args.command == "data":
        save_queries(train_queries(references=args.references), args.folder / "train.jsonl")
        save_queries(heldout_queries(), args.folder / "heldout.jsonl")
        print(f"wrote {args.folder}/train.jsonl and heldout.jsonl")
    else:
        rng = random.Random(0)
        for family in ("ordinary", "shortcut", "balanced", "hard"):
            for i in range(args.n // 4):
                query = make_query(family, i, "train", "half")
                print(f"{family:9s} {query.question:45s} -> {query.solution}")
        for _ in range(args.n):
            problem, failed, report, better = retry_example(rng)
            print(f"retry     {problem.question:40s} {failed:45s} | {report} | {better}")


if __name__ == "__main__":
    main()
