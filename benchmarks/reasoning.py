"""Reasoning: MathVerse, MathVista, LogicVista, We-Math, CharXiv-RQ, DynaMath.  Blocks as in perception.py."""

import ast
import json
import re

import numpy as np

from benchmarks import harness as harness_rules
from benchmarks.aggregate import accuracy_by, all_right, by_unit, group_by, mean, mean_by
from benchmarks.items import Benchmark, Item, Score
from benchmarks.perception import exact, for_judge, letter_score, same_score
from benchmarks.wording import BOXED, FINAL, LETTER, PUT_IN_BOX, lines, listed, option_letter, options_in
from judges import answers, equality

# ------------------------------------------------------------------------------------------------ MathVerse

def mathverse_item(row: dict) -> Item:
    question, choice = row["question"], row["question_type"] == "multi-choice"
    gold = option_letter(row["answer"]) if choice else row["answer"]
    letter = choice and len(gold) == 1 and gold.isupper()       # a few are not: "False", "C\nD"
    options = options_in(question, "ABCDEFGH" if gold > "D" else "ABCD", gold) if choice else {}
    return Item(row["sample_index"], row["question_for_eval"], gold,
                lines(row["query_cot"], PUT_IN_BOX[choice]), question, options,
                "letter" if letter else "free",
                unit=row["problem_index"], keys={"version": row["problem_version"]})


def mathverse_score(item: Item, response: str, harness: str) -> Score:
    """A letter or two whole numbers decide; anything else only if it is the reference answer.  The harness
    asks its judge every time.  (Final answers only: "CoT-E" needs code that is not released.)"""
    if harness == "ours":
        if item.kind == "letter" and (letter := answers.letter(response, item.options)):
            return exact(item, letter)
        answer = answers.final_span(response)
        if all(re.fullmatch(r"-?\d+", number) for number in (answer, item.gold)):
            return Score(answer, float(int(answer) == int(item.gold)))
    return same_score(item, response, harness)


MATHVERSE = Benchmark(
    "mathverse", "MathVerse", "reasoning", ("AI4Math/MathVerse", "testmini", ("testmini",)),
    ("sample_index", "problem_index", "problem_version", "question", "image", "answer", "question_type",
     "query_cot", "question_for_eval"), "image", 3940, "MIT; overlaps with geometry training sets",
    mathverse_item, mathverse_score, accuracy_by(version=""), "accuracy", {"accuracy": (60.50, 64.64, 69.34)})


# ------------------------------------------------------------------------------------------------ MathVista

def mathvista_item(row: dict) -> Item:
    choices = row["choices"] or []
    choices = ast.literal_eval(choices) if isinstance(choices, str) else choices
    options = {chr(ord("A") + i): str(choice) for i, choice in enumerate(choices or [])}
    gold, kind = row["answer"], row["answer_type"]
    if options:
        right = [letter for letter, choice in options.items() if choice.strip() == gold]
        right = right or [letter for letter, choice in options.items() if equality.same_answer(choice, gold)]
        kind, gold = "letter", right[0] if right else option_letter(gold)
    precision = "" if row["precision"] in ("", "nan") else str(int(float(row["precision"])))
    return Item(row["pid"], lines(row["question"], listed(options)), gold,
                lines(row["query"], PUT_IN_BOX[bool(options)]), row["query"], options, kind,
                keys={"type": row["question_type"], "precision": precision})


def mathvista_score(item: Item, response: str, harness: str) -> Score:
    """Letter, whole number, number to the precision asked for, text or list; a judge if nothing is found."""
    if harness != "ours":
        return mathvista_harness_score(item, response)
    span = answers.final_span(response)
    if item.kind == "letter":
        extracted = answers.letter(response, item.options)
        right = item.options.get(extracted) == item.options.get(item.gold)       # an odd row has none
    elif item.kind in ("integer", "float") and (gold := equality.number(item.gold)) is not None:
        number, digits = equality.number(span), int(item.keys["precision"] or 2)
        extracted = None if number is None else span
        right = number is not None and (number == gold if item.kind == "integer" else
                                        round(number, digits) == round(gold, digits))
    else:
        extracted, right = span, equality.same_answer(span, item.gold)
    return Score(extracted, float(right)) if extracted else for_judge(response)


def mathvista_harness_score(item: Item, response: str) -> Score:
    """A number counts by rule if it is the whole response.  Free-form texts and lists are never right: the
    harness compares the wrong variable."""
    if item.kind == "letter":
        return letter_score(item, response, "vlmevalkit")
    if item.kind not in ("integer", "float"):
        return Score(response.strip()[:200], 0.0)
    try:
        return Score(response.strip(), float(float(response) == float(item.gold)))
    except ValueError:
        return for_judge(response)


MATHVISTA = Benchmark(
    "mathvista", "MathVista", "reasoning", ("AI4Math/MathVista", None, ("testmini",)),
    ("pid", "question", "decoded_image", "choices", "precision", "answer", "question_type", "answer_type",
     "query"), "decoded_image", 1000, "CC BY-SA 4.0",
    mathvista_item, mathvista_score, accuracy_by(type=""), "accuracy", {"accuracy": (76.80, 78.80, 78.90)})


# ----------------------------------------------------------------------------------------------- LogicVista

def logicvista_item(row: dict) -> Item:
    question = row["question"]        # "Select from A, B, C and D": options may be in the picture
    gold = ", ".join(sorted(option_letter(part.strip()) for part in row["answer"].split(",")))
    skill = row["skill"] if isinstance(row["skill"], str) else ", ".join(row["skill"] or [])
    return Item(row["id"], question, gold,
                lines(question, BOXED.format(what="the letter, or all letters, of what is right")), question,
                options_in(question, "ABCDEFGH", gold),
                "letter" if re.fullmatch(r"[A-Z](, [A-Z])*", gold) else "label", keys={"skill": skill})


def logicvista_score(item: Item, response: str, harness: str) -> Score:
    """Sets of letters must be equal; labels may also be numbers.  The harness always asks a judge for the
    labels."""
    if harness != "ours":
        return for_judge(response)
    if item.kind != "letter":
        answer = answers.final_span(response)
        return Score(answer, float(equality.same_answer(answer, item.gold)))
    return exact(item, ", ".join(sorted(answers.letters(response, item.options))))


LOGICVISTA = Benchmark(
    "logicvista", "LogicVista", "reasoning", ("lscpku/LogicVista", None, ("test",)),
    ("id", "question", "answer", "image", "skill"), "image", 448, "Apache-2.0",
    logicvista_item, logicvista_score, accuracy_by(skill=""), "accuracy", {"accuracy": (56.82, 57.04, 60.40)})


# -------------------------------------------------------------------------------------------------- We-Math

def wemath_item(row: dict) -> Item:
    question, gold = row["question"], option_letter(row["answer"])
    options = options_in(row["option"], "ABCDEFGH", gold)
    choices = listed(options) if all(options.values()) else row["option"]
    return Item(f"{row['ID']}/{row['key']}", question, gold,
                lines(question, choices, LETTER), lines(f"Question: {question}", "Options:", choices),
                options, unit=row["ID"], member=row["key"], keys={"key": row["key"]})


def wemath_score(item: Item, response: str, harness: str) -> Score:
    if harness == "ours":
        return letter_score(item, response, harness)
    return exact(item, harness_rules.wemath_letter(response))         # the harness's rule without a judge


def wemath_numbers(records: list[dict]) -> dict:
    """Sub-steps s and the whole problem m of each group (We-Math, arXiv 2407.01284):

                       m right                               m wrong
        all s right    complete mastery                      inadequate generalisation
        some s wrong   rote memorisation (strict; loose:     insufficient knowledge
                       only if all s are wrong, else mastery)

    score = (mastery + generalisation / 2) / groups
    """
    numbers = {}
    for unit, rs in by_unit(records).items():
        steps = [r["right"] == 1.0 for r in rs if not r["keys"]["key"].endswith("multi")]
        whole = all(r["right"] == 1.0 for r in rs if r["keys"]["key"].endswith("multi"))
        strict, loose = whole and all(steps), whole and any(steps)
        generalisation = all(steps) and not whole
        for name, counted, of in (
                ("strict", strict + 0.5 * generalisation, True),
                ("loose", loose + 0.5 * generalisation, True),
                ("complete mastery (strict)", strict, True),
                ("complete mastery (loose)", loose, True),
                ("inadequate generalisation", generalisation, True),
                ("insufficient knowledge", not all(steps) and not whole, True),
                ("rote memorisation rate (strict)", whole and not strict, whole),
                ("rote memorisation rate (loose)", whole and not loose, whole)):
            numbers.setdefault(name, [[]])[0].append((unit, float(counted), float(of)))
    by_key = group_by(records, "key")
    steps = [r for key, rs in by_key.items() if not key.endswith("multi") for r in rs]
    return {**numbers, "rows": [mean(records)], "S1": [mean(steps)],
            "S2": [mean(by_key.get("2steps_multi", []))], "S3": [mean(by_key.get("3steps_multi", []))]}


WEMATH = Benchmark(
    "wemath", "We-Math", "reasoning", ("We-Math/We-Math", None, ("testmini",)),
    ("ID", "key", "question", "option", "answer", "image_path"), "image_path", 1740,
    "CC BY-NC 4.0: not for commercial use", wemath_item, wemath_score, wemath_numbers, "strict",
    {"strict": (55.33, 61.62, 64.48), "loose": (72.67, 75.90, 81.24)},
    units=525, group_size=lambda item: {"2": 3, "3": 4}.get(item.member[:1], 0))


# ----------------------------------------------------------------------------------------------- CharXiv-RQ

CHARXIV_TYPES = {"1": "text in chart", "2": "text in general",
                 "3": "number in chart", "4": "number in general"}
CHARXIV_ASK = {
    "1": "The answer must be text that is written in the chart and fits the question. Separate several terms "
         "by commas. Give the full names of subplots and labels unless the question asks for something else.",
    "2": "If the question names options, the answer must be one of them; follow any other instruction in it. "
         "Otherwise answer with a short phrase.",
    "3": "The answer must be a number that is written in the chart and fits the question, even if it is an "
         "approximate value. It may be a part of a text."}
CHARXIV_RULES = {
    "1": "The same terms as in the reference; notation (of a formula, say) and the order of terms do not "
         "matter.",
    "2": "The same option as the reference if the question names options, else the same meaning.",
    "3": "The same number as the reference; it may be written another way (0.01 and 10^-2), but 0.012 is not "
         "0.01."}
CHARXIV_RULES["4"] = CHARXIV_RULES["3"]


def charxiv_item(row: dict) -> Item:
    # reasoning_a_type, not reasoning_q_source (who wrote the question), which one harness takes for it
    kind, question, gold = row["reasoning_a_type"], row["reasoning_q"], row["reasoning_a"]
    if kind not in CHARXIV_TYPES:
        raise ValueError(f"reasoning_a_type must be 1, 2, 3 or 4, not {kind!r}")
    digits = len(gold.partition(".")[2])
    ask = CHARXIV_ASK.get(kind) or (f"The answer must be a number with {digits} decimal places." if digits
                                    else "Your final answer must be an exact integer.")
    return Item(f"{row['original_id']}/{row['figure_path']}", question, gold,
                lines(question, ask, FINAL), lines(question, ask), {}, kind,
                keys={"type": CHARXIV_TYPES[kind], "where": CHARXIV_TYPES[kind].split()[-1],
                      "source": row["reasoning_q_source"], "subject": row["category"]})


def charxiv_score(item: Item, response: str, harness: str) -> Score:
    """Two plain numbers are compared by rule, both ways; texts by rule if they are equal, else by the
    judge."""
    answer = answers.final_span(response)
    plain = all(re.fullmatch(r"-?\d[\d,]*(\.\d+)?", number) for number in (answer, item.gold))
    if harness == "ours" and item.kind in "34" and plain:
        return Score(answer, float(equality.number(answer) == equality.number(item.gold)))
    return same_score(item, response, harness)


def charxiv_numbers(records: list[dict]) -> dict:
    """The harness has the four types and all.  The paper's "chart" and "general" can be neither one type nor
    two pooled (no such fractions exist); the mean of the accuracies of text and number fits all its rows."""
    where = {name: [mean(part) for part in group_by(rs, "type").values()]
             for name, rs in group_by(records, "where").items()}
    return {"all": [mean(records)], **where, **mean_by(records, "type"),
            **mean_by(records, "source", "source "), **mean_by(records, "subject")}


CHARXIV_RQ = Benchmark(
    "charxiv_rq", "CharXiv-RQ", "reasoning", ("princeton-nlp/CharXiv", None, ("validation",)),
    ("image", "category", "original_id", "figure_path", "reasoning_q", "reasoning_a", "reasoning_a_type",
     "reasoning_q_source"), "image", 1000, "CC BY-SA 4.0; charts belong to their authors",
    charxiv_item, charxiv_score, charxiv_numbers, "all",
    {"chart": (50.36, 47.32, 51.75), "general": (45.68, 43.66, 51.23), "all": (46.00, 44.90, 50.40)},
    rules=lambda item: CHARXIV_RULES[item.kind])


# ------------------------------------------------------------------------------------------------- DynaMath

DYNAMATH_JSON = ('## Answer Instruction\nReply in JSON with two keys: "solution", the detailed steps, and '
                 '"short answer", {what}.')
DYNAMATH_BOX = {"letter": "the letter of the right option",
                "number": "the number, with three digits after the point,", "text": "the final answer"}
DYNAMATH_SHORT = {"letter": "the letter of the right option",
                  "number": "a number with three digits after the point", "text": "a short text"}


def dynamath_item(row: dict) -> Item:
    question, gold = row["question"], row["ground_truth"]
    kind, options = row["answer_type"].lower(), {}
    if kind.startswith("multiple"):
        kind, gold = "letter", option_letter(gold)
        options = options_in(question, "ABCDEFGH" if gold > "E" else "ABCDE", gold)
    elif kind == "float" or kind.startswith("int") or equality.number(gold) is not None:
        kind = "number"                                         # a few have other labels
    else:
        kind = "text"
    return Item(f"{row['id']}/{row['variant']}", question, gold,
                lines(question, BOXED.format(what=DYNAMATH_BOX[kind])),
                lines("## Question", question, DYNAMATH_JSON.format(what=DYNAMATH_SHORT[kind])),
                options, kind, unit=row["id"], member=row["variant"],
                keys={"subject": row["subject"], "level": row["knowledge_level"]})


def dynamath_score(item: Item, response: str, harness: str) -> Score:
    """A number within 0.001, a letter, or a text; a judge if no such thing is found."""
    if not response.strip():
        return Score("", 0.0)
    if harness != "ours":
        return dynamath_harness_score(item, response)
    if item.kind == "letter":
        letter = answers.letter(response, item.options)
        return Score(letter or "", float(letter == item.gold) if letter else None)
    if item.kind == "number":
        span = answers.final_span(response)
        number, gold = equality.number(span), equality.number(item.gold)
        if number is not None and gold is not None:
            return Score(span, float(abs(number - gold) <= 0.001 + 1e-9))
    return same_score(item, response, harness)


def dynamath_harness_score(item: Item, response: str) -> Score:
    """JSON between the outermost braces, else the whole response; if neither reads as the type, an LLM
    rewrites it.  A text is right if it is any part of the reference, also an empty one."""
    braces = re.search(r"\{.*\}", response, re.S)
    reply = (braces[0] if braces else response).replace("\\", "")

    def typed(answer) -> str | float:
        if not isinstance(answer, str):
            raise TypeError("not a text")
        if item.kind == "number":
            first = answer.split(" ")[0]
            return float(first.split("π")[0]) * np.pi if "π" in first else float(first)
        if item.kind == "letter" and len(answer) != 1:
            answer, = [letter for letter in "ABCDE" if letter in answer.upper()]
        return answer.upper() if item.kind == "letter" else answer
    try:
        answer = typed(json.loads(reply, strict=False)["short answer"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        try:
            answer = typed(reply)
        except ValueError:
            return Score("", None)
    if item.kind == "number":
        gold = equality.number(item.gold)
        return Score(str(answer), float(gold is not None and abs(answer - gold) <= 0.001))
    if item.kind == "letter":
        return exact(item, answer)
    return Score(answer, float(answer.lower() in item.gold.lower()))


def dynamath_numbers(records: list[dict]) -> dict:
    """Worst case: all ten variants of a seed are right."""
    return {"average": [mean(records)], "worst case": [all_right(by_unit(records))],
            **mean_by(records, "subject"), **mean_by(records, "level", "level ")}


DYNAMATH = Benchmark(
    "dynamath", "DynaMath", "reasoning",
    ("DynaMath/DynaMath_Sample", None, tuple(f"sample_variant{i}" for i in range(1, 11))),
    ("variant",                                 # from the name of the split, or file, if it is no column
     "id", "question", "decoded_image", "ground_truth", "answer_type", "subject", "knowledge_level"),
    "decoded_image", 5010, "Apache-2.0", dynamath_item, dynamath_score, dynamath_numbers, "average",
    {"worst case": (39.52, 40.11, 47.52), "average": (67.49, 67.80, 68.42)},
    units=501, group_size=lambda item: 10)

REASONING = (MATHVERSE, MATHVISTA, LOGICVISTA, WEMATH, CHARXIV_RQ, DYNAMATH)
