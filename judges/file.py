"""Judges a file of responses, or a run's rollouts.jsonl again; a stopped session goes on.

    python -m judges.file --url http://localhost:8000 --responses FILE.jsonl [--out VERDICTS.jsonl]

A row of --responses is a row of a data file (data.py) + "response"; a run's rollouts.jsonl will do as well.
"""

import argparse
import hashlib
import math
import threading
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from data import REQUIRED, DataError, Query, json_lines, json_row, text_of
from judges.rule import RuleFirst, answers_match
from judges.server import OpenAIChat
from reward import CONTEXTS, VerdictStatus, Verifier, VerifierUnreliable, judge_messages, side_by_side
from tools.files import append_rows, read_rows, write_rows
from tools.programs import one_line_errors


def load_responses(path: Path) -> dict[str, tuple[Query, str]]:
    """Name ("line" or "line/stage/member") -> query and response.  Bad rows raise DataError naming file and
    line: a judgement of half a file would look like one of all of it."""
    items = {}
    for where, line in json_lines(path):
        number = where.rpartition(":")[2]
        try:
            row = json_row(line)
            if "stage1" in row:                                 # of a run's rollouts.jsonl
                texts = {f"{number}/{stage}/{i}": member["text"] for stage in (1, 2)
                         for i, member in enumerate(row[f"stage{stage}"])}
                row = {"id": row["query"]} | {k: row[k] for k in ("images", "family", *REQUIRED[1:])}
            else:
                texts = {number: row.pop("response")}
            row["images"] = [str(path.parent / image) for image in row.get("images", [])]
            query = Query(**row | {name: text_of(row, name) for name in REQUIRED})
            if not all(isinstance(text, str) for text in texts.values()):
                raise DataError("'response' is not a text")
        except (DataError, TypeError, AttributeError, KeyError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise DataError(f"{where}: not a query with a response ({problem})") from None
        for image in query.images:
            if not Path(image).is_file():
                raise DataError(f"{where}: image not found: {image}")
        items |= {name: (query, text) for name, text in texts.items()}
    if not items:
        raise DataError(f"no responses in {path}")
    return items


def verdicts_so_far(out: Path, digests: dict[str, str]) -> list[dict]:
    """Rows of an earlier, stopped session.  Failed ones and a half-written last one are dropped: they are
    asked for again."""
    rows = []
    for number, row in enumerate(read_rows(out) if out.exists() else (), start=1):
        if not row.keys() >= {"name", "digest", "status"}:
            raise DataError(f"{out}:{number}: not a verdict")
        if row["digest"] != digests.get(row["name"]):
            raise DataError(f"{out}:{number}: is of other responses, model or context: choose another --out")
        rows += [row] if row["status"] == VerdictStatus.JUDGED else []
    write_rows(out, rows)
    return rows


def judge_file(args: argparse.Namespace) -> None:
    """Every row is written as soon as it is judged; rows that are in --out already are not asked for
    again."""
    items = load_responses(args.responses)
    out = args.out or args.responses.with_suffix(".verdicts.jsonl")
    if not out.parent.is_dir():
        raise DataError(f"--out: no folder {out.parent}")
    chat = OpenAIChat(args.url, args.model, args.timeout, structured=not args.no_schema)
    chat.check()
    model_verifier = Verifier(chat, args.context, args.concurrency, prompt_file=args.judge_prompt)
    verifier = RuleFirst(model_verifier)
    start, lock = time.monotonic(), threading.Lock()
    prompts = {name: judge_messages(*item, model_verifier.template)[0]["content"][-1]["text"]
               for name, item in items.items()}
    digests = {name: hashlib.sha256(f"{chat.model}\n{prompt}".encode()).hexdigest()[:16]
               for name, prompt in prompts.items()}
    rows = verdicts_so_far(out, digests)
    todo = [(name, *items[name]) for name in items.keys() - {row["name"] for row in rows}]

    def judge_one(name: str, query: Query, response: str) -> None:
        verdict = verifier.judge_one(query, response)
        row = {"name": name, "id": query.id, "digest": digests[name], **vars(verdict),
               "status": verdict.status.value, "reward": verdict.reward,
               "answer_right": answers_match(query, response)}
        with lock:                                              # at once: a stop loses nothing
            append_rows(out, [row])
            rows.append(row)
            bar.update()

    with tqdm(total=len(items), initial=len(rows), unit="verdict") as bar:
        try:
            side_by_side(judge_one, sorted(todo, key=lambda item: item[0]), args.concurrency)
        except VerifierUnreliable as error:
            raise VerifierUnreliable(f"{error}; {len(rows)} rows are in {out}, the same command goes on"
                                     ) from None
    print_table(rows, len(items))
    read, written = chat.counts["prompt_tokens"], chat.counts["completion_tokens"]
    print(f"  {'tokens':40s} {read} read, {written} written\n"
          f"  {'seconds':40s} {time.monotonic() - start:.1f} for {len(todo)} verdicts\n{out}")


def print_table(rows: list[dict], total: int) -> None:
    judged = [row for row in rows if row["status"] == VerdictStatus.JUDGED]
    failed = Counter(row["error"] for row in rows if row["status"] == VerdictStatus.FAILED)
    right = sum(row["answer_right"] for row in judged)
    harsh = sum(row["answer_right"] and not row["correct"] for row in judged)
    lenient = sum(row["correct"] and not row["answer_right"] for row in judged)
    n = len(judged) or math.nan                                 # a share of nothing is nan
    for name, value in [("judged", f"{len(judged)} of {total}"),
                        *((f"failed: {error}", count) for error, count in failed.most_common()),
                        ("reward, mean", f"{sum(row['correct'] for row in judged) / n:.3f}"),
                        ("answer right by rule", f"{right / n:.3f}"),
                        ("judge and rule agree", f"{1 - (harsh + lenient) / n:.3f}"),
                        ("answer right, judged wrong",
                         f"{harsh}  (an answer-only reward would pay for them)"),
                        ("answer wrong, judged right", f"{lenient}  (suspicious: the judge, or the rule)")]:
        print(f"  {name:40s} {value}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m judges.file", description=__doc__.split("\n\n")[0])
    parser.add_argument("--responses", type=Path, required=True, metavar="FILE",
                        help="rows of queries + response, or a rollouts.jsonl")
    parser.add_argument("--url", required=True, help="server(s) of the judge: URL[,URL]")
    parser.add_argument("--model", default="", help="its name; default: the only one served")
    parser.add_argument("--context", choices=CONTEXTS, default="solution", help="what the judge is told")
    parser.add_argument("--judge_prompt", default="", metavar="FILE", help="a template of yours")
    parser.add_argument("--out", type=Path, help="verdicts; rows that are there are not asked for again")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one try of a call")
    parser.add_argument("--no_schema", action="store_true", help="for servers without structured output")
    args = parser.parse_args()
    if args.concurrency < 1 or args.timeout <= 0:
        parser.error("--concurrency and --timeout must be above 0")
    with one_line_errors():
        judge_file(args)


if __name__ == "__main__":
    main()
