"""Context pairs: given a question and its answer, which of two nearly identical contexts supports the answer?

Data of the second method of this name (Context-Aware RL, arXiv 2606.17053).  A context is an image, or a text
such as an agent's trajectory.  Both stand in ONE prompt as options A and B; the policy is not sampled, its
two letters are compared (loss.py).  A file is JSONL, one pair a line, image paths relative to it:

    {"id": "p1", "question": "how many red ?", "answer": "3", "supporting": "a.png", "confounding": "b.png"}

    "kind": "text"      supporting and confounding are texts, not images
    "prompt"            another wording of the task: two marks <image>, or {A} and {B} where the texts go;
                        {question} and {answer} are filled in

Rows of the released loaders are read too (JSONL, parquet with encoded images, a folder or hub id of such):

    problem, answer, images     two images and an answer A or B, where A names the first image; rows with one
                                image or none are ordinary queries and left out.  "Output A or B directly." is
                                added
    prompt, correct_answer      both contexts are part of the text already: the order stays as it is

Which option is right is not taken from the file: half of the pairs get A, half B, dealt from the seed.

    python -m context_pairs.pairs FILE        what is in it and what is wrong with it
    python -m context_pairs.build ...         makes such files
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data import (
    IMAGE_MARK,
    REPORTED,
    DataError,
    Query,
    fill_prompt,
    json_lines,
    json_row,
    open_picture,
    read_picture,
    report_skipped,
    save_image,
    short,
    text_of,
)
from tools.programs import one_line_errors
from tools.tables import hub_rows, parquet_rows

OUTPUT = "Output A or B directly."
IMAGE_PROMPT = (f"A: {IMAGE_MARK}\nB: {IMAGE_MARK}\nQuestion: {{question}}\nAnswer: {{answer}}\n"
                f"Which of the two images supports this answer? {OUTPUT}")
TEXT_PROMPT = ("Question:\n{question}\n\nAnswer:\n{answer}\n\nContext A:\n{A}\n\nContext B:\n{B}\n\n"
               f"Which of the two contexts supports this answer? {OUTPUT}")
FAMILY = "context"                                 # of a pair that is asked as an ordinary query


@dataclass
class ContextPair:
    """One pair.  `kind` "prompt": the prompt holds both contexts already, so `letter` is that of the file."""

    id: str
    question: str
    answer: str
    supporting: str | bytes                        # image: path or encoded file; text: itself
    confounding: str | bytes
    kind: str = "image"                            # "image", "text", or "prompt"
    prompt: str = ""                               # wording of its own; "": ours
    letter: str = "A"                              # which option is the supporting one, see deal_letters()


# ---------------------------------------------------------------------------------------------------- reading

class OrdinaryRow(DataError):
    """A row of a mixed file that is no pair: at most one image."""


def load_pairs(source: str | Path, seed: int = 0) -> list[ContextPair]:
    """All pairs of a file, folder or hub id, with their letters dealt.

    A row that cannot be used is skipped, counted and named on stderr, ordinary rows are counted; no pair at
    all is an error.
    """
    pairs, seen, bad, ordinary = [], set(), [], 0
    for where, row, folder in rows_of(str(source)):
        try:
            pair = pair_of_row(row() if callable(row) else row, folder, where)
            if pair.id in seen:
                raise DataError(f"id '{short(pair.id)}' appears twice")
        except OrdinaryRow:
            ordinary += 1
            continue
        except DataError as error:
            bad.append(f"{where}: {error}")
            continue
        seen.add(pair.id)
        pairs.append(pair)
    if not pairs:
        raise DataError(f"no context pair in {source}: {len(bad)} bad rows, {ordinary} ordinary ones"
                        + (f"; the first bad one: {bad[0]}" if bad else ""))
    if (bad or ordinary) and os.environ.get("RANK", "0") == "0":
        print(*(f"skipped {problem}" for problem in bad[:REPORTED]),
              f"{len(bad)} bad rows and {ordinary} ordinary ones skipped, {len(pairs)} pairs read from "
              f"{source}", sep="\n", file=sys.stderr)
    return deal_letters(pairs, seed)


def deal_letters(pairs: list[ContextPair], seed: int) -> list[ContextPair]:
    """Half of the pairs get A, half B, exactly, whatever the order of the file: a policy that always says the
    same letter has an accuracy of 0.5.  Pairs whose order is fixed keep theirs."""
    free = sorted((p.id for p in pairs if p.kind != "prompt"),
                  key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    letters = {name: "AB"[i % 2] for i, name in enumerate(free)}
    return [replace(p, letter=letters.get(p.id, p.letter)) for p in pairs]


def swap_options(pair: ContextPair) -> ContextPair:
    """The same pair with its contexts in the other order."""
    return replace(pair, letter="B" if pair.letter == "A" else "A")


def query_of_pair(pair: ContextPair) -> Query:
    """What the policy is asked; the reference is the letter, and no judge is needed to compare it.  (Its id
    is not the pair's: a builder takes that from a query, which may be trained on as well.)"""
    ordered = [pair.supporting, pair.confounding][::1 if pair.letter == "A" else -1]
    text = pair.prompt or {"image": IMAGE_PROMPT, "text": TEXT_PROMPT}[pair.kind]
    values = dict(zip("AB", ordered)) if pair.kind == "text" else {}
    if pair.question:                                              # else a released row: nothing to fill in
        values |= {name: words.replace(IMAGE_MARK, "").strip()
                   for name, words in (("question", pair.question), ("answer", pair.answer))}
    images = ordered if pair.kind == "image" else []
    return Query(f"pair-{pair.id}", images, fill_prompt(text, **values), pair.letter, pair.letter, FAMILY,
                 {"rule": True})


def rows_of(source: str) -> Iterator[tuple]:
    """-> ("file:row", row, folder of its images).  A row may be a function that raises DataError."""
    path = Path(source)
    files = sorted([*path.glob("*.parquet"), *path.glob("*.jsonl")]) if path.is_dir() else [path]
    is_file_name = path.exists() or path.suffix in (".jsonl", ".parquet")
    if not is_file_name and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        yield from ((f"{source}:{i}", row, Path()) for i, row in enumerate(hub_rows(source)))
        return
    if not files:
        raise DataError(f"no parquet or JSONL files in {source}")
    for file in files:
        if file.suffix != ".parquet":
            for where, line in json_lines(file):
                yield where, lambda line=line: json_row(line), file.parent
        elif not file.is_file():
            raise DataError(f"data file not found: {file}")
        else:
            for i, row in enumerate(parquet_rows(file)):
                if isinstance(row, DataError):
                    raise DataError(f"cannot read {file}: {row}")
                yield f"{file.name}:{i}", row, file.parent


# Which fields a row needs, by the field that tells its shape.
SHAPES = {"correct_answer": ("prompt", "correct_answer"), "problem": ("problem", "answer", "images"),
          "supporting": ("id", "question", "answer", "supporting", "confounding")}


def pair_of_row(row: dict, folder: Path, where: str) -> ContextPair:
    """One row of any of the three shapes."""
    shape = next((name for name in SHAPES if name in row), None)
    if shape is None:
        raise DataError("neither fields of a context pair (question, answer, supporting, confounding) nor of "
                        "a released one (problem, answer, images; or prompt, correct_answer)")

    def text(field: str) -> str:
        return text_of(row, field)

    name = where if row.get("id") in (None, "") else str(row["id"])
    if shape == "correct_answer":
        return ContextPair(name, "", "", "", "", "prompt", text("prompt"), letter_of(row, shape))
    if shape == "problem":
        images = row.get("images")
        images = images if isinstance(images, list) else [] if images is None else [images]
        if len(images) < 2:
            if row.get("answer") in ("A", "B") and text("problem").count(IMAGE_MARK) >= 2:
                raise DataError(f"{len(images)} images, a pair needs two")
            raise OrdinaryRow("no pair")
        marks = text("problem").count(IMAGE_MARK)
        if len(images) != 2 or marks not in (0, 2):
            raise DataError(f"{len(images)} images and {marks} places for them, a pair has two")
        letter, prompt = letter_of(row, "answer"), row["problem"].rstrip()
        prompt = prompt if prompt.endswith(OUTPUT) else f"{prompt}\n{OUTPUT}"
        images = [picture_of(image, folder) for image in (images if letter == "A" else images[::-1])]
        pair = ContextPair(name, "", "", *images, "image", prompt, letter)
    else:
        unknown = set(row) - {f for f in ContextPair.__dataclass_fields__ if f != "letter"}
        if unknown:
            raise DataError(f"unknown field(s) {short(', '.join(sorted(unknown)))}")
        values = {name: text(name) for name in SHAPES["supporting"]}
        kind, prompt = row.get("kind", "image"), row.get("prompt", "")
        if kind not in ("image", "text"):
            raise DataError("'kind' must be image or text")
        places = [IMAGE_MARK, IMAGE_MARK] if kind == "image" else ["{A}", "{B}"]
        if not isinstance(prompt, str) or prompt and any(prompt.count(p) != places.count(p) for p in places):
            raise DataError(f"'prompt' needs the places {' and '.join(places)}, each once")
        if kind == "image":
            values |= {name: picture_of(values[name], folder) for name in ("supporting", "confounding")}
        pair = ContextPair(**values, kind=kind, prompt=prompt)
    if same_context(pair):
        raise DataError("both contexts are the same")
    return pair


def letter_of(row: dict, name: str) -> str:
    if row.get(name) not in ("A", "B"):
        raise DataError(f"field '{name}' is not a letter A or B")
    return row[name]


def picture_of(image, folder: Path) -> str | bytes:
    """Path or encoded file of an image that can be read, by its header."""
    if isinstance(image, dict):                                                         # as parquet has it
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, (str, bytes)) or not image:
        raise DataError("an image is missing")
    image = str(folder / image) if isinstance(image, str) else image
    open_picture(image).close()
    return image


def same_context(pair: ContextPair) -> bool:
    """The same text but for blanks, or the same file.  (One picture in two formats is not noticed.)"""
    one, other = pair.supporting, pair.confounding
    if pair.kind == "text":
        return one.split() == other.split()
    if isinstance(one, str) and isinstance(other, str) and os.path.getsize(one) != os.path.getsize(other):
        return False
    return encoded(one) == encoded(other)


def encoded(image: str | bytes) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def save_pairs(pairs: Iterable[ContextPair], path: str | Path) -> int:
    """JSONL, plus images/ beside it, where a picture is named by its content: several files may share it.
    -> how many.  Letters are not written: they are dealt when the file is read.

    Written as the pairs come, into PATH.part, which takes PATH's place when it is whole; of no pair nothing
    is left.
    """
    path, written = Path(path), 0
    part = path.with_name(f"{path.name}.part")
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "w", encoding="utf-8") as file:
            for pair in pairs:
                row = {name: value for name, value in asdict(pair).items()
                       if name != "letter" and value != ""}
                for side in ("supporting", "confounding") if pair.kind == "image" else ():
                    name = hashlib.sha256(encoded(row[side])).hexdigest()[:32]
                    row[side] = save_image(row[side], path.parent / "images", name, replace=True)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                written += 1
    finally:
        if not written:
            part.unlink(missing_ok=True)
    if written:
        part.replace(path)
    return written


def drop_unaskable(pairs: list[ContextPair], processor, longest: int) -> list[ContextPair]:
    """Pairs that this model can be asked: no special token in their texts, and no text of more than `longest`
    tokens.  The others are counted and named.  (An image is bounded by its number of pixels.)"""
    askable, bad = [], []
    for pair in pairs:
        query = query_of_pair(pair)
        try:
            processor.check(query)
            tokens = len(processor.tokenizer(query.question)["input_ids"])
            if tokens > longest:
                raise DataError(f"query {short(query.id)}: {tokens} tokens, more than {longest}")
            askable.append(pair)
        except DataError as error:
            bad.append(str(error))
    if not askable:
        raise DataError(f"no usable context pair, the first: {bad[0]}")
    report_skipped(bad, f"context pairs skipped, {len(askable)} kept")
    return askable


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m context_pairs.pairs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", help="or a folder, or a hub id")
    args = parser.parse_args()
    with one_line_errors():
        pairs, broken = load_pairs(args.file), 0
    for pair in pairs:
        for image in (pair.supporting, pair.confounding) if pair.kind == "image" else ():
            try:
                read_picture(image)
            except DataError as error:
                broken += 1
                print(f"pair {short(pair.id)}: {error}", file=sys.stderr)
    kinds, letters = Counter(p.kind for p in pairs), Counter(p.letter for p in pairs)
    print(f"{len(pairs)} context pairs ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}), "
          f"right option: A {letters['A']}, B {letters['B']}")
    print(query_of_pair(pairs[0]).question)
    sys.exit(2 if broken else 0)


if __name__ == "__main__":
    main()
