"""Builds context pairs (pairs.py) in the three ways of arXiv 2606.17053 that need no service of their own.

    python -m context_pairs.build similar POOL OUT --model MODEL
        similarity search in a pool of queries: alike pictures, the same question, different answers
    python -m context_pairs.build filter FILE OUT --same repo file
        condition filtering: trajectories that agree in these fields, with the answers masked
    python -m context_pairs.build edit POOL OUT --command 'program'
        generative editing by a program of yours

POOL is a JSONL file of queries (data.py), FILE is JSONL of trajectories: {"id", "question", "answer",
"context", ...}.  OUT is a JSONL file, images/ lies beside it; until it is whole it is OUT.part.  What is left
out is counted.

The paper goes on to let a strong model check the pairs, and keeps those that the policy solves now and then;
neither is done here.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from context_pairs.pairs import ContextPair, same_context, save_pairs
from data import (
    REPORTED,
    DataError,
    Processor,
    Query,
    json_lines,
    json_row,
    load_model,
    load_queries,
    read_picture,
    short,
    text_of,
)
from judges.equality import same_answer
from tools.programs import one_line_errors

MASK = "[masked]"


# ------------------------------------------------------------------------------------------ similarity search

def similar_pairs(queries: list[Query], vectors: np.ndarray, min_cosine: float,
                  left_out: Counter) -> Iterator[ContextPair]:
    """Similarity search: for each query the nearest picture of the pool about which the SAME question has
    another answer, so the label needs no model.  `vectors` [n, d] float32, one row for the picture of each
    query.

    Centred on the pool's mean first: the vectors of a vision tower share so much that else all are alike.
    What is alike then depends on the model, so the cosines that were found are printed.
    """
    vectors = vectors - vectors.mean(axis=0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines, by_question = [], defaultdict(list)
    for i, query in enumerate(queries):
        by_question[" ".join(query.question.lower().split())].append(i)
    for members in by_question.values():
        group = vectors[members]
        for k, i in enumerate(members):
            nearest_first = np.argsort(-(group @ group[k]), kind="stable")
            other = next((members[j] for j in nearest_first
                          if not same_answer(queries[members[j]].answer, queries[i].answer)), None)
            if other is None:
                left_out["no other answer to the question in the pool"] += 1
                continue
            pair = ContextPair(queries[i].id, queries[i].question, queries[i].answer, queries[i].images[0],
                               queries[other].images[0])
            if same_context(pair):
                left_out["the nearest picture with another answer is the same picture: a wrong label"] += 1
                continue
            cosines.append(float(vectors[other] @ vectors[i]))
            if cosines[-1] < min_cosine:
                left_out[f"no picture with another answer within a cosine of {min_cosine}"] += 1
            else:
                yield pair
    if cosines:
        print("cosine of the nearest picture with another answer: " + ", ".join(
            f"{share} % of the queries above {np.percentile(cosines, 100 - share):.2f}"
            for share in (90, 50, 10, 1)))


@torch.no_grad()
def picture_vectors(queries: list[Query], processor: Processor, tower: torch.nn.Module) -> np.ndarray:
    """[n, d] float32: mean over the image tokens that a model's vision tower makes of each picture."""
    vectors = []
    for query in tqdm(queries, desc="vectors"):
        pixels, grid = processor.pixels(query.images[0])
        out = tower(pixels.to(tower.device, tower.dtype), grid_thw=torch.tensor([grid], device=tower.device))
        vectors.append(out.pooler_output.float().mean(dim=0).cpu().numpy())
    return np.stack(vectors)


def read_vectors(file: str, rows: int) -> np.ndarray:
    try:
        vectors = np.load(file, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise DataError(f"cannot read {file} as one .npy array ({type(error).__name__})") from None
    if vectors.ndim != 2 or len(vectors) != rows or not np.isfinite(vectors).all():
        raise DataError(f"{file}: {vectors.shape}, finite rows for {rows} queries are needed")
    return vectors


# ---------------------------------------------------------------------------------------- condition filtering

def filtered_pairs(rows: list[dict], fields: list[str], left_out: Counter) -> Iterator[ContextPair]:
    """Condition filtering: two trajectories that agree in all `fields` (repository, commit, file, ...) but
    were about different questions with different answers.  What either answer says is masked in both, or the
    text would tell."""
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
    """Takes what the answers say out of a context: a whole answer wherever it stands as words, whatever the
    blanks, and of longer ones each line of at least 8 characters.  Both also where they are changed lines of
    a patch.

    >>> masked("edit a.py: return x + 1, done", "-    return x\\n+    return x + 1")
    'edit a.py: [masked], done'
    >>> masked("set x = 1\\n  y = 2 in the file", "x = 1\\ny = 2")
    'set [masked] in the file'
    >>> masked("yes, it was yesterday", "yes")
    '[masked], it was yesterday'
    """
    unsigned = {answer: [re.sub(r"^[+-](?![+-]{2} )", "", line).strip() for line in answer.splitlines()]
                for answer in sorted(answers, key=len, reverse=True)}
    for answer, lines in unsigned.items():
        texts = [line for line in lines if line and len(lines) > 1] or [answer]        # -5 is no patch
        whole = r"\s+[+-]?\s*".join(r"\s+".join(map(re.escape, text.split())) for text in texts)
        context = re.sub(rf"(?<!\w){whole}(?!\w)", lambda _: MASK, context)
    lines = {line for lines in unsigned.values() for line in lines if len(line) >= 8}
    for line in sorted(lines, key=len, reverse=True):
        context = context.replace(line, MASK)
    return context


def read_trajectories(path: Path, left_out: Counter) -> list[dict]:
    """Rows {"id", "question", "answer", "context", ...}; a context may be a list of chat messages."""
    rows, seen = [], set()
    for where, line in json_lines(path):
        try:
            row = json_row(line)
            if isinstance(row.get("context"), list):
                row["context"] = "\n\n".join(f"{m['role']}: {m['content']}" for m in row["context"])
            row |= {name: text_of(row, name) for name in ("question", "answer", "context")}
            row["id"] = where if row.get("id") in (None, "") else str(row["id"])
            if row["id"] in seen:
                raise DataError(f"id '{short(row['id'])}' appears twice")
            seen.add(row["id"])
            rows.append(row)
        except (DataError, KeyError, TypeError) as error:
            left_out["bad rows"] += 1
            why = error if isinstance(error, DataError) else "a message is none"
            if left_out["bad rows"] <= REPORTED:
                print(f"skipped {where}: {why}", file=sys.stderr)
    return rows


# ----------------------------------------------------------------------------------------- generative editing

def edited_pairs(queries: list[Query], command: str, timeout: float,
                 left_out: Counter) -> Iterator[ContextPair]:
    """Generative editing, done by a program of yours (an image model, say).  It runs once per query, gets
    {"question", "answer", "image": path, "output": path} as JSON on stdin, writes the edited picture to
    `output` (PNG) and prints {"answer": the answer of the edited picture}; another exit code than 0 means
    that it declines.

    Each edit makes two pairs: the original supports its answer, the edited picture supports the new one.
    """
    for query in queries:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "image.png", Path(folder) / "edited.png"
            read_picture(query.images[0]).save(before)
            task = {"question": query.question, "answer": query.answer,
                    "image": str(before), "output": str(after)}
            code, output = run_editor(command, json.dumps(task), timeout)
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
                if not isinstance(answer, str) or not answer.strip() or same_answer(answer, query.answer):
                    left_out["the answer did not change"] += 1
                elif unchanged:
                    left_out["the picture did not change"] += 1
                else:
                    pictures = [before.read_bytes(), after.read_bytes()]
                    yield ContextPair(query.id, query.question, query.answer, *pictures)
                    yield ContextPair(f"{query.id}-edited", query.question, answer, *reversed(pictures))


def run_editor(command: str, text: str, timeout: float) -> tuple[int | None, str]:
    """-> (exit code, stdout); None: it took too long, and all that it started is ended.  Its stderr is
    shown."""
    program = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    try:
        output, _ = program.communicate(text, timeout)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
        return None, ""
    if program.returncode in (126, 127):                                 # the shell could not start it
        raise DataError(f"--command cannot be run: {command}")
    return program.returncode, output


# ----------------------------------------------------------------------------------------------- command line

def readable(query: Query, left_out: Counter) -> bool:
    """Whether a query has exactly one picture, all of which can be read."""
    try:
        if len(query.images) == 1:
            return bool(read_picture(query.images[0]))
        left_out["not exactly one picture"] += 1
    except DataError:
        left_out["the picture cannot be read"] += 1
    return False


def build(args: argparse.Namespace, load_tower: Callable) -> None:
    left_out = Counter()
    if args.out.is_dir():
        raise DataError(f"{args.out} is a folder")
    if args.way == "filter":
        pairs = filtered_pairs(read_trajectories(Path(args.pool), left_out), args.same, left_out)
    else:
        queries = load_queries(args.pool)
        vectors = read_vectors(args.vectors, len(queries)) if args.way == "similar" and args.vectors else None
        keep = [i for i, query in enumerate(queries) if readable(query, left_out)]
        queries = [queries[i] for i in keep]
        if not queries:
            raise DataError(f"no query with exactly one readable picture in {args.pool}")
        if args.way == "edit":
            pairs = edited_pairs(queries, args.command, args.timeout, left_out)
        else:
            vectors = (picture_vectors(queries, *load_tower(args.model)) if vectors is None
                       else vectors[keep])
            pairs = similar_pairs(queries, vectors, args.cosine, left_out)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        count = save_pairs(pairs, args.out)
    except OSError as error:
        raise DataError(f"cannot write {args.out}: {error.strerror}") from None
    lines = [f"left out: {n}, {why}" for why, n in left_out.items() if n]
    if not count:
        raise DataError("; ".join(["no pair found", *lines]))
    print(*lines, f"{count} context pairs written to {args.out}", sep="\n")


def main() -> None:
    def load_tower(model: str) -> tuple[Processor, torch.nn.Module]:
        from training.parts import load_processor, loading, model_path

        processor = load_processor(model)
        with loading(f"model {model}"):
            tower = load_model(model_path(model), "auto").model.visual.eval()
        return processor, tower.to("cuda" if torch.cuda.is_available() else "cpu")

    parser = argparse.ArgumentParser(prog="python -m context_pairs.build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    similar, filtering, edit = (ways.add_parser(name) for name in ("similar", "filter", "edit"))
    for way, what in ((similar, "JSONL file of queries"), (filtering, "JSONL file of trajectories"),
                      (edit, "JSONL file of queries")):
        way.add_argument("pool", help=what)
        way.add_argument("out", type=Path, help="JSONL file to write; images/ beside it")
    source = similar.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="whose vision tower compares the pictures, e.g. the policy")
    source.add_argument("--vectors", help=".npy file [n, d], one row per query, from any other model")
    similar.add_argument("--cosine", type=float, default=0.85, help="least similarity (the paper's 0.85)")
    filtering.add_argument("--same", nargs="+", required=True, help="fields in which both trajectories agree")
    edit.add_argument("--command", required=True, help="program; edited_pairs() says what it gets, returns")
    edit.add_argument("--timeout", type=float, default=600.0, help="seconds for one picture")
    with one_line_errors():
        build(parser.parse_args(), load_tower)


if __name__ == "__main__":
    main()
