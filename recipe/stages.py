"""Stages 2 to 6 of the recipe (build.py lists them, candidates.py is the first).  A stage is opened with the
settings and then takes rows batch by batch: each comes back, whole or as what is left of a dropped one.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from judges.equality import normalise
from recipe.candidates import clean_question, dropped_row, is_worked, reference_fault
from recipe.duplicates import HashIndex, benchmark_index, grams, hash_of_text
from recipe.sampling import open_judge, open_sampler, sample_and_judge
from reward import plain_text
from sampler import seed_of
from tools.files import read_rows, write_whole

Stage = Callable[[list[dict]], list[dict]]

TURNS_PER_PICTURE = 2
MAX_DISTANCE, MAX_DISTANCE_BENCHMARK = 4, 6        # of the 64 bits of a perceptual hash
MIN_OVERLAP = 0.6                                  # share of a question's 8-grams that a benchmark has


def kept_rows(file: Path) -> Iterator[dict]:
    return (row for row in read_rows(file) if "why" not in row)


def drop_rows(stage: str, why_dropped: Callable[[dict], str]) -> Stage:
    """The stage that drops a row if `why_dropped` has a reason for it."""
    return lambda batch: [dropped_row(row, stage, why) if (why := why_dropped(row)) else row for row in batch]


def drop_copies(args) -> Stage:
    """Drops the same question with the same answer about a near picture (drawings that differ in a number
    only look alike to a perceptual hash), the same question about the same picture, and more than 2 turns of
    one picture."""
    near, turns, known = HashIndex(MAX_DISTANCE), Counter(), set()

    def why_dropped(row: dict) -> str:
        question = normalise(row["question"])
        answer = (row["choices"] or {}).get(row["answer"], row["answer"])
        problem = hash_of_text(f"{question} -> {normalise(answer)}")
        exact = hash_of_text(f"{question} {row['image_hash']}")
        picture, looks = hash_of_text(row["image_hash"]), int(row["image_phash"], 16)
        if exact in known or near.has(looks, problem):
            return "same question and picture as another"
        if turns[picture] == TURNS_PER_PICTURE:
            return f"more than {TURNS_PER_PICTURE} turns of a picture"
        near.add(looks, problem)
        known.add(exact)
        turns[picture] += 1
        return ""

    return drop_rows("unique", why_dropped)


def drop_benchmarks(args) -> Stage:
    """Drops rows whose picture (with whatever question) or question is in a benchmark."""
    pictures, questions = HashIndex(MAX_DISTANCE_BENCHMARK), set()
    if args.benchmarks:
        pictures, questions, counts = benchmark_index(args.benchmarks, MAX_DISTANCE_BENCHMARK,
                                                      lambda text: clean_question(text)[0])
        write_whole(args.out / "benchmarks.json", json.dumps(counts, indent=2) + "\n")

    def why_dropped(row: dict) -> str:
        if pictures.has(int(row["image_phash"], 16)):
            return "picture is in a benchmark"
        own = grams(row["question"])
        overlaps = own and len(own & questions) >= MIN_OVERLAP * len(own)
        return "question is in a benchmark" if overlaps else ""

    return drop_rows("benchmarks", why_dropped)


def count_right_answers(args) -> Stage:
    """The policy answers --samples times, a judge that knows the final answer decides.  A text that was cut
    off counts as wrong; a row with a text or verdict that could not be had is dropped, not guessed."""
    policy, verifier = open_sampler("policy", args), open_judge(args)

    def work(batch: list[dict]) -> list[dict]:
        out = []
        for row, _, verdicts, why in sample_and_judge(batch, policy, verifier, (args.seed, "answers"), args):
            row["solved"] = sum(bool(v and v.correct) for v in verdicts)
            if not why and row["solved"] == args.samples:
                why = f"solved {args.samples} of {args.samples} times"
            out.append(dropped_row(row, "answers", why) if why else row)
        return out
    return work


def find_references(args) -> Stage:
    """A native worked solution stays.  Else the teacher samples some; of those that come to the right answer
    by the judge and could be a reference, the one of median length is kept: neither the tersest nor the most
    long-winded.  (The paper's teacher picks the best, it does not say how.)"""
    teacher, verifier = (open_sampler("teacher", args), open_judge(args)) if args.teacher else (None, None)

    def work(batch: list[dict]) -> list[dict]:
        without = [row for row in batch if row["solution_kind"] != "native"]
        reasons = {row["id"]: "no worked solution and no teacher" for row in without}
        key = (args.seed, "references")
        judged = sample_and_judge(without, teacher, verifier, key, args) if teacher else ()
        for row, texts, verdicts, why in judged:
            verified = [text for text, v in zip(texts, verdicts)
                        if v and v.correct and is_worked(text, args) and not reference_fault(text, row)]
            reasons[row["id"]] = "" if verified else why or "no verified solution of the teacher"
            if verified:
                verified.sort(key=lambda text: (len(text), text))
                row["solution"] = plain_text(verified[(len(verified) - 1) // 2])
                row["solution_kind"] = "generated"
        return drop_rows("references", lambda row: reasons.get(row["id"], ""))(batch)
    return work


def balance(args) -> Stage:
    """Caps first, each subset as even over the classes (number of right answers) as it can be; then every
    class is cut to --per_class, or else to the smallest."""
    rows = sorted(((row["subset"], row["solved"], row["id"])
                   for row in kept_rows(args.out / "05-references.jsonl")),
                  key=lambda row: seed_of(args.seed, "balance", row[2]))
    sizes, turn, reasons = Counter(), {}, {}
    for subset, solved, name in rows:               # turn: place of a row among those of its subset and class
        turn[name] = sizes[subset, solved]
        sizes[subset, solved] += 1
    taken, left = Counter(), []
    by_turn = sorted(rows, key=lambda row: (turn[row[2]], seed_of(args.seed, "turn", row[2])))
    for subset, solved, name in by_turn:
        taken[subset] += 1
        if taken[subset] > args.caps.get(subset, sys.maxsize):
            reasons[name] = "over the cap of its subset"
        else:
            left.append((solved, name))
    sizes, taken = Counter(solved for solved, _ in left), Counter()
    limit = args.per_class or min(sizes.values(), default=0)
    ranks = {name: i for i, (*_, name) in enumerate(rows)}
    for solved, name in sorted(left, key=lambda row: ranks[row[1]]):
        taken[solved] += 1
        if taken[solved] > limit:
            reasons[name] = "over the size of its class"
    return drop_rows("balance", lambda row: reasons.get(row["id"], ""))
