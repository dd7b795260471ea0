"""Perception: SimpleVQA, MMStar, HallusionBench, HRBench8K, MME-RealWorld-Lite.

One short block per benchmark: `..._item` makes an Item of a row, `..._score` reads a response by rule,
`..._numbers` says what is averaged over what; the Benchmark after them names the data, its licence and the
paper's numbers.  How an answer is found in a response stands in judges/answers.py.
"""

import ast
import re

from benchmarks import harness as harness_rules
from benchmarks.aggregate import accuracy_by, all_right, group_by, mean, mean_by
from benchmarks.items import Benchmark, Item, Score
from benchmarks.wording import BOXED, FINAL, HARNESS_SELECT, LETTER, lines, listed, option_letter, options_in
from judges import answers, equality

# ----------------------------------------------------------------------- rule scores of several benchmarks

def exact(item: Item, answer: str | None) -> Score:
    """No answer is a wrong one."""
    return Score(answer or "", float(answer == item.gold))


def for_judge(response: str) -> Score:
    """No rule can tell; that an empty response is wrong needs no judge."""
    return Score("", None if response.strip() else 0.0)


def letter_score(item: Item, response: str, harness: str) -> Score:
    """One letter.  Where its rule finds none the harness asks a judge; with us the response is unparsed:
    wrong."""
    if harness == "ours":
        return exact(item, answers.letter(response, item.options))
    letter = harness_rules.letter(response, item.options)
    return exact(item, letter) if letter else for_judge(response)


def same_score(item: Item, response: str, harness: str) -> Score:
    """Free form: the rule can only say yes.  The harness always asks its judge."""
    if not response.strip():
        return Score("", 0.0)
    answer = answers.final_span(response)
    right = harness == "ours" and answer and equality.same_answer(answer, item.gold)
    return Score(answer, 1.0 if right else None)


# ------------------------------------------------------------------------------------------------ SimpleVQA

def simplevqa_item(row: dict) -> Item:
    question = row["question"]
    return Item(row["data_id"], question, row["answer"], lines(question, FINAL), question,
                keys={"language": row["language"]})


def simplevqa_rules(item: Item) -> str:
    return (
        'Give one of three verdicts. "correct": the reply holds everything essential of the reference answer '
        "and contradicts nothing of it; language, case, punctuation, aliases, other spellings of a name and "
        "hedging do not matter, and where the reference says more than was asked only the asked part counts. "
        '"incorrect": the reply contradicts the reference, even if it hedges. "not attempted": something '
        "essential is missing but nothing is contradicted. Numbers must agree to the precision of the "
        "reference: for 3518.17, 3518 is correct, 3520 incorrect, and about 3500 not attempted.")


def simplevqa_numbers(records: list[dict]) -> dict:
    """Verdicts: right, not attempted (the judge's), else incorrect.  F1 = 2 P R / (P + R) = 2 C / (C + I +
    N), where P = C / (C + I) is over attempts and R = C / N over all."""
    def attempted(r):
        return float(r["right"] or r.get("label") not in ("not attempted", "failed"))
    return {"correct": [mean(records)],
            "attempted accuracy": [[(r["unit"], r["right"], attempted(r)) for r in records]],
            "F1": [[(r["unit"], 2 * r["right"], attempted(r) + 1) for r in records]],
            **mean_by(records, "language")}


SIMPLEVQA = Benchmark(
    "simplevqa", "SimpleVQA", "perception", ("m-a-p/SimpleVQA", None, ("test",)),
    ("data_id", "image", "language", "question", "answer"), "image", 2025,
    "not seen on the original card; a copy says Apache-2.0",
    simplevqa_item, same_score, simplevqa_numbers, "correct", {"correct": (44.93, 46.86, 48.35)},
    rules=simplevqa_rules)


# --------------------------------------------------------------------------------------------------- MMStar

def mmstar_item(row: dict) -> Item:
    question, gold = row["question"], option_letter(row["answer"])
    return Item(row["index"], question, gold, lines(question, LETTER),        # it has the options
                lines(f"Question: {question}", HARNESS_SELECT), options_in(question, "ABCD", gold),
                keys={name: row[name] for name in ("category", "l2_category")})


def mmstar_numbers(records: list[dict]) -> dict:
    """The mean over the 18 finer categories is what lmms-eval calls average; VLMEvalKit's, and ours, is over
    rows."""
    finer = [mean(rs) for rs in group_by(records, "l2_category").values()]
    return {"accuracy": [mean(records)], "mean of l2 categories": finer, **mean_by(records, "category")}


MMSTAR = Benchmark(
    "mmstar", "MMStar", "perception", ("Lin-Chen/MMStar", None, ("val",)),
    ("index", "question", "image", "answer", "category", "l2_category"), "image", 1500, "not seen",
    mmstar_item, letter_score, mmstar_numbers, "accuracy", {"accuracy": (64.06, 71.87, 73.00)})


# ------------------------------------------------------------------------------------------- HallusionBench

def hallusion_item(row: dict) -> Item:
    keys = {name: row[name] for name in ("category", "subcategory", "set_id", "figure_id", "question_id")}
    question, gold = row["question"], {"0": "no", "1": "yes"}[row["gt_answer"]]
    prompt = lines(question, BOXED.format(what="yes or no"))
    return Item("/".join(keys.values()), question, gold, prompt, question,
                unit="/".join(list(keys.values())[:3]), keys=keys)


def hallusion_score(item: Item, response: str, harness: str) -> Score:
    answer = answers.yes_no(response) if harness == "ours" else harness_rules.yes_no(response)
    return exact(item, (answer or "").lower())


def hallusion_numbers(records: list[dict]) -> dict:
    """aAcc over questions; fAcc: all questions of a figure; qAcc: a question on all its figures."""
    one_set = ("category", "subcategory", "set_id")     # ids are used again in other categories
    numbers = {"aAcc": [mean(records)], "fAcc": [all_right(group_by(records, *one_set, "figure_id"))],
               "qAcc": [all_right(group_by(records, *one_set, "question_id"))]}
    return {"mean of the three": [parts[0] for parts in numbers.values()], **numbers,
            **mean_by(records, "category")}


HALLUSIONBENCH = Benchmark(
    "hallusionbench", "HallusionBench", "perception", ("lmms-lab/HallusionBench", None, ("image",)),
    ("category", "subcategory", "set_id", "figure_id", "question_id", "question", "gt_answer", "image"),
    "image", 951, "BSD-3", hallusion_item, hallusion_score, hallusion_numbers, "mean of the three",
    {"aAcc": (71.08, 75.50, 75.71), "fAcc": (53.46, 58.09, 60.40), "qAcc": (53.19, 55.60, 56.48)})


# ------------------------------------------------------------------------------------------------ HRBench8K

def hrbench_item(row: dict) -> Item:
    options = {letter: row[letter] for letter in "ABCD"}
    question, category = row["question"], row["category"]
    # A question comes four times, its options rotated; no column says which rows belong together.
    return Item(row["index"], question, option_letter(row["answer"]),
                lines(question, listed(options), LETTER),
                lines(f"Question: {question}", "Options:", listed(options), HARNESS_SELECT), options,
                unit="/".join([category, question, *sorted(options.values())]),
                keys={"category": category, "cycle": row["cycle_category"]})


def hrbench_numbers(records: list[dict]) -> dict:
    """The mean over the four rotations; not "right in all four" (a circular rule)."""
    def cycles(rs):
        return [mean(part) for part in group_by(rs, "cycle").values()]
    by_category = group_by(records, "category").items()
    return {"all": cycles(records), **{name: cycles(rs) for name, rs in by_category}}


HRBENCH8K = Benchmark(
    "hrbench8k", "HRBench8K", "perception", ("DreamMr/HR-Bench", "hrbench_version_split", ("hrbench_8k",)),
    ("index", "question", "answer", "category", "A", "B", "C", "D", "cycle_category", "image"), "image", 800,
    "'other'", hrbench_item, letter_score, hrbench_numbers, "all",
    {"single": (79.00, 80.50, 80.75), "cross": (61.00, 70.25, 70.50), "all": (70.00, 75.38, 75.63)})


# --------------------------------------------------------------------------------------- MME-RealWorld-Lite

def mme_item(row: dict) -> Item:
    choices = row["multi-choice options"]
    choices = ast.literal_eval(choices) if isinstance(choices, str) else list(choices)
    options = {chr(ord("A") + i): re.sub(r"^\(?[A-E][).:]\s*", "", choice.strip())
               for i, choice in enumerate(choices)}
    area, _, domain = row["category"].partition("/")
    question = row["question"]
    harness_prompt = lines(
        f"{question} The choices are listed below:", *choices,
        "Select the best answer to the above multiple-choice question based on the image. Respond with "
        "only the letter (A, B, C, D, or E) of the correct option.", "The best answer is:")
    return Item(row["index"], question, option_letter(row["answer"]),
                lines(question, listed(options), LETTER), harness_prompt, options,
                keys={"area": area, "domain": domain})


def mme_score(item: Item, response: str, harness: str) -> Score:
    """E ("not in the image") is a letter like the others.  The harness takes the first capital A to E
    anywhere, and A for an empty response."""
    if harness == "ours":
        return letter_score(item, response, harness)
    return exact(item, harness_rules.first_capital(response))


MME_REALWORLD_LITE = Benchmark(
    "mme_realworld_lite", "MME-RealWorld-Lite", "perception",
    ("yifanzhang114/MME-RealWorld-lite-lmms-eval", None, ("train",)),
    ("index", "bytes", "question", "multi-choice options", "answer", "category"), "bytes", 1919,
    "research only, not to be passed on", mme_item, mme_score, accuracy_by(area="", domain="domain "),
    "accuracy", {"Perception": (54.66, 57.83, 58.17), "Reasoning": (41.73, 50.67, 53.20)})

PERCEPTION = (SIMPLEVQA, MMSTAR, HALLUSIONBENCH, HRBENCH8K, MME_REALWORLD_LITE)
