"""Stage 1: from a turn of a conversation (finevision.py) to a candidate for training, in six steps.

    shape        one picture, not about another turn, something that the verifier can judge
    question     without placeholders and what the source added; options apart
    answer       the final answer, and whether the solution comes to it
    rating       of the source, where there is one
    solution     native worked solution, or only an answer; nothing that cannot be a reference
    picture      decoded, bounded, named by its pixels; only of candidates that passed the text filters

A step changes the row and returns why it is dropped, or "".  Rows without ratings stay.
"""

import hashlib
import io
import re
from collections import Counter

from PIL import Image

from data import DataError, read_picture
from judges.answers import final_span, kind_of, letter, matches, yes_no
from judges.equality import normalise, number
from recipe.duplicates import perceptual_hash
from recipe.finevision import PLACEHOLDER
from reward import plain_text
from tools.files import write_whole
from training.parts import can_judge

MIN_RATING = {"relevance": 4, "image_correspondence": 4, "formatting": 4}
MIN_DEPENDENCY = {"math": 3, "vqa": 4}             # mathematics often prints the problem in the text
MAX_SOLUTION_WORDS = 1500
MIN_SIDE, MAX_SIDE = 28, 2048                      # pixels

MATHS = re.compile(r"geo|math|mavis|unigeo|intergps|clevr|raven|tabmwp|visualwebinstruct", re.IGNORECASE)
LICENCES = {"CoSyn": "ODC-BY 1.0", "scienceqa": "CC BY-NC-SA 4.0 (unchecked)"}         # by first letters
OTHER_TURN = re.compile(r"\b(?:previous|above|earlier|last) (?:question|answer|turn)\b", re.IGNORECASE)


# ----------------------------------------------------------------------------------------------------- shape

def check_shape(row: dict, args) -> str:
    if row.get("bad"):
        return row["bad"]
    if len(row["images"]) != 1:
        return "no picture" if not row["images"] else "several pictures"
    if row["turn"] and OTHER_TURN.search(row["question"]):
        return "about another turn"
    return "" if can_judge(args.verifier, row["facts"]) else "no facts for the exact verifier"


# -------------------------------------------------------------------------------------------------- question

# What the sources add to a question to say how to answer it.
BEGIN = r"(?:^|(?<=[.?!:;)])) ?"                      # of a sentence
ADDED = re.compile("|".join([
    r"hint: ?please[^\n]*?(?:at the end\.?|$)",
    r"[^\n.?!]*\b(?:perform|conduct) reasoning\b[^\n]*?(?:\bxxx\.?|(?=\bquestion ?:)|$)",
    BEGIN + r"(?:please )?(?:directly )?(?:answer|respond|reply)\b[^\n.?!:]*\b(?:with|using|in)\b[^\n.?!:]*"
    r"\b(?:letters?|words?|phrase|choices|sentence|number)\b[^\n.?!:]*(?:[.!]|$)",
    BEGIN + r"(?:please )?(?:directly )?(?:select|choose|pick|provide|give) (?:the|a|your) "
    r"(?:correct|right|best|final|short|brief) (?:answer|option|choice|value)\b[^\n.?!:]*(?:[.:]|$)"]),
    re.IGNORECASE | re.MULTILINE)
LABEL = re.compile(r"(?:^|(?<=[\s;,:]))(?:\(([A-J])\)|([A-J])[.:)])\s*", re.MULTILINE)


def split_choices(text: str) -> tuple[str, dict[str, str] | None]:
    """Question and its options, written as A: x, A. x or (A) x, one a line or in one line.

    >>> split_choices("Find x. Choices: (A) 20; (B) 30")
    ('Find x.', {'A': '20', 'B': '30'})
    """
    marker = next(re.finditer(r"\b(?:choices|options)\s*:", text, re.IGNORECASE), None)
    labels = []
    for label in LABEL.finditer(text, marker.end() if marker else 0):
        before = text[:label.start()].rstrip(" ")
        starts = not before or before[-1] in "\n?:." and (not label[1] or before[-1] != ".")
        due = "ABCDEFGHIJ"[len(labels):len(labels) + 1]
        if (marker or labels or starts) and (label[1] or label[2]) == due:
            labels.append(label)
    ends = [label.start() for label in labels[1:]] + [len(text)]
    options = {(a[1] or a[2]): text[a.end():end].strip(" \n;,") for a, end in zip(labels, ends)}
    if len(options) < 2 or not all(options.values()):
        return text.strip(), None
    return text[:(marker or labels[0]).start()].strip(), options


def clean_question(text: str) -> tuple[str, dict[str, str] | None]:
    """Without placeholders, answer formats and "Question:"; options apart; special tokens defused."""
    text = re.sub(r"[ \t]+", " ", PLACEHOLDER.sub(" ", text))
    shorter = ADDED.sub(" ", text)
    if re.search(r"\w{2,}", split_choices(re.sub(r"(?i)\bquestion\s*:", " ", shorter).strip())[0]):
        text = shorter                      # else what looked like an instruction is the question itself
    text = re.sub(r"^\s*question\s*:\s*", "", text, flags=re.IGNORECASE | re.MULTILINE)
    text = re.sub(r"[ \t]+", " ", plain_text(text)).strip()
    return split_choices(re.sub(r" ?\n\s*", "\n", text))


def split_question(row: dict, args) -> str:
    row["question"], row["choices"] = clean_question(row["question"])
    return "" if re.search(r"\w", row["question"]) else "no question"


# ---------------------------------------------------------------------------------------------------- answer

def extract_answer(row: dict, args) -> str:
    row["solution"] = plain_text(row["solution"]).strip()
    text, choices = row["solution"], row["choices"]
    span = final_span(text)
    if not span:
        return "no final answer"
    if choices:
        row["answer"], row["answer_type"] = letter(text, choices), "letter"
        if not row["answer"]:
            return "answer is not among the options"
        named = last_named(text, choices)
        return "solution and answer disagree" if named not in (None, row["answer"]) else ""
    span = yes_no(span) if re.match(r"(?i)(?:yes|no)\b", span) and yes_no(span) else span
    kind = kind_of(span)
    row["answer"], row["answer_type"] = span.lower() if kind == "yes_no" else span, kind
    if kind == "letter":
        return "a letter, but no options"
    return "answer has more than 5 words" if len(span.split()) > 5 else ""


def last_named(text: str, choices: dict[str, str]) -> str | None:
    """The option that a solution comes to before it says its answer: the last quantity, or the last text."""
    closing = re.search(r"\banswer\s*(?:is\b|:)|\\boxed", text, re.IGNORECASE)
    body = text[:closing.start()] if closing else ""
    if all(re.fullmatch(r"-?[\d.,]+ ?[^\d\\/^√π]*", normalise(option)) for option in choices.values()):
        last = ([None] + re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", body))[-1]
        return next((name for name, option in choices.items() if last and number(last) == number(option)),
                    None)
    if min(map(len, choices.values())) < 3:          # such texts are found everywhere
        return None
    ends = {name: (body.casefold().rfind(option.casefold()) + len(option), len(option))
            for name, option in choices.items() if option.casefold() in body.casefold()}
    return max(ends, key=ends.get) if ends else None


# --------------------------------------------------------------------------------------- rating and solution

def check_ratings(row: dict, args) -> str:
    minimum = MIN_RATING | {"visual_dependency": MIN_DEPENDENCY[row["domain"]]}
    low = next((axis for axis, value in minimum.items() if row["ratings"].get(axis, value) < value), None)
    return f"{low} below {minimum[low]}" if low else ""


REFUSAL = re.compile(r"\bI(?: am|'m) (?:sorry|unable)|\bI can(?:no|')t (?:answer|help|see|determine)"
                     r"|\bas an AI\b", re.IGNORECASE)


def reference_fault(text: str, row: dict) -> str:
    """Why a text cannot be a reference solution, or ""."""
    words, span, end = text.split(), final_span(text), text[-max(80, len(text) // 5):]
    grams = Counter(tuple(words[i:i + 50]) for i in range(len(words) - 49))
    for bad, why in [
        (re.search(r"https?://|www\.", text), "solution has a link"),
        (REFUSAL.search(text), "solution is a refusal"),
        (len(words) > MAX_SOLUTION_WORDS, "solution is too long"),
        (max(grams.values(), default=0) > 2, "solution repeats itself"),
        (sum(c.isalpha() and c > "\u024f" for c in text) > len(text) / 10, "solution is in another script"),
        (span in text and span not in end, "solution does not end with the answer"),
        # An answer of type "text" may be put in other words: that is for the judge.
        (row["answer_type"] != "text" and not matches(text, row["answer"], row["choices"]),
         "solution has no answer"),
    ]:
        if bad:
            return why
    return ""


def is_worked(text: str, args) -> bool:
    """Long enough, and at least two sentences or equations."""
    steps = [part for part in re.split(r"[.!?;\n](?=\s|$)", text) if part.strip()]
    return len(text.split()) >= args.min_words and (len(steps) >= 2 or text.count("=") >= 2)


def check_solution(row: dict, args) -> str:
    row["solution_kind"] = "native" if is_worked(row["solution"], args) else "answer_only"
    return reference_fault(row["solution"], row)


# --------------------------------------------------------------------------------------------------- picture

def save_picture(row: dict, args) -> str:
    """Written under the hash of its pixels; a picture that needs no change keeps its file."""
    data, = row["images"]
    row["images"] = []
    if data is None:
        return "picture is not in the file"
    try:
        rgb = read_picture(data)
    except DataError:
        return "picture cannot be read"
    if min(rgb.size) < MIN_SIDE:
        return f"picture is smaller than {MIN_SIDE}"
    with Image.open(io.BytesIO(data)) as file:
        upright = file.getexif().get(0x0112, 1) == 1
        same = file.format == "JPEG" and file.mode == "RGB" and upright and max(rgb.size) <= MAX_SIDE
    if max(rgb.size) > MAX_SIDE:
        rgb.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        if min(rgb.size) < MIN_SIDE:
            return "picture is too narrow"
    row["image_hash"] = hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()[:32]
    row["image_phash"] = f"{perceptual_hash(rgb):016x}"
    row["images"] = [f"images/{row['image_hash']}.{'jpg' if same else 'png'}"]
    target = args.out / row["images"][0]
    if not target.exists():
        if not same:
            out = io.BytesIO()
            rgb.save(out, "PNG", compress_level=4)
            data = out.getvalue()
        write_whole(target, data)
    return ""


# ------------------------------------------------------------------------------------------------- the stage

STEPS = {"shape": check_shape, "question": split_question, "answer": extract_answer, "rating": check_ratings,
         "solution": check_solution, "picture": save_picture}


def clean_batch(turns: list[dict], args) -> list[dict]:
    """One row for each turn: a candidate, or what is left of one that a step dropped."""
    return [clean_turn(turn, args) for turn in turns]


def clean_turn(turn: dict, args) -> dict:
    subset = turn["subset"]
    row = {"id": turn["id"], "subset": subset, "domain": "math" if MATHS.search(subset) else "vqa",
           "question": turn.get("user", ""), "solution": turn.get("assistant", ""), "answer": "",
           "licence": next((text for name, text in LICENCES.items() if subset.startswith(name)),
                           f"that of the source of {subset}, see its card; additions CC BY 4.0")}
    row |= {name: turn.get(name) for name in ("images", "turn", "ratings", "facts", "bad")}
    for name, step in STEPS.items():
        if why := step(row, args):
            return dropped_row(row, name, why)
    return {name: value for name, value in row.items() if name not in ("turn", "bad")}


def dropped_row(row: dict, stage: str, why: str) -> dict:
    """What is left of a row: enough to look at it."""
    images = [image for image in row["images"] or [] if isinstance(image, str)]
    return {"id": row["id"], "subset": row["subset"], "stage": stage, "why": why, "images": images,
            "question": row["question"][:300], "solution": row["solution"][:300],
            "answer": row["answer"] or ""}
