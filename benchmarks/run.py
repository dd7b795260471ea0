"""A model on the eleven benchmarks of the paper (benchmarks.py), beside the paper's numbers.

    python eval.py run --model RUN/checkpoints/step-000227 --engine vllm --benchmarks mmstar,wemath --output_dir OUT
        [--data_dir DIR] [--judge http://HOST:8000/v1] [--harness vlmevalkit] [--limit 20]

    OUT/<benchmark>.jsonl   one row per sample: prompt, response, extracted answer, score
    OUT/scores.json         every number with its 95 % interval and counts;    OUT/table.md   beside the paper's
    OUT/settings.json       what the samples depend on;    OUT/samples.html   five samples per benchmark

The same command again goes on where it was stopped; with --judge added it only asks the judge.  What is sampled is
written down at once and never again; scores are made anew from it whenever the command runs.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from judges.answers import final_span
from data import DataError, Processor, Query
from reward import JudgeError, side_by_side
from sampler import Request, SampleStatus, seed_of


class Ready:
    """Processor and engine, loaded when the first sample is missing: a judge can be added without a GPU."""

    def __init__(self, args):
        self.args, self.engine = args, None

    def load(self) -> None:
        if self.engine:
            return
        import torch
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForImageTextToText

        from sampler import HFEngine, VLLMEngine

        args = self.args
        if Path(args.model).is_dir() and not any(Path(args.model).glob("*.safetensors")):
            raise DataError(f"cannot load model {args.model}: no *.safetensors in it")
        try:
            self.processor = Processor(args.model, args.max_pixels)
            context = AutoConfig.from_pretrained(args.model).text_config.max_position_embeddings
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"cannot load model {args.model}: {str(error).splitlines()[0]}") from None
        context = min(context, args.max_context)
        if args.max_new_tokens >= context:
            raise DataError(f"--max_new_tokens {args.max_new_tokens} leaves no place for a prompt in {context} tokens")
        if args.engine == "vllm":
            self.engine = VLLMEngine(args.model, self.processor, args.temperature, args.max_new_tokens, context,
                                     memory_share=args.engine_memory, max_rows=args.batch_size)
        else:
            device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
            try:
                model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=dtype).to(device)
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise DataError(f"cannot load model {args.model}: {(str(error).splitlines() or [''])[0]}") from None
            self.engine = HFEngine(model, self.processor, args.temperature, args.max_new_tokens, args.batch_size)


def model_digest(model: str) -> str:
    """Which weights: of a folder names, sizes, and the first and last megabyte of every weight file; a hub id as is."""
    if not Path(model).is_dir():
        return model
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(model).glob("*.safetensors")):
        with open(file, "rb") as weights:
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + weights.read(1 << 20))
            weights.seek(max(0, file.stat().st_size - (1 << 20)))
            digest.update(weights.read())
    return digest.hexdigest()


def settle(args, folder: Path) -> dict:
    """settings.json of a new run; one that has samples is only gone on with by the same settings."""
    from benchmarks.eleven import BENCHMARKS

    settings = {"model": args.model, "weights": model_digest(args.model), "engine": args.engine,
                "harness": args.harness, "temperature": args.temperature, "max_new_tokens": args.max_new_tokens,
                "max_pixels": args.max_pixels, "max_context": args.max_context, "seed": args.seed, "limit": args.limit}
    if not any((folder / f"{name}.jsonl").is_file() for name in BENCHMARKS):
        return {"settings": settings, "prompts": {}}
    saved = read_json(folder / "settings.json", "settings", "prompts")
    for name, value in settings.items():
        if name != "model" and saved["settings"].get(name) != value:       # a path may be written in several ways
            raise DataError(f"{folder} was made with {name} {saved['settings'].get(name)}, not {value}: "
                            "choose another --output_dir")
    return saved


def read_json(file: Path, *names: str) -> dict:
    """An object that we wrote ourselves, with an object under each of `names`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file} ({type(error).__name__}): choose another --output_dir") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in names):
        raise DataError(f"{file} has no {' and '.join(names)}: choose another --output_dir")
    return found


def write(file: Path, text: str) -> None:
    """Whole or not at all."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)


def write_rows(file: Path, rows: list[dict]) -> None:
    write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(file: Path, *names: str) -> list[dict]:
    """Rows of a JSONL file, which have `names`; a last line without its end is what a killed run was writing."""
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError:
        raise DataError(f"{file}: not JSON lines") from None
    if not all(isinstance(row, dict) and row.keys() >= set(names) for row in rows):
        raise DataError(f"{file}: rows without {', '.join(names)}")
    return rows


def sample(benchmark, items, rows, ready: Ready, file: Path) -> dict[str, dict]:
    """id -> {prompt, picture, response, status, tokens}; what is in the file already is not generated again."""
    from benchmarks import eleven as benchmarks

    def digest(picture: bytes) -> str:
        return hashlib.blake2b(picture, digest_size=8).hexdigest()

    args, names = ready.args, ("id", "prompt", "picture", "response", "status", "tokens")
    kept = {row["id"]: {name: row[name] for name in names} for row in read_rows(file, *names)}
    todo = [item for item in items if item.id not in kept]
    if gone := kept.keys() - {item.id for item in items}:
        raise DataError(f"{file}: item {min(gone)} is not in the data any more: choose another --output_dir")
    for item in items:
        row = kept.get(item.id)
        if row and row["prompt"] != benchmarks.shown(item, args.harness):
            raise DataError(f"{file}: item {item.id} was asked in other words: choose another --output_dir")
        if row and row["picture"] != digest(benchmarks.image_of(benchmark, rows, item)):
            raise DataError(f"{file}: item {item.id} had another picture: choose another --output_dir")
    if todo:
        ready.load()
        write_rows(file, list(kept.values()))               # without half a line, to append to
    with tqdm(total=len(items), initial=len(items) - len(todo), desc=benchmark.title, disable=None) as bar:
        for start in range(0, len(todo), args.batch_size):
            part, requests = todo[start:start + args.batch_size], []
            pictures = [benchmarks.image_of(benchmark, rows, item) for item in part]
            for item, picture in zip(part, pictures, strict=True):
                query = Query(item.id, [picture], benchmarks.shown(item, args.harness), "", item.gold)
                try:
                    ready.processor.check(query)
                    prompt = ready.processor.prompt(query)
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    raise DataError(f"{benchmark.title}, item {item.id}: {error}") from None
                requests.append(Request(prompt, [seed_of(args.seed, "benchmark", benchmark.name, item.id)]))
            new = []
            for item, picture, (drawn,) in zip(part, pictures, ready.engine.generate(requests, args.temperature),
                                               strict=True):
                new.append({"id": item.id, "prompt": benchmarks.shown(item, args.harness), "picture": digest(picture),
                            "response": drawn.text, "status": drawn.status.value, "tokens": len(drawn.ids)})
            with open(file, "a", encoding="utf-8") as out:
                out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new))
            kept |= {row["id"]: row for row in new}
            bar.update(len(part))
    return {item.id: kept[item.id] for item in items}


class Judge:
    """Asks for what no rule can tell.  Answers are kept in judge.jsonl; a failure is counted and asked again later.
    Without a URL it only knows what was answered before."""

    def __init__(self, url: str | None, model: str, timeout: float, file: Path, concurrency: int = 16):
        from judges.server import OpenAIChat
        self.file, self.concurrency, self.failed_in_a_row = file, concurrency, 0
        rows, self.chat = read_rows(file, "key", "model", "output"), None
        if url:
            self.chat = OpenAIChat(url, model, timeout, structured=False)
            self.chat.check()
            self.model = self.chat.model
            write_rows(file, rows)                          # without half a line, to append to
        self.known = {row["key"]: row for row in rows if not url or row["model"] == self.model}

    def __call__(self, prompts: list[str]) -> list[tuple | None]:
        """(right, extracted answer, label, judge) of each, None where the judge failed, or nobody was asked."""
        from benchmarks.eleven import read_judgement
        from judges.server import Transient

        def one(prompt: str):
            key = hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()
            if row := self.known.get(key):
                judgement = read_judgement(row["output"])
                return judgement and (*judgement, row["model"])
            if not self.chat:
                return None
            output, dead = "", False
            try:
                output = self.chat([{"role": "user", "content": [{"type": "text", "text": prompt}]}])
            except JudgeError as error:             # a server that refuses this one prompt is there
                dead = isinstance(error, Transient)
            self.failed_in_a_row = self.failed_in_a_row + 1 if dead else 0
            if self.failed_in_a_row > 2 * self.concurrency:
                raise DataError(f"the judge failed {self.failed_in_a_row} times in a row; what it said before is kept")
            if judgement := read_judgement(output):
                row = {"key": key, "model": self.model, "output": output}
                with open(self.file, "a", encoding="utf-8") as out:      # one short write: lines do not mix
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
            return judgement and (*judgement, self.model)
        return side_by_side(one, [(prompt,) for prompt in prompts], self.concurrency)


def score(benchmark, items, samples: dict[str, dict], harness: str, judge: Judge) -> list[dict]:
    """One record per item: by rule, else by the judge, else undecided (right: None)."""
    from benchmarks.eleven import judge_prompt

    records, open_ = [], []
    for item in items:
        row = samples[item.id]
        found, by = benchmark.score(item, row["response"], harness), "rule"
        if row["status"] == SampleStatus.TOO_LONG.value:
            found.right, found.extracted, by = 0.0, "", "not sampled"
        elif harness == "ours" and row["status"] == SampleStatus.TRUNCATED.value and not final_span(row["response"]):
            found.right, found.extracted = 0.0, ""          # it ends before its answer: nothing to find or to judge
        record = row | {"unit": item.unit, "keys": item.keys, "gold": item.gold, "extracted": found.extracted,
                        "right": found.right, "by": by if found.right is not None else "undecided",
                        "harness_right": 0.0 if by == "not sampled" else
                        benchmark.score(item, row["response"], "vlmevalkit").right}
        records.append(record)
        if found.right is None:
            open_.append((item, record))
    if open_:
        judgements = judge([judge_prompt(benchmark, item, record["response"]) for item, record in open_])
        for (_, record), judgement in zip(open_, judgements, strict=True):
            if judgement:
                record["by"], (record["right"], answer, record["label"], record["judge"]) = "judge", judgement
                record["extracted"] = record["extracted"] or answer
            elif judge.chat:
                record["by"] = "judge failed"
                if harness != "ours":                       # there it is wrong, of no class
                    record["right"], record["label"] = 0.0, "failed"
    return records


def scores_of(benchmark, records: list[dict]) -> dict:
    """What scores.json says of a benchmark."""
    from benchmarks.eleven import summary

    def share(test) -> float:
        return 100 * sum(map(test, records)) / len(records)
    by_harness = summary(benchmark, [r | {"right": r["harness_right"], "label": ""} for r in records], resamples=0)
    return {"n": len(records), "of": benchmark.rows, "partial": len(records) < benchmark.rows,
            "headline": benchmark.headline, "unparsed": share(lambda r: not r["extracted"]),
            "truncated": share(lambda r: r["status"] == "truncated"),
            "too_long": sum(r["status"] == "too_long" for r in records),
            "undecided": sum(r["right"] is None for r in records), "judged": sum(r["by"] == "judge" for r in records),
            "judge": ", ".join(sorted({r["judge"] for r in records if r["by"] == "judge"})) or None,
            "judge_failed": sum(r["by"] == "judge failed" for r in records),
            "mean_tokens": sum(r["tokens"] for r in records) / len(records), "numbers": summary(benchmark, records),
            # the same responses by the harness's rules alone; low and high differ by what it would ask a judge
            "by_harness_rules": {name: [n["low"], n["high"]] for name, n in by_harness.items()}}


def bracket(number: dict | None) -> str:
    """A score; with undecided items from all wrong to all right."""
    if not number or number["low"] is None:
        return "–"
    low, high = (f"{number[end]:.1f}" for end in ("low", "high"))
    return low if low == high else f"{low} to {high}"


def benchmark_table(scores: dict[str, dict], harness: str) -> str:
    """table.md: the headline and the paper's columns of every benchmark, then the paper's averages."""
    from benchmarks.eleven import BENCHMARKS, PAPER_AVERAGES, PAPER_MODELS, averages

    lines = ["| benchmark | number | score [95 % interval] | n | unparsed % | truncated % | undecided | "
             + " | ".join(f"paper: {model}" for model in PAPER_MODELS) + " |", "|---|---|" + "---:|" * 8]
    for name, s in scores.items():
        benchmark = BENCHMARKS[name]
        counts = [f"{s['n']} of {s['of']}" if s["partial"] else str(s["n"]), f"{s['unparsed']:.1f}",
                  f"{s['truncated']:.1f}", str(s["undecided"])]
        for i, column in enumerate(dict.fromkeys([benchmark.headline, *benchmark.paper])):
            number = s["numbers"].get(column) or {"low": None, "interval": None}
            span = " [{:.1f}, {:.1f}]".format(*number["interval"]) if number["interval"] else ""
            cells = ["" if i else f"**{benchmark.title}**", column, bracket(number) + span, *("    " if i else counts),
                     *(f"{v:.2f}" for v in benchmark.paper.get(column, ()))]
            lines.append("| " + " | ".join(cells + ["–"] * (10 - len(cells))) + " |")
    found = averages({name: s["numbers"] for name, s in scores.items()})
    for area, mean in found.items():
        cells = [f"**{area} average**", "mean of the ten columns", bracket(mean) if mean else "not formed", *"    "]
        lines.append("| " + " | ".join([*cells, *(f"{v:.2f}" for v in PAPER_AVERAGES[area])]) + " |")
    notes = [f"Prompts and rules: {harness}.", "An average is the plain mean of the ten columns that the paper has for "
             "its area (those with paper numbers above)."]
    missing = [b.title for b in BENCHMARKS.values() if b.name not in scores]
    notes += [f"Not formed without {', '.join(missing)}."] if missing else []
    parts = [BENCHMARKS[name].title for name, s in scores.items() if s["partial"]]
    notes += [f"Only a part of the benchmark, not to be compared with the paper: {', '.join(parts)}."] if parts else []
    notes += [f"{BENCHMARKS[name].title}: {s['judge_failed']} judgements failed." for name, s in scores.items()
              if s["judge_failed"]]
    notes += [f"{BENCHMARKS[name].title}: {s['too_long']} prompts were too long for the context and count as wrong."
              for name, s in scores.items() if s["too_long"]]
    return "\n".join([*lines, "", *notes, ""])


# ------------------------------------------------------------------------------------------------- samples.html

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #f5f6f8; margin: 0 }
main { max-width: 1100px; margin: 0 auto; padding: 24px } h1 { font-size: 24px; margin: 0 } h2 { margin: 36px 0 8px }
h2 small { font-weight: normal; font-size: 14px; color: #5a6675 } p.note { color: #5a6675; margin: 4px 0 }
article { display: grid; grid-template-columns: 220px 1fr 1fr; gap: 4px 20px; background: #fff; padding: 16px;
border: 1px solid #dde2e8; border-left: 5px solid #9aa5b1; border-radius: 6px; margin: 12px 0 }
article.right { border-left-color: #2c8a57 } article.wrong { border-left-color: #c2453f } article > * { min-width: 0 }
img { max-width: 220px; max-height: 220px; border-radius: 3px } h3 { font-size: 12px; margin: 0; color: #5a6675;
text-transform: uppercase; letter-spacing: .04em } pre { font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap;
overflow-wrap: anywhere; margin: 2px 0 8px; max-height: 340px; overflow-y: auto } b.boxed { background: #fff1b8 }
dl { grid-column: 1 / 4; display: flex; flex-wrap: wrap; gap: 4px 24px; margin: 0; padding-top: 8px;
border-top: 1px solid #e8ebef } dt { color: #5a6675; display: inline } dd { display: inline; margin: 0 0 0 6px;
font-weight: 600; overflow-wrap: anywhere }
@media (max-width: 760px) { article { display: block } }"""


def thumbnail(picture: bytes) -> str:
    from data import as_seen

    with Image.open(io.BytesIO(picture)) as file:
        small = as_seen(file)
    small.thumbnail((440, 440))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def samples_page(parts: list[tuple], args) -> str:
    """parts: (benchmark, items, rows, records, scores).  Every text is untrusted: show() escapes it."""
    from benchmarks import eleven as benchmarks
    from training.report import show

    body, how = "", "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"
    for benchmark, items, rows, records, scores in parts:
        head = scores["numbers"][benchmark.headline]
        body += (f"<h2>{show(benchmark.title)} <small>{show(benchmark.headline)} <b>{bracket(head)}</b>, {scores['n']} "
                 f"samples; licence: {show(benchmark.licence)}</small></h2>")
        ordered = sorted(range(len(items)), key=lambda i: (records[i]["right"] is None, records[i]["right"]))
        chosen = sorted({ordered[i * (len(ordered) - 1) // 4] for i in range(5)})      # right, wrong and undecided ones
        for item, record in ((items[i], records[i]) for i in chosen):
            css, words = {1.0: ("right", "right"), 0.0: ("wrong", "wrong")}.get(record["right"], ("", "undecided"))
            facts = {"extracted": record["extracted"] or "nothing", "reference": record["gold"], "score": words,
                     "by": record["by"], "response": f"{record['status']}, {record['tokens']} tokens", "id": item.id}
            prompt = "\\boxed{}".join(show(part) for part in record["prompt"].split("\\boxed{}"))   # not as an answer
            picture = thumbnail(benchmarks.image_of(benchmark, rows, item))
            if record["by"] == "undecided":
                del facts["by"]
            body += (f"<article class='{css}'><img src='{picture}' alt=''>"
                     f"<div><h3>prompt</h3><pre>{prompt}</pre></div><div><h3>response</h3>"
                     f"<pre>{show(record['response']) or '(empty)'}</pre></div><dl>"
                     + "".join(f"<div><dt>{k}</dt><dd>{show(str(v))}</dd></div>" for k, v in facts.items())
                     + "</dl></article>")
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>Benchmark samples</title><style>{STYLE}</style>"
            f"<main><h1>Benchmark samples</h1><p class=note>{show(args.model)}, prompts and rules: {args.harness}, "
            f"{how}. Holds rows of the benchmarks: mind their licences before you pass it on.</p>{body}</main></html>")


def run(argv: list[str]) -> None:
    from benchmarks import eleven as benchmarks

    parser = argparse.ArgumentParser(prog="eval.py run", description="The eleven benchmarks of the paper.")
    parser.add_argument("--model", default="assets/toy")
    parser.add_argument("--benchmarks", default="all", help=f"with commas between: {', '.join(benchmarks.BENCHMARKS)}")
    parser.add_argument("--data_dir", help="has <benchmark>*.parquet or .jsonl; default: the hub")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--harness", choices=benchmarks.HARNESSES, default="ours", help="whose prompts and rules")
    parser.add_argument("--judge", help="OpenAI-compatible server(s): URL[,URL]; without one what no rule can decide "
                                        "stays undecided and scores are given as from ... to ...")
    parser.add_argument("--judge_model", default="", help="its name; default: the only one served")
    parser.add_argument("--judge_timeout", type=float, default=120.0)
    parser.add_argument("--limit", type=int, default=0, help="only the first N units (rows, or groups of rows)")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0, greedy")
    parser.add_argument("--max_new_tokens", type=int, default=16384)
    parser.add_argument("--max_pixels", type=int, default=3_000_000)
    parser.add_argument("--max_context", type=int, default=40960, help="for vLLM; at most the model's own")
    parser.add_argument("--batch_size", type=int, default=64, help="responses that are generated together")
    parser.add_argument("--engine_memory", type=float, default=0.85, help="vLLM's share of the GPU")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    names = list(benchmarks.BENCHMARKS) if args.benchmarks == "all" else args.benchmarks.split(",")
    try:
        for name in names:
            if name not in benchmarks.BENCHMARKS:
                raise DataError(f"no benchmark {name!r}; there are {', '.join(benchmarks.BENCHMARKS)}")
        if args.limit < 0 or not 0 <= args.temperature < float("inf"):
            raise DataError("--limit and --temperature cannot be negative or no number")
        if min(args.batch_size, args.max_new_tokens, args.max_pixels, args.max_context) < 1:
            raise DataError("--batch_size, --max_new_tokens, --max_pixels and --max_context cannot be 0 or negative")
        if args.data_dir and args.output_dir.resolve() == Path(args.data_dir).resolve():
            raise DataError("--output_dir is --data_dir: samples would be taken for data")
        try:
            args.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"--output_dir {args.output_dir}: {error.strerror}") from None
        print(run_benchmarks([benchmarks.BENCHMARKS[name] for name in dict.fromkeys(names)], args))
    except (DataError, JudgeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run_benchmarks(chosen: list, args) -> str:
    """Everything is read and checked before a model is loaded.  -> the table."""
    from benchmarks import eleven as benchmarks

    folder, parts = args.output_dir, []
    settings = settle(args, folder)
    judge = Judge(args.judge, args.judge_model, args.judge_timeout, folder / "judge.jsonl")
    loaded = []
    for benchmark in chosen:
        rows = benchmarks.load_rows(benchmark, args.data_dir)
        items = benchmarks.load_items(benchmark, rows, args.limit)
        settings["prompts"][benchmark.name] = benchmarks.templates(benchmark, items, rows, args.harness)
        loaded.append((benchmark, items, rows))
    write(folder / "settings.json", json.dumps(settings, indent=2, ensure_ascii=False))
    ready, earlier = Ready(args), folder / "scores.json"                # benchmarks of earlier commands stay
    scores = read_json(earlier, "benchmarks")["benchmarks"] if earlier.is_file() else {}
    for benchmark, items, rows in loaded:
        file = folder / f"{benchmark.name}.jsonl"
        records = score(benchmark, items, sample(benchmark, items, rows, ready, file), args.harness, judge)
        write_rows(file, records)
        scores[benchmark.name] = scores_of(benchmark, records)
        parts.append((benchmark, items, rows, records, scores[benchmark.name]))
    scores = {name: scores[name] for name in benchmarks.BENCHMARKS if name in scores}
    averages = benchmarks.averages({name: s["numbers"] for name, s in scores.items()})
    write(folder / "scores.json", json.dumps({**settings, "benchmarks": scores, "averages": averages}, indent=2))
    table_ = benchmark_table(scores, args.harness)
    write(folder / "table.md", table_)
    write(folder / "samples.html", samples_page(parts, args))
    return f"{table_}\n{folder}/samples.html"


if __name__ == "__main__":
    import scoring                  # not this copy of it: what the readers raise has to be what run() catches

    scoring.run(sys.argv[1:])
