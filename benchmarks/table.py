"""The eleven benchmarks of the paper (arXiv 2602.22623, table 1), and scores beside the paper's."""

from collections.abc import Iterable

from benchmarks.aggregate import summary
from benchmarks.items import Benchmark
from benchmarks.perception import PERCEPTION
from benchmarks.reasoning import REASONING
from data import DataError
from tools.pages import markdown_table

BENCHMARKS = {benchmark.name: benchmark for benchmark in (*PERCEPTION, *REASONING)}
PAPER_MODELS = ("base 8B", "GRPO", "ContextRL")     # of the columns that we show
PAPER_AVERAGES = {"perception": (59.31, 64.25, 65.22), "reasoning": (57.12, 58.17, 62.37)}


def benchmarks_named(names: Iterable[str]) -> list[Benchmark]:
    for name in names:
        if name not in BENCHMARKS:
            raise DataError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in dict.fromkeys(names)]


def averages(numbers: dict[str, dict]) -> dict:
    """The paper's two averages: plain means of the ten columns that its table has for an area, parts and
    wholes of a benchmark mixed (found by calculation: it gives all its averages).  `numbers`: benchmark ->
    summary(). None if a benchmark of the area is missing."""
    means = {}
    for area in PAPER_AVERAGES:
        columns = [numbers.get(b.name, {}).get(column)
                   for b in BENCHMARKS.values() if b.area == area for column in b.paper]
        means[area] = None if None in columns else {
            end: sum(column[end] for column in columns) / len(columns) for end in ("low", "high")}
    return means


def scores_of(benchmark: Benchmark, records: list[dict]) -> dict:
    """What scores.json says of a benchmark."""
    def share(test) -> float:
        return 100 * sum(map(test, records)) / len(records)
    by_harness = [r | {"right": r["harness_right"], "label": ""} for r in records]
    return {"n": len(records), "of": benchmark.rows, "partial": len(records) < benchmark.rows,
            "headline": benchmark.headline, "unparsed": share(lambda r: not r["extracted"]),
            "truncated": share(lambda r: r["status"] == "truncated"),
            "too_long": sum(r["status"] == "too_long" for r in records),
            "undecided": sum(r["right"] is None for r in records),
            "judged": sum(r["by"] == "judge" for r in records),
            "judge": ", ".join(sorted({r["judge"] for r in records if r["by"] == "judge"})) or None,
            "judge_failed": sum(r["by"] == "judge failed" for r in records),
            "mean_tokens": sum(r["tokens"] for r in records) / len(records),
            "numbers": summary(benchmark, records),
            # by the harness's rules alone; low and high differ by what it would ask a judge
            "by_harness_rules": {name: [n["low"], n["high"]] for name, n
                                 in summary(benchmark, by_harness, resamples=0).items()}}


def bracket(number: dict | None) -> str:
    """A score; with undecided items from all wrong to all right."""
    if not number or number["low"] is None:
        return "–"
    low, high = (f"{number[end]:.1f}" for end in ("low", "high"))
    return low if low == high else f"{low} to {high}"


def paper_table(scores: dict[str, dict], harness: str) -> str:
    """table.md: the headline and the paper's columns of every benchmark, then the paper's averages."""
    rows = [["benchmark", "number", "score [95 % interval]", "n", "unparsed %", "truncated %", "undecided",
             *(f"paper: {model}" for model in PAPER_MODELS)]]
    for name, s in scores.items():
        benchmark = BENCHMARKS[name]
        first = [f"**{benchmark.title}**", f"{s['n']} of {s['of']}" if s["partial"] else s["n"],
                 f"{s['unparsed']:.1f}", f"{s['truncated']:.1f}", s["undecided"]]
        for column in dict.fromkeys([benchmark.headline, *benchmark.paper]):
            number = s["numbers"].get(column) or {"low": None, "interval": None}
            span = " [{:.1f}, {:.1f}]".format(*number["interval"]) if number["interval"] else ""
            title, *counts = first
            paper = [f"{v:.2f}" for v in benchmark.paper.get(column, ())] or ["–"] * len(PAPER_MODELS)
            rows.append([title, column, bracket(number) + span, *counts, *paper])
            first = [""] * len(first)
    means = averages({name: s["numbers"] for name, s in scores.items()})
    for area, mean in means.items():
        rows.append([f"**{area} average**", "mean of the ten columns",
                     bracket(mean) if mean else "not formed", *[""] * 4,
                     *(f"{v:.2f}" for v in PAPER_AVERAGES[area])])

    def titles(test) -> str:
        return ", ".join(b.title for b in BENCHMARKS.values() if test(b.name))
    notes = [f"Prompts and rules: {harness}.", "An average is the plain mean of the ten columns that the "
             "paper has for its area (those with paper numbers above)."]
    if missing := titles(lambda name: name not in scores):
        notes.append(f"Not formed without {missing}.")
    if partial := titles(lambda name: name in scores and scores[name]["partial"]):
        notes.append(f"Only a part of the benchmark, not to be compared with the paper: {partial}.")
    for key, trouble in (("judge_failed", "judgements failed."),
                         ("too_long", "prompts were too long for the context and count as wrong.")):
        notes += [f"{BENCHMARKS[name].title}: {s[key]} {trouble}" for name, s in scores.items() if s[key]]
    return "\n".join([markdown_table(rows), "", *notes, ""])
