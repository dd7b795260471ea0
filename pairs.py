"""Context pairs: given a question and its answer, which of two nearly identical contexts supports the answer?

Data of the second method of this name (Context-Aware RL, arXiv 2606.17053).  A context is an image, or a text such as
an agent's trajectory.  Both stand in ONE prompt as options A and B; the policy is not sampled, its two letters are
compared (grpo.context_loss).  A file is JSONL, one pair a line, image paths relative to it:

    {"id": "p1", "question": "how many red ?", "answer": "3", "supporting": "a.png", "confounding": "b.png"}

    "kind": "text"      supporting and confounding are texts, not images
    "prompt"            another wording of the task: two marks <image>, or {A} and {B} where the texts go; {question}
                        and {answer} are filled in

Rows of the released loaders are read as well (JSONL, or parquet with encoded images; a folder or hub id of such):

    problem, answer, images       two images and an answer A or B, where A names the first image; rows with one image or
                                  none are ordinary queries and left out.  "Output A or B directly." is added
    prompt, correct_answer        both contexts are part of the text already: the order stays as it is

Which option is right is not taken from the file but dealt anew when it is read, from the seed: half A, half B.

    python pairs.py show FILE                                       what is in it and what is wrong with it
    python pairs.py similar POOL OUT --model MODEL                  pairs from a pool of queries: alike pictures, the
                                                                    same question, different answers
    python pairs.py filter TRAJECTORIES OUT --same repo commit file pairs of trajectories that agree in these fields
    python pairs.py edit POOL OUT --command 'program'               pairs by a program that edits pictures
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from answers import same
from data import IMAGE_MARK, DataError, Query, check_picture, json_lines, load_queries, read_picture, save_image

OUTPUT = "Output A or B directly."
IMAGE_PROMPT = (f"A: {IMAGE_MARK}\nB: {IMAGE_MARK}\nQuestion: {{question}}\nAnswer: {{answer}}\n"
                f"Which of the two images supports this answer? {OUTPUT}")
TEXT_PROMPT = ("Question:\n{question}\n\nAnswer:\n{answer}\n\nContext A:\n{A}\n\nContext B:\n{B}\n\n"
               f"Which of the two contexts supports this answer? {OUTPUT}")
FAMILY = "context"                                 # of a pair that is asked as an ordinary query
REPORTED = 10                                      # bad rows that are named; the others are counted
MASK = "[masked]"


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

    A row that cannot be used is skipped, counted and named on stderr, ordinary rows are counted; no pair at all is an
    error.
    """
    pairs, seen, bad, ordinary = [], set(), [], 0
    for where, row, folder in rows_of(str(source)):
        try:
            pair = pair_of_row(row() if callable(row) else row, folder, where)
            if pair.id in seen:
                raise DataError(f"id '{pair.id}' appears twice")
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
              f"{len(bad)} bad rows and {ordinary} ordinary ones skipped, {len(pairs)} pairs read from {source}",
              sep="\n", file=sys.stderr)
    return deal_letters(pairs, seed)


def deal_letters(pairs: list[ContextPair], seed: int) -> list[ContextPair]:
    """Half of the pairs get A, half B, exactly, whatever the order of the file: a policy that always says the same
    letter has an accuracy of 0.5.  Pairs whose order is fixed keep theirs."""
    free = sorted((p.id for p in pairs if p.kind != "prompt"),
                  key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    letters = {name: "AB"[i % 2] for i, name in enumerate(free)}
    return [replace(p, letter=letters.get(p.id, p.letter)) for p in pairs]


def turned(pair: ContextPair) -> ContextPair:
    """The same pair with its contexts in the other order."""
    return replace(pair, letter="B" if pair.letter == "A" else "A")


def as_query(pair: ContextPair) -> Query:
    """What the policy is asked; the reference is the letter, and no judge is needed to compare it.  (Its id is not the
    pair's: a builder takes that from a query, which may be trained on as well.)"""
    ordered = (pair.supporting, pair.confounding) if pair.letter == "A" else (pair.confounding, pair.supporting)
    text = pair.prompt or {"image": IMAGE_PROMPT, "text": TEXT_PROMPT}[pair.kind]
    values = dict(zip("AB", ordered)) if pair.kind == "text" else {}
    if pair.question:                                                         # else a released row: nothing to fill in
        values |= {name: getattr(pair, name).replace(IMAGE_MARK, "").strip() for name in ("question", "answer")}
    # One pass over the marks, so that braces and marks inside the texts stay what they are.
    text = re.sub(r"\{(question|answer|A|B)\}", lambda m: values.get(m[1], m[0]), text)
    images = list(ordered) if pair.kind == "image" else []
    return Query(f"pair-{pair.id}", images, text, pair.letter, pair.letter, FAMILY, {"rule": True})


def rows_of(source: str) -> Iterator[tuple]:
    """-> ("file:row", row, folder of its images).  A row may be a function that raises DataError."""
    path = Path(source)
    files = sorted([*path.glob("*.parquet"), *path.glob("*.jsonl")]) if path.is_dir() else [path]
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and path.suffix not in (".jsonl", ".parquet"):
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
            yield from ((f"{file.name}:{i}", row, file.parent) for i, row in enumerate(parquet_rows(file)))


def json_row(line: bytes) -> dict:
    try:
        row = json.loads(line.decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode()                      # half a surrogate pair could not be written
    except UnicodeError:
        raise DataError("not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a JSON object ({getattr(error, 'msg', 'too deep or too long')})") from None
    if not isinstance(row, dict):
        raise DataError("a row must be a JSON object")
    return row


def parquet_rows(file: Path) -> Iterator[dict]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{file}: reading parquet files needs: pip install pyarrow") from None
    try:
        with ParquetFile(file, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {file}: {str(error).splitlines()[0]}") from None


def hub_rows(name: str) -> Iterator[dict]:
    try:
        from datasets import Image, load_dataset
        from datasets.exceptions import DatasetNotFoundError
    except ImportError:
        raise DataError(f"{name}: reading from the hub needs: pip install datasets") from None
    try:
        rows = load_dataset(name, split="train", streaming=True)
        for column, kind in (rows.features or {}).items():
            inner = getattr(kind, "feature", kind[0] if isinstance(kind, list) else kind)
            if isinstance(inner, Image):                                 # encoded files, as in parquet
                rows = rows.cast_column(column, [Image(decode=False)] if inner is not kind else Image(decode=False))
        yield from rows
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise DataError(f"cannot read {name} from the hub: {(str(error).splitlines() or [''])[0]}") from None


# Which fields a row needs, by the field that tells its shape.
SHAPES = {"correct_answer": ("prompt", "correct_answer"), "problem": ("problem", "answer", "images"),
          "supporting": ("id", "question", "answer", "supporting", "confounding")}


def pair_of_row(row: dict, folder: Path, where: str) -> ContextPair:
    """One row of any of the three shapes."""
    shape = next((name for name in SHAPES if name in row), None)
    if shape is None:
        raise DataError("neither fields of a context pair (question, answer, supporting, confounding) nor of a "
                        "released one (problem, answer, images; or prompt, correct_answer)")

    def text(field: str) -> str:
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise DataError(f"field '{field}' is missing or empty")
        return row[field]

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
            raise DataError(f"unknown field(s) {', '.join(sorted(unknown))}")
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
    if isinstance(image, dict):                                                       # as parquet has it
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, (str, bytes)) or not image:
        raise DataError("an image is missing")
    image = str(folder / image) if isinstance(image, str) else image
    check_picture(image)
    return image


def same_context(pair: ContextPair) -> bool:
    """The same text but for blanks, or the same file.  (One picture in two formats is not noticed.)"""
    one, other = pair.supporting, pair.confounding
    if pair.kind == "text":
        return one.split() == other.split()
    if isinstance(one, str) and isinstance(other, str) and os.path.getsize(one) != os.path.getsize(other):
        return False
    return one == other or len({x if isinstance(x, bytes) else Path(x).read_bytes() for x in (one, other)}) == 1


def save_pairs(pairs: Iterable[ContextPair], path: str | Path) -> int:
    """JSONL, plus images/ beside it, written as the pairs come.  -> how many.  Letters are not written: they are dealt
    when the file is read."""
    path, count = Path(path), 0
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for count, pair in enumerate(pairs, start=1):
            row = {name: value for name, value in asdict(pair).items() if name != "letter" and value != ""}
            if pair.kind == "image":
                for side in ("supporting", "confounding"):
                    row[side] = save_image(row[side], path.parent / "images", f"{pair.id}-{side}", replace=True)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    return count


def usable(pairs: list[ContextPair], processor, longest: int) -> list[ContextPair]:
    """Pairs that this model can be asked: no special token in their texts, and no text of more than `longest` tokens.
    The others are counted and named.  (An image is bounded by its number of pixels.)"""
    kept, bad = [], []
    for pair in pairs:
        query = as_query(pair)
        try:
            processor.check(query)
            tokens = len(processor.tokenizer(query.question)["input_ids"])
            if tokens > longest:
                raise DataError(f"query {query.id}: {tokens} tokens, more than {longest}")
            kept.append(pair)
        except DataError as error:
            bad.append(str(error))
    if not kept:
        raise DataError(f"no usable context pair, the first: {bad[0]}")
    if bad and os.environ.get("RANK", "0") == "0":
        print(*(f"skipped {problem}" for problem in bad[:REPORTED]),
              f"{len(bad)} context pairs skipped, {len(kept)} kept", sep="\n", file=sys.stderr)
    return kept


# ---------------------------------------------------------------------------------------------------- building
# Each builder takes queries (or trajectories) and counts what it leaves out.

def similar_pairs(queries: list[Query], vectors, least: float, left_out: Counter) -> Iterator[ContextPair]:
    """Similarity search: for each query the nearest picture of the pool about which the SAME question has another
    answer, so the label needs no model.  `vectors` [n, d] float32, one row for the picture of each query.

    Centred on the pool's mean first: the vectors of a vision tower share so much that else all are alike.  What is
    alike then depends on the model, so the cosines that were found are printed.
    """
    import numpy as np

    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines, asked = [], defaultdict(list)
    for i, query in enumerate(queries):
        asked[" ".join(query.question.lower().split())].append(i)
    for members in asked.values():
        here = vectors[members]
        for k, i in enumerate(members):
            order = np.argsort(-(here @ here[k]), kind="stable")
            other = next((members[j] for j in order if not same(queries[members[j]].answer, queries[i].answer)), None)
            if other is None:
                left_out["no other answer to the question in the pool"] += 1
                continue
            pair = ContextPair(queries[i].id, queries[i].question, queries[i].answer, queries[i].images[0],
                               queries[other].images[0])
            if same_context(pair):
                left_out["the nearest picture with another answer is the same picture: a wrong label"] += 1
                continue
            cosines.append(float(vectors[other] @ vectors[i]))
            if cosines[-1] < least:
                left_out[f"no picture with another answer within a cosine of {least}"] += 1
            else:
                yield pair
    if cosines:
        print("cosine of the nearest picture with another answer: " + ", ".join(
            f"{share} % of the queries above {np.percentile(cosines, 100 - share):.2f}" for share in (90, 50, 10, 1)))


def picture_vectors(queries: list[Query], model: str):
    """[n, d] float32: mean over the image tokens that the model's vision tower makes of each picture."""
    import numpy as np
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForImageTextToText

    from data import Processor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        processor = Processor(model)
        tower = AutoModelForImageTextToText.from_pretrained(model).model.visual.eval().to(device)
    except (OSError, ValueError, AttributeError, RuntimeError, KeyError) as error:
        raise DataError(f"cannot load model {model}: {(str(error).splitlines() or [''])[0]}") from None
    vectors = []
    with torch.no_grad():
        for query in tqdm(queries, desc="vectors"):
            pixels, grid = processor.pixels(query.images[0])
            out = tower(pixels.to(device, tower.dtype), grid_thw=torch.tensor([grid], device=device))
            vectors.append(out.pooler_output.float().mean(dim=0).cpu().numpy())
    return np.stack(vectors)


def filtered_pairs(rows: list[dict], fields: list[str], left_out: Counter) -> Iterator[ContextPair]:
    """Condition filtering: two trajectories that agree in all `fields` (repository, commit, file, ...) but were about
    different questions with different answers.  What either answer says is masked in both, or the text would tell."""
    groups = defaultdict(list)
    for row in rows:
        if all(row.get(name) not in (None, "") for name in fields):
            groups[json.dumps([row[name] for name in fields])].append(row)
        else:
            left_out["a field of --same is missing"] += 1
    for group in groups.values():
        for i, row in enumerate(group):
            others = (group[(i + step) % len(group)] for step in range(1, len(group)))
            other = next((o for o in others if all(o[name].split() != row[name].split()
                                                   for name in ("question", "answer"))), None)
            if other is None:
                left_out["no partner"] += 1
                continue
            texts = [masked(r["context"], row["answer"], other["answer"]) for r in (row, other)]
            pair = ContextPair(row["id"], row["question"], row["answer"], *texts, "text")
            if same_context(pair):
                left_out["the same context once the answers are masked"] += 1
            else:
                yield pair


def masked(context: str, *answers: str) -> str:
    """Takes what the answers say out of a context: their lines of at least 8 characters, also where they are changed
    lines of a patch, and a short answer (one line, less than that) wherever it stands as a word.

    >>> masked("edit a.py: return x + 1, done", "-    return x\\n+    return x + 1")
    'edit a.py: [masked], done'
    >>> masked("yes, it was yesterday", "yes")
    '[masked], it was yesterday'
    """
    lines = {re.sub(r"^[+-](?![+-]{2} )", "", line).strip() for answer in answers for line in answer.splitlines()}
    for line in sorted((line for line in lines if len(line) >= 8), key=len, reverse=True):
        context = context.replace(line, MASK)
    for answer in {a.strip() for a in answers if len(a.strip()) < 8}:
        context = re.sub(rf"(?<!\w){re.escape(answer)}(?!\w)", lambda _: MASK, context)
    return context


def read_trajectories(path: Path, left_out: Counter) -> list[dict]:
    """Rows {"id", "question", "answer", "context", ...}; a context may be a list of chat messages."""
    rows, seen = [], set()
    for where, line in json_lines(path):
        try:
            row = json_row(line)
            if isinstance(row.get("context"), list):
                row["context"] = "\n\n".join(f"{m['role']}: {m['content']}" for m in row["context"])
            for name in ("question", "answer", "context"):
                if not isinstance(row.get(name), str) or not row[name].strip():
                    raise DataError(f"field '{name}' is missing or empty")
            row["id"] = where if row.get("id") in (None, "") else str(row["id"])
            if row["id"] in seen:
                raise DataError(f"id '{row['id']}' appears twice")
            seen.add(row["id"])
            rows.append(row)
        except (DataError, KeyError, TypeError) as error:
            left_out["bad rows"] += 1
            print(f"skipped {where}: {error if isinstance(error, DataError) else 'a message is none'}", file=sys.stderr)
    return rows


def edited_pairs(queries: list[Query], command: str, timeout: float, left_out: Counter) -> Iterator[ContextPair]:
    """Generative editing, done by a program of yours (an image model, say).  It runs once per query, gets
    {"question", "answer", "image": path, "output": path} as JSON on stdin, writes the edited picture to `output` (PNG)
    and prints {"answer": the answer of the edited picture}; another exit code than 0 means that it declines.

    Each edit makes two pairs: the original supports its answer, the edited picture supports the new one.
    """
    for query in queries:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "image.png", Path(folder) / "edited.png"
            read_picture(query.images[0]).save(before)
            asked = {"question": query.question, "answer": query.answer, "image": str(before), "output": str(after)}
            code, output = run_editor(command, json.dumps(asked), timeout)
            if code is None:
                left_out["the program took too long"] += 1
                continue
            if code:
                left_out[f"the program declined (exit code {code})"] += 1
                continue
            try:
                answer = json.loads(output)["answer"]
                unchanged = read_picture(str(after)).tobytes() == read_picture(str(before)).tobytes()
            except DataError:
                left_out["the program wrote no picture that can be read"] += 1
            except (ValueError, KeyError, TypeError):
                left_out["the program printed no answer"] += 1
            else:
                if not isinstance(answer, str) or not answer.strip() or same(answer, query.answer):
                    left_out["the answer did not change"] += 1
                elif unchanged:
                    left_out["the picture did not change"] += 1
                else:
                    pictures = [before.read_bytes(), after.read_bytes()]
                    yield ContextPair(query.id, query.question, query.answer, *pictures)
                    yield ContextPair(f"{query.id}-edited", query.question, answer, *reversed(pictures))


def run_editor(command: str, text: str, timeout: float) -> tuple[int | None, str]:
    """-> (exit code, stdout); None: it took too long, and all that it started is ended.  Its stderr is shown."""
    program = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        output, _ = program.communicate(text, timeout)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
        return None, ""
    if program.returncode in (126, 127):                                          # the shell could not start it
        raise DataError(f"--command cannot be run: {command}")
    return program.returncode, output


def show(source: str) -> None:
    pairs, broken = load_pairs(source), 0
    for pair in pairs:
        for image in (pair.supporting, pair.confounding) if pair.kind == "image" else ():
            try:
                read_picture(image)
            except DataError as error:
                broken += 1
                print(f"pair {pair.id}: {error}", file=sys.stderr)
    kinds, letters = Counter(p.kind for p in pairs), Counter(p.letter for p in pairs)
    print(f"{len(pairs)} context pairs ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}), "
          f"right option: A {letters['A']}, B {letters['B']}")
    print(as_query(pairs[0]).question)
    sys.exit(2 if broken else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command_", required=True)
    commands.add_parser("show").add_argument("source")
    similar, filter_, edit = (commands.add_parser(name) for name in ("similar", "filter", "edit"))
    for command, what in ((similar, "queries, as data.py reads them"), (filter_, "JSONL of trajectories"),
                          (edit, "queries, as data.py reads them")):
        command.add_argument("pool", help=what)
        command.add_argument("out", type=Path, help="JSONL file to write; images/ beside it")
    vectors = similar.add_mutually_exclusive_group(required=True)
    vectors.add_argument("--model", help="checkpoint whose vision tower compares the pictures, e.g. the policy")
    vectors.add_argument("--vectors", help=".npy file [n, d], one row per query, from any other model")
    similar.add_argument("--cosine", type=float, default=0.85, help="least similarity (the paper's 0.85)")
    filter_.add_argument("--same", nargs="+", required=True, help="fields in which both trajectories agree")
    edit.add_argument("--command", required=True, help="program; see edited_pairs() for what it gets and returns")
    edit.add_argument("--timeout", type=float, default=600.0, help="seconds for one picture")
    args = parser.parse_args()
    try:
        if args.command_ == "show":
            return show(args.source)
        build(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def build(args: argparse.Namespace) -> None:
    left_out = Counter()
    if args.out.is_dir():
        raise DataError(f"{args.out} is a folder")
    if args.command_ == "filter":
        found = filtered_pairs(read_trajectories(Path(args.pool), left_out), args.same, left_out)
    else:
        queries = load_queries(args.pool)
        vectors = read_vectors(args.vectors, len(queries)) if args.command_ == "similar" and args.vectors else None
        keep = [i for i, query in enumerate(queries) if readable(query, left_out)]
        queries = [queries[i] for i in keep]
        if not queries:
            raise DataError(f"no query with exactly one readable picture in {args.pool}")
        if args.command_ == "edit":
            found = edited_pairs(queries, args.command, args.timeout, left_out)
        else:
            found = similar_pairs(queries, picture_vectors(queries, args.model) if vectors is None else vectors[keep],
                                  args.cosine, left_out)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        count = save_pairs(found, args.out)
    except OSError as error:
        raise DataError(f"cannot write {args.out}: {error.strerror}") from None
    lines = [f"left out: {n}, {why}" for why, n in left_out.items() if n]
    if not count:
        args.out.unlink()
        raise DataError("; ".join(["no pair found", *lines]))
    print(*lines, f"{count} context pairs written to {args.out}", sep="\n")


def readable(query: Query, left_out: Counter) -> bool:
    """Whether a query has exactly one picture, all of which can be read."""
    try:
        if len(query.images) == 1:
            return bool(read_picture(query.images[0]))
        left_out["not exactly one picture"] += 1
    except DataError:
        left_out["the picture cannot be read"] += 1
    return False


def read_vectors(file: str, rows: int):
    import numpy as np

    try:
        vectors = np.load(file, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise DataError(f"cannot read {file} as one .npy array ({type(error).__name__})") from None
    if vectors.ndim != 2 or len(vectors) != rows or not np.isfinite(vectors).all():
        raise DataError(f"{file}: {vectors.shape}, finite rows for {rows} queries are needed")
    return vectors


if __name__ == "__main__":
    import pairs                    # not this copy of it: what the readers raise has to be what main() catches

    pairs.main()
