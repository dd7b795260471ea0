"""The paper's data recipe (section 4.1.1): from FineVision to queries with verified reference solutions.

    python -m recipe.build OUT --finevision HuggingFaceM4/FineVision:geomverse,tqa --benchmarks DIR
        --policy URL --verifier URL --teacher URL --caps "geomverse=2000,tqa=1000"

the same in small, on a laptop:

    python -m toy finevision SAMPLE
    python -m recipe.build OUT --finevision SAMPLE --policy toy --verifier toy --teacher toy
        --max_new_tokens 32 --min_words 4 --instruction ""

    01-read         one turn of a conversation = one candidate: clean question, final answer, filters, picture
    02-unique       without copies: the same question about the same or almost the same picture
    03-benchmarks   without what is in the benchmarks: pictures, questions
    04-answers      the policy answers each 4 times, a judge knows the final answer; 4 of 4 right is too easy
    05-references   a native worked solution, or one of the teacher's that the judge accepts
    06-balance      caps of subsets; equal numbers for each count of right answers

Each stage reads the file of the one before it and writes its own: every row once, whole, or with `why` it was
dropped.  A finished stage is not done again and an unfinished one goes on where it stopped, so the same
command resumes; the result is a pure function of input, settings and seed (of an engine in process; servers
may sample otherwise).

OUT/train.jsonl + images/ is what `contextrl.py --data` reads.  funnel.md counts, samples.html shows,
dropped.jsonl lists, manifest.json holds settings and counts.  Every row names its subset's licence: check it
before you publish rows.
"""

import argparse
import heapq
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from data import DataError
from judges.server import OpenAIChat
from recipe.candidates import STEPS, clean_batch
from recipe.duplicates import benchmark_files, hash_of_text
from recipe.finevision import files_of, finevision_turns, positive, subsets_of
from recipe.funnel import funnel, samples_page
from recipe.sampling import open_judge, query_of_row
from recipe.stages import (
    Stage,
    balance,
    count_right_answers,
    drop_benchmarks,
    drop_copies,
    find_references,
    kept_rows,
)
from reward import JudgeError
from sampler import seed_of
from tools.files import append_rows, lock_folder, read_json, read_rows, weights_digest, write_whole
from tools.pages import markdown_table
from tools.programs import Stopped, one_line_errors
from training.parts import model_fingerprint, model_path, runs_in_process

INSTRUCTION = "Reason step by step and put the final answer in \\boxed{}; of options, their letter."
CHUNK = 64                                         # rows that are read, worked on and written at once


# ----------------------------------------------------------------------------------------------- the stages

STAGES = {"01-read": lambda args: lambda turns: clean_batch(turns, args),
          "02-unique": drop_copies, "03-benchmarks": drop_benchmarks, "04-answers": count_right_answers,
          "05-references": find_references, "06-balance": balance}
RESUMABLE = ("01-read", "04-answers", "05-references")  # the others are quick and remember all rows before


def batches(rows: Iterable[dict]) -> Iterator[list[dict]]:
    rows = iter(rows)
    return iter(lambda: list(islice(rows, CHUNK)), [])


def finished_rows(part: Path) -> int:
    """Rows of whole chunks that an earlier session wrote; what follows them is cut off."""
    if not part.exists():
        return 0
    count = end = at = 0
    with open(part, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            at += len(line)
            count += 1
            if count % CHUNK == 0:
                end = at
    os.truncate(part, end)
    return count - count % CHUNK


def run_stage(name: str, source: Iterable[dict], work: Stage, args) -> None:
    """Batches of rows through `work`, into a file that gets its name when it is whole."""
    part = args.out / f"{name}.part"
    if name not in RESUMABLE:
        part.unlink(missing_ok=True)
    done = finished_rows(part)
    part.touch()
    with tqdm(desc=name, initial=done, unit=" rows", mininterval=1) as bar:
        for batch in batches(islice(source, done, None)):
            append_rows(part, work(batch))
            bar.update(len(batch))
    os.replace(part, part.with_suffix(".jsonl"))


def build(args) -> None:
    settings = settings_of(args)
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    with lock_folder(args.out, "build"):
        check_unchanged(args.out / "manifest.json", settings)
        turns = finevision_turns(args.finevision, args.seed, args.limit, args.revision)
        source: Iterable[dict] = (turn for _, turn in turns)
        for name, stage in STAGES.items():
            done = args.out / f"{name}.jsonl"
            if not done.exists():
                try:
                    run_stage(name, source, stage(args), args)
                except JudgeError as error:         # of a server that settings_of() found at work
                    raise Stopped(f"{name}: {error}") from None
            source = kept_rows(done)
        publish(args, settings)


# --------------------------------------------------------------------------------------------- the settings

def settings_of(args) -> dict:
    """What the result follows from.  A server may move, its model may not change."""
    apart = ("out", "policy_model", "teacher_model", "judge_model", "judge_prompt")     # told by their roles
    settings = {name: value for name, value in vars(args).items() if name not in apart}
    settings |= {"policy": checked_sampler("policy", args), "verifier": checked_verifier(args),
                 "teacher": checked_sampler("teacher", args)}
    files = files_of(args.finevision)
    subsets = list(files) or subsets_of(args.finevision)
    unknown = next((name for name in args.caps if name not in subsets), None)
    if unknown:
        raise DataError(f"--caps {unknown}: no such subset; there are {', '.join(subsets)}")
    inputs = [file for paths in files.values() for file in paths]
    settings["benchmarks"] = str(args.benchmarks or "")
    for name, paths in (("inputs", inputs),
                        ("benchmark_inputs", benchmark_files(args.benchmarks) if args.benchmarks else [])):
        settings[name] = {str(path): path.stat().st_size for path in paths}
    return settings


# -> what stands in the settings for a role.  What is wrong with it is found out now, not after the hours of
# the first stages.

def checked_sampler(role: str, args) -> str:
    """The policy or the teacher."""
    name, model = getattr(args, role), getattr(args, f"{role}_model")
    if "://" in name:
        return served_model(name, model)
    if model:
        raise DataError(f"--{role}_model {model} needs a server: --{role} URL")
    if not name:
        return ""
    path = model_path(name)
    model_fingerprint(path)
    return f"{name} {weights_digest(path)}" if Path(path).is_dir() else name


def checked_verifier(args) -> str:
    name = args.verifier
    if runs_in_process(name):
        raise DataError(f"--verifier {name}: neither URLs of servers nor a file NAME.py, 'rule' or 'toy'")
    open_judge(args)
    if "://" in name:
        prompt = f", {with_hash(args.judge_prompt)}" if args.judge_prompt else ""
        return served_model(name, args.judge_model) + prompt
    if args.judge_model:
        raise DataError(f"--judge_model {args.judge_model} needs a judge: --verifier URL")
    return with_hash(name) if name.endswith(".py") else name


def served_model(urls: str, model: str) -> str:
    chat = OpenAIChat(urls, model)
    chat.check()
    return f"server of {chat.model}"


def with_hash(file: str) -> str:
    return f"{file} {hash_of_text(Path(file).read_text()):016x}"


def check_unchanged(manifest: Path, settings: dict) -> None:
    """A folder belongs to the settings that it was begun with."""
    if not manifest.exists():
        write_whole(manifest, json.dumps({"settings": settings}, indent=2, ensure_ascii=False) + "\n")
    was = read_json(manifest)["settings"]
    changed = [name for name in settings if was.get(name) != settings[name]]
    if changed:
        raise DataError(f"{manifest.parent} was built with other settings ({', '.join(changed)}): choose "
                        "another folder")


# ----------------------------------------------------------------------------------------------- the result

FACTS = ("subset", "domain", "licence", "ratings", "choices", "answer_type", "solution_kind", "solved",
         "image_hash")
ORDER = [*STEPS, *(name[3:] for name in list(STAGES)[1:])]         # of the columns of the funnel


def train_row(row: dict, args) -> dict:
    """A row of the last stage as a row of train.jsonl."""
    facts = {name: row[name] for name in FACTS} | {"samples": args.samples} | row["facts"]
    return {"id": row["id"], "images": row["images"], "question": query_of_row(row, args).question,
            "solution": row["solution"], "answer": row["answer"], "family": row["subset"], "facts": facts}


def publish(args, settings: dict) -> None:
    """train.jsonl, dropped.jsonl, funnel.md, samples.html, manifest.json, in one pass over the stages'
    files."""
    turns, dropped, reasons, kept = Counter(), Counter(), Counter(), Counter()
    examples = defaultdict(list)                    # by subset or reason: a few rows, drawn by their number

    def add_example(place: tuple, row: dict, n: int) -> None:
        heapq.heappush(examples[place], (-seed_of(args.seed, "page", row["id"]), row["id"], row))
        if len(examples[place]) > n:
            heapq.heappop(examples[place])

    parts = {name: args.out / f"{name}.part" for name in ("dropped", "train")}
    for part in parts.values():
        part.write_bytes(b"")
    for name in STAGES:
        for batch in batches(read_rows(args.out / f"{name}.jsonl")):
            append_rows(parts["dropped"], [row for row in batch if "why" in row])
            for row in batch:
                turns[row["subset"]] += name == "01-read"
                if "why" in row:
                    dropped[row["subset"], row["stage"]] += 1
                    reasons[row["stage"], row["why"]] += 1
                    add_example((row["stage"], row["why"]), row, 1)
    for batch in batches(kept_rows(args.out / "06-balance.jsonl")):
        rows = [train_row(row, args) for row in batch]
        append_rows(parts["train"], rows)
        for row, made in zip(batch, rows):
            kept[row["subset"]] += 1
            add_example((row["subset"],), row | {"question": made["question"]}, 3)
    for part in parts.values():
        os.replace(part, part.with_suffix(".jsonl"))

    table = funnel(turns, dropped, ORDER)
    in_order = sorted(reasons.items(), key=lambda item: (ORDER.index(item[0][0]), -item[1], item[0]))
    why_table = [["dropped at", "because", "rows"], *((*place, n) for place, n in in_order)]
    text = f"{markdown_table(table)}\n\n{markdown_table(why_table)}"
    write_whole(args.out / "funnel.md", f"Rows left after each stage.\n\n{text}\n")
    page = samples_page(args.out, table, [place for place, _ in in_order], examples)
    write_whole(args.out / "samples.html", page)
    counts = {subset: {"read": turns[subset], "dropped": {stage: dropped[subset, stage] for stage in ORDER},
                       "kept": kept[subset]} for subset in sorted(turns)}
    below_cap = {subset: cap - kept[subset] for subset, cap in args.caps.items() if kept[subset] < cap}
    manifest = {"settings": settings, "counts": counts, "below_cap": below_cap}
    write_whole(args.out / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    print(f"{text}\n\n{kept.total()} queries: {args.out}/train.jsonl; look at {args.out}/samples.html")
    if not kept.total():
        raise DataError("no row was left: see the table above")


# --------------------------------------------------------------------------------------------- command line

def caps_of(text: str) -> dict[str, int]:
    pairs = [pair.rpartition("=") for pair in text.split(",") if pair]
    if not all(name and number.isdigit() for name, _, number in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like geomverse=2000,tqa=1000")
    return {name: int(number) for name, _, number in pairs}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipe.build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder; the same command goes on with it")
    add("--finevision", required=True, metavar="DIR[:subset,...] | hub/name:subset,...")
    add("--revision", help="of the hub's data set")
    add("--limit", type=positive, help="rows to read of each subset")
    add("--benchmarks", type=Path, help="folder of parquet and JSONL files, pictures and questions")
    add("--policy", required=True, help="model folder, hub id or URLs of servers; 'toy': the built-in one")
    add("--verifier", required=True,
        help="URLs of servers; NAME.py: judge(query, response) of yours; 'rule': the final answer alone, no "
             "judge; 'toy': the built-in world's")
    add("--teacher", default="", help="writes missing solutions; as --policy; default: none")
    add("--policy_model", default="", help="its name at a server; default: the only one served")
    add("--teacher_model", default="", help="as --policy_model")
    add("--judge_model", default="", help="as --policy_model, of --verifier")
    add("--judge_prompt", default="", help="file of what a judge reads; default: prompts/judge_answer.txt")
    add("--engine", choices=("hf", "vllm"), default="hf", help="of models in process")
    add("--samples", type=positive, default=4, help="answers of the policy, solutions of the teacher")
    add("--max_new_tokens", type=positive, default=2048)
    add("--instruction", default=INSTRUCTION, help="last line of every question")
    add("--min_words", type=positive, default=30, help="of a worked solution")
    add("--caps", type=caps_of, default={}, help="subset=rows,...: the most that a subset may give")
    add("--per_class", type=positive, help="rows for each number of right answers; default: the fewest")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with one_line_errors("; the same command goes on"):
        build(args)


if __name__ == "__main__":
    main()
