"""Runs a model on the eleven benchmarks of the paper and puts its scores beside the paper's.

    python -m benchmarks.run --model RUN/checkpoints/step-000227 --engine vllm --output_dir OUT
        [--benchmarks mmstar,wemath] [--data_dir DIR] [--judge http://HOST:8000/v1] [--harness vlmevalkit]
        [--limit 20]

    OUT/<benchmark>.jsonl   one row per sample: prompt, response, extracted answer, score
    OUT/scores.json         every number with its 95 % interval and counts
    OUT/table.md            the same beside the paper's
    OUT/settings.json       what the samples depend on
    OUT/samples.html        five samples per benchmark of this command

The same command again goes on where it was stopped; with --judge added it only asks the judge.  Samples are
written at once and never drawn again; scores are made anew from them whenever the command runs.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from benchmarks.items import Benchmark, Item, image_of, load_items, load_rows
from benchmarks.judging import Judge, judge_prompt
from benchmarks.page import samples_page
from benchmarks.table import BENCHMARKS, averages, benchmarks_named, paper_table, scores_of
from benchmarks.wording import HARNESSES, prompt_of, prompt_templates
from data import DataError, Query
from judges.answers import final_span
from sampler import Engine, Request, SampleStatus, seed_of
from tools.files import append_rows, read_json, read_rows, weights_digest, write_rows, write_whole
from tools.programs import one_line_errors
from training.parts import model_path, open_engine

SETTINGS = ("model", "engine", "harness", "temperature", "max_new_tokens", "max_pixels", "max_context",
            "seed", "limit")                    # what the samples depend on
OTHER_FOLDER = "choose another --output_dir"
SAMPLE = ("id", "prompt", "picture", "response", "status", "tokens")


class LazyEngine:
    """An engine that is loaded when the first sample is missing: a judge can be added without a GPU."""

    def __init__(self, args):
        self.args, self.engine = args, None

    def load(self) -> Engine:
        """What must fail is refused before any weights are read."""
        args = self.args
        if self.engine:
            return self.engine
        if Path(args.model).is_dir() and not any(Path(args.model).glob("*.safetensors")):
            raise DataError(f"cannot load model {args.model}: no *.safetensors in it")
        self.engine = open_engine(args.model, args.engine, args.max_new_tokens, args.temperature,
                                  args.max_pixels, args.max_context, args.batch_size,
                                  args.engine_memory)
        return self.engine


# ------------------------------------------------------------------------------------------------- settings

def saved_json(file: Path, *names: str) -> dict:
    """A JSON file of an earlier command, with an object under each of `names`."""
    try:
        saved = read_json(file)
    except DataError as error:
        raise DataError(f"{error}: {OTHER_FOLDER}") from None
    if not all(isinstance(saved.get(name), dict) for name in names):
        raise DataError(f"{file} has no {' and '.join(names)}: {OTHER_FOLDER}")
    return saved


def load_or_make_settings(args, folder: Path) -> dict:
    """settings.json of a new run; a run that has samples only goes on with the same settings."""
    settings = {name: getattr(args, name) for name in SETTINGS} | {"weights": weights_digest(args.model)}
    if not any((folder / f"{name}.jsonl").is_file() for name in BENCHMARKS):
        return {"settings": settings, "prompts": {}}
    saved = saved_json(folder / "settings.json", "settings", "prompts")
    for name, value in settings.items():
        before = saved["settings"].get(name)
        if name != "model" and before != value:             # a path may be written in several ways
            raise DataError(f"{folder} was made with {name} {before}, not {value}: {OTHER_FOLDER}")
    return saved


# ------------------------------------------------------------------------------------------ sample and score

def picture_digest(picture: bytes) -> str:
    return hashlib.blake2b(picture, digest_size=8).hexdigest()


def read_samples(benchmark: Benchmark, items: list[Item], rows: Sequence[dict], harness: str,
                 file: Path) -> dict[str, dict]:
    """id -> sample of an earlier command; refuses samples of other data."""
    earlier = read_rows(file, *SAMPLE) if file.is_file() else []
    samples = {row["id"]: {name: row[name] for name in SAMPLE} for row in earlier}
    if gone := samples.keys() - {item.id for item in items}:
        raise DataError(f"{file}: item {min(gone)} is not in the data any more: {OTHER_FOLDER}")
    for item in items:
        sample = samples.get(item.id)
        if sample and sample["prompt"] != prompt_of(item, harness):
            raise DataError(f"{file}: item {item.id} was asked in other words: {OTHER_FOLDER}")
        if sample and sample["picture"] != picture_digest(image_of(benchmark, rows, item)):
            raise DataError(f"{file}: item {item.id} had another picture: {OTHER_FOLDER}")
    return samples


def draw_samples(benchmark: Benchmark, items: list[Item], rows: Sequence[dict], lazy_engine: LazyEngine,
                 file: Path) -> dict[str, dict]:
    """id -> {prompt, picture, response, status, tokens}; only what is missing in the file is generated."""
    args = lazy_engine.args
    samples = read_samples(benchmark, items, rows, args.harness, file)
    todo = [item for item in items if item.id not in samples]
    if todo:
        engine = lazy_engine.load()
        write_rows(file, samples.values())                  # without half a line, to append to
    with tqdm(total=len(items), initial=len(items) - len(todo), desc=benchmark.title, disable=None) as bar:
        for start in range(0, len(todo), args.batch_size):
            batch, requests, new = todo[start:start + args.batch_size], [], []
            pictures = [image_of(benchmark, rows, item) for item in batch]
            for item, picture in zip(batch, pictures, strict=True):
                query = Query(item.id, [picture], prompt_of(item, args.harness), "", item.gold)
                try:
                    engine.processor.check(query)
                    prompt = engine.processor.prompt(query)
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    raise DataError(f"{benchmark.title}, item {item.id}: {error}") from None
                requests.append(Request(prompt, [seed_of(args.seed, "benchmark", benchmark.name, item.id)]))
            drawn = engine.generate(requests, args.temperature)
            for item, picture, (sample,) in zip(batch, pictures, drawn, strict=True):
                new.append({"id": item.id, "prompt": prompt_of(item, args.harness),
                            "picture": picture_digest(picture), "response": sample.text,
                            "status": sample.status.value, "tokens": len(sample.ids)})
            append_rows(file, new)
            samples |= {row["id"]: row for row in new}
            bar.update(len(batch))
    return {item.id: samples[item.id] for item in items}


def score_samples(benchmark: Benchmark, items: list[Item], samples: dict[str, dict], harness: str,
                  judge: Judge) -> list[dict]:
    """One record per item: by rule, else by the judge, else undecided (right: None)."""
    records, undecided = [], []
    for item in items:
        sample = samples[item.id]
        response, too_long = sample["response"], sample["status"] == SampleStatus.TOO_LONG.value
        truncated = sample["status"] == SampleStatus.TRUNCATED.value
        score = benchmark.score(item, response, harness)
        if too_long or harness == "ours" and truncated and not final_span(response):
            score.right, score.extracted = 0.0, ""          # it ends before its answer: nothing to judge
        by = "not sampled" if too_long else "undecided" if score.right is None else "rule"
        record = sample | {
            "unit": item.unit, "keys": item.keys, "gold": item.gold, "extracted": score.extracted,
            "right": score.right, "by": by,
            "harness_right": 0.0 if too_long else benchmark.score(item, response, "vlmevalkit").right}
        records.append(record)
        if by == "undecided":
            undecided.append((item, record))
    if not undecided:
        return records
    prompts = [judge_prompt(benchmark, item, record["response"]) for item, record in undecided]
    for (_, record), judgement in zip(undecided, judge(prompts), strict=True):
        if judgement:
            record["by"], (record["right"], answer, record["label"], record["judge"]) = "judge", judgement
            record["extracted"] = record["extracted"] or answer
        elif judge.chat:
            record["by"] = "judge failed"
            if harness != "ours":                           # there it is wrong, of no class
                record["right"], record["label"] = 0.0, "failed"
    return records


def run_benchmarks(chosen: list[Benchmark], args) -> str:
    """Everything is read and checked before a model is loaded.  -> the table."""
    folder, loaded, parts = args.output_dir, [], []
    settings = load_or_make_settings(args, folder)
    judge = Judge(args.judge, args.judge_model, args.judge_timeout, folder / "judge.jsonl")
    for benchmark in chosen:
        rows = load_rows(benchmark, args.data_dir)
        items = load_items(benchmark, rows, args.limit)
        settings["prompts"][benchmark.name] = prompt_templates(benchmark, items, rows, args.harness)
        loaded.append((benchmark, items, rows))
    write_whole(folder / "settings.json", json.dumps(settings, indent=2, ensure_ascii=False))
    lazy_engine, file = LazyEngine(args), folder / "scores.json"
    scores = saved_json(file, "benchmarks")["benchmarks"] if file.is_file() else {}     # of earlier commands
    for benchmark, items, rows in loaded:
        file = folder / f"{benchmark.name}.jsonl"
        samples = draw_samples(benchmark, items, rows, lazy_engine, file)
        records = score_samples(benchmark, items, samples, args.harness, judge)
        write_rows(file, records)
        scores[benchmark.name] = scores_of(benchmark, records)
        parts.append((benchmark, items, rows, records, scores[benchmark.name]))
    scores = {name: scores[name] for name in BENCHMARKS if name in scores}
    means = averages({name: s["numbers"] for name, s in scores.items()})
    everything = {**settings, "benchmarks": scores, "averages": means}
    write_whole(folder / "scores.json", json.dumps(everything, indent=2))
    table = paper_table(scores, args.harness)
    write_whole(folder / "table.md", table)
    write_whole(folder / "samples.html", samples_page(parts, args.model, args.harness, args.temperature))
    return f"{table}\n{folder}/samples.html"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", default="", help="checkpoint folder or hub id; default: that of the built-in world")
    add("--benchmarks", default="all", help=f"with commas between: {', '.join(BENCHMARKS)}")
    add("--data_dir", help="has <benchmark>*.parquet or .jsonl; default: the hub")
    add("--output_dir", type=Path, required=True)
    add("--engine", choices=("hf", "vllm"), default="hf")
    add("--harness", choices=HARNESSES, default="ours", help="whose prompts and rules")
    add("--judge", help="OpenAI-compatible server(s): URL[,URL]; without one what no rule can decide stays "
                        "undecided and scores are given as from ... to ...")
    add("--judge_model", default="", help="its name; default: the only one served")
    add("--judge_timeout", type=float, default=120.0)
    add("--limit", type=int, default=0, help="only the first N units (rows, or groups of rows)")
    add("--temperature", type=float, default=0.0, help="default: 0, greedy")
    add("--max_new_tokens", type=int, default=16384)
    add("--max_pixels", type=int, default=3_000_000)
    add("--max_context", type=int, default=40960, help="for vLLM; at most the model's own")
    add("--batch_size", type=int, default=64, help="responses that are generated together")
    add("--engine_memory", type=float, default=0.85, help="vLLM's share of the GPU")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.model = model_path(args.model)
    with one_line_errors("; the same command goes on"):
        chosen = benchmarks_named(BENCHMARKS if args.benchmarks == "all" else args.benchmarks.split(","))
        if args.limit < 0 or not 0 <= args.temperature < float("inf"):
            raise DataError("--limit and --temperature cannot be negative or no number")
        if min(args.batch_size, args.max_new_tokens, args.max_pixels, args.max_context) < 1:
            raise DataError("--batch_size, --max_new_tokens, --max_pixels and --max_context cannot be 0 or "
                            "negative")
        if args.data_dir and args.output_dir.resolve() == Path(args.data_dir).resolve():
            raise DataError("--output_dir is --data_dir: samples would be taken for data")
        try:
            args.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"--output_dir {args.output_dir}: {error.strerror}") from None
        print(run_benchmarks(chosen, args))


if __name__ == "__main__":
    main()
