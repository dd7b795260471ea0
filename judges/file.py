"""Judges a file of responses, or a run's rollouts.jsonl again; a stopped session goes on.

    python -m judges.file --url http://localhost:8000 --responses FILE.jsonl [--out VERDICTS.jsonl]

A row of --responses is a row of a data file (data.py) + "response"; a run's rollouts.jsonl will do as well.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from data import REQUIRED, DataError, Query
from judges.rule import answers_match
from judges.server import OpenAIChat
from reward import CONTEXTS, JudgeError, VerdictStatus, Verifier, VerifierUnreliable, judge_messages, side_by_side

def load_responses(path: Path) -> dict[str, tuple[Query, str]]:
    """Name ("line" or "line/stage/member") -> query and response.  Bad rows raise DataError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from None
    items = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "stage1" in row:                                 # of a run's rollouts.jsonl
                texts = {f"{number}/{stage}/{i}": member["text"] for stage in (1, 2)
                         for i, member in enumerate(row[f"stage{stage}"])}
                row = {"id": row["query"]} | {k: row[k] for k in ("images", "family", *REQUIRED[1:])}
            else:
                texts = {str(number): row.pop("response")}
            row["images"] = [str(path.parent / image) for image in row.get("images", [])]
            query = Query(**row)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise DataError(f"{path}:{number}: not a query with a response ({problem})") from None
        for name, text in [*((name, row[name]) for name in REQUIRED), *(("response", text) for text in texts.values())]:
            if not isinstance(text, str) or text != text.encode("utf-8", "replace").decode():
                raise DataError(f"{path}:{number}: '{name}' is not a text")
        for image in query.images:
            if not Path(image).is_file():
                raise DataError(f"{path}:{number}: image not found: {image}")
        items |= {name: (query, text) for name, text in texts.items()}
    if not items:
        raise DataError(f"no responses in {path}")
    return items


def verdicts_so_far(out: Path, digests: dict[str, str]) -> list[dict]:
    """Rows of an earlier, stopped session.  Failed ones and a half-written last one are dropped: asked again."""
    rows = []
    for number, line in enumerate(out.read_bytes().split(b"\n")[:-1] if out.exists() else [], start=1):
        try:
            row = json.loads(line)
            known, judged = row["digest"] == digests.get(row["name"]), row["status"] == VerdictStatus.JUDGED
        except (ValueError, LookupError, TypeError):
            raise DataError(f"{out}:{number}: not a verdict") from None
        if not known:
            raise DataError(f"{out}:{number}: is of other responses, model or context: choose another --out")
        rows += [row] if judged else []
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(beside, out)
    return rows


def judge_file(args: argparse.Namespace) -> int:
    """The command line of reward.py -> exit code: 2 for bad input, 3 for a judge that fails too often."""
    try:
        judge_all(args)
        return 0
    except (DataError, JudgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except VerifierUnreliable as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


def judge_all(args: argparse.Namespace) -> None:
    items = load_responses(args.responses)
    chat = OpenAIChat(args.url, args.model, args.timeout, structured=not args.no_schema)
    chat.check()
    verifier, start, lock = Verifier(chat, args.context, args.concurrency), time.monotonic(), threading.Lock()
    prompts = {name: judge_messages(*item, verifier.template)[0]["content"][-1]["text"] for name, item in items.items()}
    digests = {name: hashlib.sha256(f"{chat.model}\n{prompt}".encode()).hexdigest()[:16]
               for name, prompt in prompts.items()}
    out = args.out or args.responses.with_suffix(".verdicts.jsonl")
    rows = verdicts_so_far(out, digests)

    def judge_one(name: str, query: Query, response: str) -> None:
        verdict = verifier.judge_one(query, response)
        row = {"name": name, "id": query.id, "digest": digests[name], **vars(verdict), "status": verdict.status.value,
               "reward": verdict.reward, "answer_right": answers_match(query, response)}
        with lock:                                              # at once: a stop loses nothing
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows.append(row)
            bar.update()

    known = {row["name"] for row in rows}
    with out.open("a") as file, tqdm(total=len(items), initial=len(rows), unit="verdict") as bar:
        try:
            side_by_side(judge_one, [(n, *item) for n, item in items.items() if n not in known], args.concurrency)
        except VerifierUnreliable as error:
            raise VerifierUnreliable(f"{error}; {len(rows)} rows are in {out}, the same command goes on") from None
    print_table(rows, len(items))
    print(f"  {'tokens':40s} {chat.counts['prompt_tokens']} read, {chat.counts['completion_tokens']} written\n"
          f"  {'seconds':40s} {time.monotonic() - start:.1f} for {len(rows) - len(known)} verdicts\n{out}")


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
                        ("answer right, judged wrong", f"{harsh}  (would be false positives of an answer-only reward)"),
                        ("answer wrong, judged right", f"{lenient}  (suspicious: the judge, or the rule check)")]:
        print(f"  {name:40s} {value}")


