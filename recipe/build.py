"""The paper's data recipe (section 4.1.1): from FineVision to queries with verified reference solutions.

    python data.py build OUT --finevision HuggingFaceM4/FineVision:geomverse,tqa --benchmarks DIR --policy URL
        --verifier URL --teacher URL --caps "geomverse=2000,tqa=1000"
    python toy.py finevision SAMPLE                                                      the same in small, on a laptop
    python data.py build OUT --finevision SAMPLE --policy assets/toy --verifier toy --teacher assets/toy
        --max_new_tokens 32 --min_words 4 --instruction ""

    01-read         one turn of a conversation = one candidate; clean question, final answer, text filters, picture
    02-unique       without copies: the same question about the same or almost the same picture
    03-benchmarks   without what is in the benchmarks: pictures, questions
    04-answers      the policy answers each 4 times, a judge knows the final answer; 4 of 4 right is too easy
    05-references   a native worked solution, or the teacher writes some and one that the judge accepts is kept
    06-balance      caps of subsets; equal numbers for each count of right answers

Each stage reads the file of the one before it and writes its own: every row once, whole, or with `why` it was dropped.
A finished stage is not done again and an unfinished one goes on where it stopped, so the same command resumes; the
result is a pure function of input, settings and seed (of an engine in process; servers may sample otherwise).

OUT/train.jsonl + images/ is what `contextrl.py --data` reads.  funnel.md counts, samples.html shows, dropped.jsonl
lists, manifest.json holds settings and counts.  Every row names its subset's licence: check it before you publish rows.
"""

import argparse
import fcntl
import heapq
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from judges.answers import normal
from recipe.candidates import STEPS, clean_question, dropped, fault, is_worked, read
from data import DataError, Query
from recipe.duplicates import Near, benchmark_files, benchmark_index, grams, number_of
from recipe.finevision import files_of, finevision_turns
from recipe.funnel import funnel, markdown, samples_page
from judges.server import OpenAIChat, Transient, wire
from reward import JudgeError, RuleVerifier, VerdictStatus, Verifier, VerifierUnreliable, plain_text, side_by_side
from sampler import HFEngine, Request, SampleStatus, VLLMEngine, seed_of

INSTRUCTION = "Reason step by step and put the final answer in \\boxed{}; of options, their letter."
TURNS_PER_PICTURE = 2
NEAR, NEAR_BENCHMARK = 4, 6                        # of the 64 bits of a perceptual hash
OVERLAP = 0.6                                      # share of a question's 8-grams that a benchmark has
CHUNK, CONCURRENCY = 64, 32                        # rows written at once; calls of servers at once
MOST_FAILED = 0.2                                  # verdicts of a chunk; more: the judge is away
FEW = 8                                            # rows that may all be refused without an end of the build


# -------------------------------------------------------------------------------- 02-unique and 03-benchmarks

def unique(args) -> Callable:
    """Drops the same question with the same answer about a near picture (drawings that differ in a number only look
    alike to a perceptual hash), the same question about the same picture, and more than 2 turns of one picture."""
    near, turns, asked = Near(NEAR), Counter(), set()

    def work(batch: list[dict]) -> list[dict]:
        out = []
        for row in batch:
            question, answer = normal(row["question"]), (row["choices"] or {}).get(row["answer"], row["answer"])
            value, group = int(row["image_phash"], 16), number_of(f"{question} -> {normal(answer)}")
            place, why = number_of(row["image_hash"]), ""
            exact = number_of(f"{question} {row['image_hash']}")
            if exact in asked or near.has(value, group):
                why = "same question and picture as another"
            elif turns[place] == TURNS_PER_PICTURE:
                why = f"more than {TURNS_PER_PICTURE} turns of a picture"
            else:
                near.add(value, group)
                asked.add(exact)
                turns[place] += 1
            out.append(dropped(row, "unique", why) if why else row)
        return out
    return work


def benchmarks(args) -> Callable:
    """Drops rows whose picture (with whatever question) or question is in a benchmark."""
    near, known = Near(NEAR_BENCHMARK), set()
    if args.benchmarks:
        near, known, counts = benchmark_index(args.benchmarks, NEAR_BENCHMARK, lambda text: clean_question(text)[0])
        (args.out / "benchmarks.json").write_text(json.dumps(counts, indent=2) + "\n")

    def why(row: dict) -> str:
        if near.has(int(row["image_phash"], 16)):
            return "picture is in a benchmark"
        own = grams(row["question"])
        return "question is in a benchmark" if own and len(own & known) >= OVERLAP * len(own) else ""

    return lambda batch: [dropped(row, "benchmarks", reason) if (reason := why(row)) else row for row in batch]


# ---------------------------------------------------------------------------------- 04-answers and 05-references

class Writer(OpenAIChat):
    """Samples of a server: temperature 1, each call with a seed of its own."""

    def _request(self, asked: tuple[list[dict], int]) -> bytes:
        return json.dumps({"model": self.model, "temperature": 1.0, "top_p": 1.0, "seed": asked[1],
                           "max_tokens": self.max_tokens, "messages": wire(asked[0])}).encode()

    def write(self, query: Query, seed: int) -> str | None | JudgeError:
        """None: it did not come to an end.  A JudgeError: this server will never answer it."""
        content = [{"type": "image", "image": i} for i in query.images] + [{"type": "text", "text": query.question}]
        try:
            return self(([{"role": "user", "content": content}], seed))
        except Transient:
            raise
        except JudgeError as error:
            return None if "max_tokens" in error.name else error


def open_writer(where: str, args):
    """An engine in this process, or servers."""
    if "://" in where:
        chat = Writer(where, timeout=600.0, max_tokens=args.max_new_tokens)
        chat.check()
        return chat
    import torch
    from transformers import AutoModelForImageTextToText

    from data import Processor
    cuda = torch.cuda.is_available()
    try:
        processor = Processor(where, 3_000_000)
        if args.engine == "vllm":
            return VLLMEngine(where, processor, max_new_tokens=args.max_new_tokens,
                              max_context=args.max_new_tokens + 4096)
        model = AutoModelForImageTextToText.from_pretrained(where, dtype=torch.bfloat16 if cuda else torch.float32)
        return HFEngine(model.to("cuda" if cuda else "cpu"), processor, max_new_tokens=args.max_new_tokens)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise DataError(f"cannot load {where}: {(str(error).splitlines() or [''])[0]}") from None


def write(writer, queries: list[Query], n: int, key: tuple) -> list[list]:
    """n texts for each query: None for one without an end, a JudgeError where nothing can be written."""
    seeds = {query.id: [seed_of(*key, query.id, k) for k in range(n)] for query in queries}
    if isinstance(writer, Writer):
        texts = iter(side_by_side(writer.write, [(q, seed) for q in queries for seed in seeds[q.id]], CONCURRENCY))
        texts = [[next(texts) for _ in range(n)] for _ in queries]
    else:
        samples = writer.generate([Request(writer.processor.prompt(q), seeds[q.id]) for q in queries])
        special = {SampleStatus.TRUNCATED: None, SampleStatus.TOO_LONG: JudgeError("prompt is too long")}
        texts = [[special.get(s.status, s.text) for s in samples_G] for samples_G in samples]
    errors = [error for texts_G in texts for error in texts_G if isinstance(error, JudgeError)]
    if len(queries) >= FEW and len(errors) == n * len(queries):
        raise errors[0]                             # not the fault of so many rows
    return texts


def open_verifier(where: str):
    if where == "toy":
        from toy import ToyVerifier

        return ToyVerifier("answer")
    if where == "rule":
        return RuleVerifier()
    chat = OpenAIChat(where)
    chat.check()
    return Verifier(chat, "answer", CONCURRENCY)


def query_of(row: dict, args) -> Query:
    """As the policy is shown it: options in one house style, then how to answer."""
    parts = [row["question"], *(f"{name}. {text}" for name, text in (row["choices"] or {}).items()), args.instruction]
    return Query(row["id"], [str(args.out / image) for image in row["images"]], "\n".join(filter(None, parts)),
                 row["solution"], row["answer"], row["subset"], row["facts"])


def written_and_judged(batch: list[dict], writer, verifier, key: tuple, args):
    """-> (row, texts, verdicts, why nothing can be said of it)."""
    queries = [query_of(row, args) for row in batch]
    texts = write(writer, queries, args.samples, key)
    flat = [(q, text) for q, texts_G in zip(queries, texts) for text in texts_G if isinstance(text, str)]
    judged = verifier.judge(*map(list, zip(*flat))) if flat else []
    failed = [v for v in judged if v.status is VerdictStatus.FAILED]
    if len(failed) > max(len(judged) * MOST_FAILED, args.samples):        # the judge is away
        raise VerifierUnreliable(f"{len(failed)} of {len(judged)} verdicts failed, the last: {failed[-1].error}")
    verdicts = iter(judged)
    for row, texts_G in zip(batch, texts):
        verdicts_G = [next(verdicts) if isinstance(text, str) else None for text in texts_G]
        error = next((text.name for text in texts_G if isinstance(text, JudgeError)), "")
        if not error and any(v and v.status is VerdictStatus.FAILED for v in verdicts_G):
            error = "a verdict failed"
        yield row, texts_G, verdicts_G, error


def answers(args) -> Callable:
    """Counts the right answers of the policy.  What has no end is wrong; what has no verdict goes out, unguessed."""
    writer, verifier = open_writer(args.policy, args), open_verifier(args.verifier)

    def work(batch: list[dict]) -> list[dict]:
        out = []
        for row, _, verdicts_G, why in written_and_judged(batch, writer, verifier, (args.seed, "answers"), args):
            row["solved"] = sum(bool(v and v.correct) for v in verdicts_G)
            if not why and row["solved"] == args.samples:
                why = f"solved {args.samples} of {args.samples} times"
            out.append(dropped(row, "answers", why) if why else row)
        return out
    return work


def references(args) -> Callable:
    """A native worked solution stays.  Else the teacher samples some; of those that come to the right answer by the
    judge and could be a reference, the one of median length is kept: neither the tersest nor the most long-winded.
    (The paper's teacher picks the best, it does not say how.)"""
    teacher = open_writer(args.teacher, args) if args.teacher else None
    verifier = open_verifier(args.verifier) if args.teacher else None

    def work(batch: list[dict]) -> list[dict]:
        short = [row for row in batch if row["solution_kind"] != "native"]
        reasons = {row["id"]: "no worked solution and no teacher" for row in short}
        key = (args.seed, "references")
        for row, texts, verdicts, why in written_and_judged(short, teacher, verifier, key, args) if teacher else ():
            good = sorted((text for text, v in zip(texts, verdicts) if v and v.correct and is_worked(text, args)
                           and not fault(text, row)), key=lambda text: (len(text), text))
            reasons[row["id"]] = "" if good else why or "no verified solution of the teacher"
            if good:
                row["solution"], row["solution_kind"] = plain_text(good[(len(good) - 1) // 2]), "generated"
        return [dropped(row, "references", why) if (why := reasons.get(row["id"])) else row for row in batch]
    return work


# ------------------------------------------------------------------------------------------------------ 06-balance

def balance(args) -> Callable:
    """Caps first, each subset as even over the classes (number of right answers) as it can be; then every class is
    cut to --per_class, or else to the smallest."""
    rows = sorted(((row["subset"], row["solved"], row["id"]) for row in kept(args.out / "05-references.jsonl")),
                  key=lambda row: seed_of(args.seed, "balance", row[2]))
    place, reasons = Counter(), {}
    turn = {}                                       # place of a row among those of its subset and class
    for row in rows:
        turn[row[2]] = place[row[:2]]
        place[row[:2]] += 1
    taken, left = Counter(), []
    for subset, solved, name in sorted(rows, key=lambda row: (turn[row[2]], seed_of(args.seed, "turn", row[2]))):
        taken[subset] += 1
        if taken[subset] > args.caps.get(subset, sys.maxsize):
            reasons[name] = "over the cap of its subset"
        else:
            left.append((solved, name))
    sizes, taken = Counter(solved for solved, _ in left), Counter()
    limit = args.per_class or min(sizes.values(), default=0)
    ranks = {row[2]: i for i, row in enumerate(rows)}
    for solved, name in sorted(left, key=lambda row: ranks[row[1]]):
        taken[solved] += 1
        if taken[solved] > limit:
            reasons[name] = "over the size of its class"
    return lambda batch: [dropped(row, "balance", why) if (why := reasons.get(row["id"])) else row for row in batch]


# ---------------------------------------------------------------------------------------------------- the stages

def lines(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


def kept(path: Path) -> Iterator[dict]:
    return (row for row in lines(path) if "why" not in row)


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


def append(file, rows: Iterable[dict]) -> None:
    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace"))
    file.flush()


def run_stage(name: str, source: Iterable[dict], work: Callable, args, goes_on: bool = True) -> None:
    """Chunks of rows through `work`.  `goes_on`: finished chunks are not done again (others are quick, and have to
    remember all rows before)."""
    part = args.out / f"{name}.part"
    if not goes_on:
        part.unlink(missing_ok=True)
    done = finished_rows(part)
    rows = islice(source, done, None)
    with open(part, "ab") as file, tqdm(desc=name, initial=done, unit=" rows", mininterval=1) as bar:
        while batch := list(islice(rows, CHUNK)):
            append(file, work(batch))
            bar.update(len(batch))
    os.replace(part, part.with_suffix(".jsonl"))


STAGES = {"01-read": lambda args: lambda batch: read(batch, args), "02-unique": unique, "03-benchmarks": benchmarks,
          "04-answers": answers, "05-references": references, "06-balance": balance}
GO_ON = ("01-read", "04-answers", "05-references")


def build(args) -> None:
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    lock = open(args.out / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DataError(f"another build is at work in {args.out}") from None
    settings = settings_of(args)
    manifest = args.out / "manifest.json"
    if manifest.exists():
        was = json.loads(manifest.read_text(encoding="utf-8"))["settings"]
        changed = [name for name in settings if was.get(name) != settings[name]]
        if changed:
            raise DataError(f"{args.out} was built with other settings ({', '.join(changed)}): choose another folder")
    else:
        replace(manifest, json.dumps({"settings": settings}, indent=2, ensure_ascii=False) + "\n")
    source = (turn for _, turn in finevision_turns(args.finevision, args.seed, args.limit, args.revision))
    for name, stage in STAGES.items():
        done = args.out / f"{name}.jsonl"
        if not done.exists():
            run_stage(name, source, stage(args), args, name in GO_ON)
        source = kept(done)
    publish(args, settings)


def settings_of(args) -> dict:
    """What the result follows from.  A server may move, its model may not change."""
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    for name in ("policy", "verifier", "teacher"):
        if "://" in settings[name]:
            chat = OpenAIChat(settings[name])
            chat.check()
            settings[name] = f"server of {chat.model}"
        elif name == "verifier" and settings[name] not in ("toy", "rule"):
            raise DataError(f"--verifier {settings[name]}: neither URLs of servers nor 'rule' or 'toy'")
        elif name != "verifier" and settings[name]:
            from transformers import AutoConfig             # found out now, not after the hours of the first stages
            try:
                AutoConfig.from_pretrained(settings[name])
            except (OSError, ValueError) as error:
                raise DataError(f"cannot load {settings[name]}: {(str(error).splitlines() or [''])[0]}") from None
    subsets = files_of(args.finevision)
    strange = next((name for name in args.caps if subsets and name not in subsets), None)
    if strange:
        raise DataError(f"--caps {strange}: no such subset; there are {', '.join(subsets)}")
    settings["benchmarks"] = str(args.benchmarks or "")
    for name, files in (("inputs", [file for files in files_of(args.finevision).values() for file in files]),
                        ("benchmark_inputs", benchmark_files(args.benchmarks) if args.benchmarks else [])):
        settings[name] = {str(file): file.stat().st_size for file in files}
    return settings


def replace(path: Path, text: str) -> None:
    path.with_suffix(".tmp").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)


# ------------------------------------------------------------------------------------------------------ the result

FACTS = ("subset", "domain", "licence", "ratings", "choices", "answer_type", "solution_kind", "solved", "image_hash")
ORDER = [step.__name__ for step in STEPS] + [name[3:] for name in list(STAGES)[1:]]


def publish(args, settings: dict) -> None:
    """train.jsonl, dropped.jsonl, funnel.md, samples.html, manifest.json, in one pass over the stages' files."""
    read_, lost, reasons, left = Counter(), Counter(), Counter(), Counter()
    page = defaultdict(list)                         # by subset or reason: a few rows with the smallest numbers

    def show(place: tuple, row: dict, n: int) -> None:
        heapq.heappush(page[place], (-seed_of(args.seed, "page", row["id"]), row["id"], row))
        if len(page[place]) > n:
            heapq.heappop(page[place])

    with open(args.out / "dropped.tmp", "wb") as out:
        for name in STAGES:
            for row in lines(args.out / f"{name}.jsonl"):
                read_[row["subset"]] += name == "01-read"
                if "why" in row:
                    append(out, [row])
                    lost[row["subset"], row["stage"]] += 1
                    reasons[row["stage"], row["why"]] += 1
                    show((row["stage"], row["why"]), row, 1)
    with open(args.out / "train.tmp", "wb") as out:
        for row in kept(args.out / "06-balance.jsonl"):
            query = query_of(row, args)
            facts = {name: row[name] for name in FACTS} | {"samples": args.samples} | row["facts"]
            append(out, [{"id": row["id"], "images": row["images"], "question": query.question,
                          "solution": row["solution"], "answer": row["answer"], "family": row["subset"],
                          "facts": facts}])
            left[row["subset"]] += 1
            show((row["subset"],), row | {"question": query.question}, 3)
    for name in ("dropped", "train"):
        os.replace(args.out / f"{name}.tmp", args.out / f"{name}.jsonl")
    table = funnel(read_, lost, ORDER)
    why = sorted(reasons.items(), key=lambda item: (ORDER.index(item[0][0]), -item[1], item[0]))
    text = markdown(table) + "\n\n" + markdown([["dropped at", "because", "rows"], *((*place, n) for place, n in why)])
    replace(args.out / "funnel.md", f"Rows left after each stage.\n\n{text}\n")
    replace(args.out / "samples.html", samples_page(args.out, table, [place for place, _ in why], page))
    counts = {subset: {"read": read_[subset], "dropped": {stage: lost[subset, stage] for stage in ORDER},
                       "kept": left[subset]} for subset in sorted(read_)}
    shortfall = {subset: cap - left[subset] for subset, cap in args.caps.items() if left[subset] < cap}
    replace(args.out / "manifest.json", json.dumps({"settings": settings, "counts": counts, "below_cap": shortfall},
                                                   indent=2, ensure_ascii=False) + "\n")
    print(f"{text}\n\n{left.total()} queries: {args.out}/train.jsonl; look at {args.out}/samples.html")
    if not left.total():
        raise DataError("no row was left: see the table above")


# -------------------------------------------------------------------------------------------------- command line

def caps_of(text: str) -> dict[str, int]:
    pairs = [pair.rpartition("=") for pair in text.split(",") if pair]
    if not all(name and number.isdigit() for name, _, number in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like geomverse=2000,tqa=1000")
    return {name: int(number) for name, _, number in pairs}


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python data.py build", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder; the same command goes on with it")
    parser.add_argument("--finevision", required=True, metavar="DIR[:subset,...] | hub/name:subset,...")
    parser.add_argument("--revision", help="of the hub's data set")
    parser.add_argument("--limit", type=positive, help="rows to read of each subset")
    parser.add_argument("--benchmarks", type=Path, help="folder of parquet and JSONL files, pictures and questions")
    parser.add_argument("--policy", required=True, help="model folder, hub id or URLs of servers")
    parser.add_argument("--verifier", required=True, help="URLs of servers; 'rule': the final answer alone, no judge; "
                                                          "'toy': the built-in world's")
    parser.add_argument("--teacher", default="", help="writes missing solutions; model folder, hub id or URLs")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers",
                        help="of models in this process")
    parser.add_argument("--samples", type=positive, default=4, help="answers of the policy, solutions of the teacher")
    parser.add_argument("--max_new_tokens", type=positive, default=2048)
    parser.add_argument("--instruction", default=INSTRUCTION, help="last line of every question")
    parser.add_argument("--min_words", type=positive, default=30, help="of a worked solution")
    parser.add_argument("--caps", type=caps_of, default={}, help="subset=rows,...: the most that a subset may give")
    parser.add_argument("--per_class", type=positive, help="rows for each number of right answers; default: the fewest")
    parser.add_argument("--seed", type=int, default=0)
    try:
        args = parser.parse_args(argv)
        build(args)
        return 0
    except (DataError, JudgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except VerifierUnreliable as error:
        print(f"stopped: {error}; the same command goes on", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
