"""Tables of run folders, beside the paper's numbers where it has any."""

import math
import statistics
from collections import Counter
from pathlib import Path

from tools.files import read_json, read_rows
from tools.numbers import spread
from tools.pages import markdown_table

Runs = dict[str, list[Path]]            # row of a table -> its run folders, one for each seed

# The paper's numbers on its own benchmarks: nothing can be compared but the direction.  Its GRPO and DAPO are
# judged by the final answer (inferred from its appendix), so its DAPO has no row here.
PAPER = {
    "methods": ("paper: perception / reasoning", {
        "start": "59.31 / 57.12", "SFT, teacher's references": "62.07 / 57.94",
        "GRPO, answer only": "64.25 / 58.17", "ContextRL": "65.22 / 62.37"}),
    "ablations": ("paper: 8 benchmarks", {
        "ContextRL": "66.67", "judge sees the answer only": "64.71", "no stage 2": "65.13",
        "no report": "66.35", "no scaling (λ = 1)": "66.24"}),
    "injection": ("paper: MME-RW-lite / MMStar / HRB8K / MathVista / We-Math", {
        "start": "49.61 / 64.06 / 70.00 / 76.80 / 59.14",
        "all sound": "53.93 / 72.87 / 73.25 / 78.60 / 63.05",
        "10 % false": "53.88 / 73.93 / 73.00 / 78.30 / 62.76",
        "20 % false": "54.72 / 73.00 / 73.50 / 78.30 / 61.33",
        "30 % false": "53.41 / 72.47 / 73.49 / 77.00 / 61.29"}),
}


def read_summaries(results: Runs) -> dict[str, list[dict]]:
    return {label: [read_json(run / "summary.json") for run in runs] for label, runs in results.items()}


# ----------------------------------------------------------------------------- accuracies (Tables 1, 3 and 4)

COLUMNS = [      # heading, family ("" = overall), accuracy
    ("answer", "", "answer_accuracy"), ("process", "", "process_accuracy"),
    ("FP share", "", "false_positive_share"),
    ("ordinary", "ordinary", "process_accuracy"), ("shortcut", "shortcut", "process_accuracy"),
    ("balanced answer", "balanced", "answer_accuracy"), ("balanced process", "balanced", "process_accuracy"),
    ("hard answer", "hard", "answer_accuracy"), ("hard process", "hard", "process_accuracy")]


def accuracy_cells(evaluations: list[dict]) -> list[str]:
    return [spread([(e["families"][family] if family else e)[name] for e in evaluations])
            for _, family, name in COLUMNS]


def accuracy_tables(results: Runs, paper: tuple[str, dict[str, str]] | None = None) -> str:
    """One table at T = 1, beside the paper's numbers if it has any, and one greedy."""
    summaries = read_summaries(results)
    first, tables = next(iter(summaries.values())), []
    for title, start, end in (("T = 1", "start", "end"), ("greedy", "start_greedy", "end_greedy")):
        rows = [[title, *(heading for heading, _, _ in COLUMNS), "steps", "k tokens"],
                ["start", *accuracy_cells([s[start] for s in first]), "0", ""]]
        rows += [[label, *accuracy_cells([s[end] for s in of_row]), str(of_row[0]["steps"]),
                  f"{statistics.mean(s['tokens_sampled'] for s in of_row) / 1000:.0f}"]
                 for label, of_row in summaries.items()]
        if title == "T = 1" and paper:
            heading, numbers = paper
            rows = [[*row, numbers.get(row[0], "") if i else heading] for i, row in enumerate(rows)]
        tables.append(markdown_table(rows))
    return "\n\n".join(tables)


def points_lost(results: Runs, end: str, family: str) -> list[list[float]]:
    """Points of process accuracy against the mean of the first row (all sound): one list over seeds for each
    row."""
    values = [[100 * s[end]["families"][family]["process_accuracy"] for s in of_row]
              for of_row in read_summaries(results).values()]
    return [[value - statistics.mean(values[0]) for value in row] for row in values]


# ------------------------------------------------------------------------------ section 4.4: information gain

# Measure -> the paper's number, in per cent; * is derived from its numbers.  The last line adds a share of
# responses to a share of queries, as the paper's text does.  (Its appendix has a difference of false-positive
# rates as first term.)
GAIN = {
    "stage-1 responses judged negative": "51.12",
    "of all responses: answer right, reasoning wrong": "8.9",
    "of the negatives: answer right, reasoning wrong": "17.4*",
    "of the right answers: reasoning wrong": "15.5*",
    "queries with a positive from stage 2 only": "8.56",
    "information gain (second + fifth line)": "about 17",
}


def information_gains(rows: list[dict]) -> dict[str, float]:
    """GAIN's measures over rows of rollouts.jsonl; a response without a verdict counts in none of them."""
    n = Counter()
    for row in rows:
        judged = [m for m in row["stage1"] if m["verdict"] == "judged"]
        n.update(queries=1, recovered=row["kind"] == "mixed", responses=len(judged),
                 negative=sum(not m["correct"] for m in judged), right=sum(m["answer_right"] for m in judged),
                 false=sum(m["answer_right"] and not m["correct"] for m in judged))
    shares = [n["negative"] / n["responses"], n["false"] / n["responses"], n["false"] / max(n["negative"], 1),
              n["false"] / max(n["right"], 1), n["recovered"] / n["queries"]]
    return dict(zip(GAIN, [100 * share for share in [*shares, shares[1] + shares[4]]]))


def gain_table(results: Runs, epoch: int = 75) -> str:
    """Over the first epoch of training, as in the paper, and over the whole run."""
    table = [["share, %", "first epoch", "whole run", "paper (one epoch)"]]
    rollouts = [list(read_rows(run / "rollouts.jsonl")) for run in results["ContextRL"]]
    gains = [[information_gains([row for row in of_seed if row["step"] <= last]) for of_seed in rollouts]
             for last in (epoch, math.inf)]
    for name, paper in GAIN.items():
        cells = [f"{statistics.mean(v):.1f} ± " + (f"{statistics.stdev(v):.1f}" if len(v) > 1 else "?")
                 for v in ([of_seed[name] for of_seed in seeds] for seeds in gains)]
        table.append([name, *cells, paper])
    return markdown_table(table)


# --------------------------------------------------------------------------- context pairs (arXiv 2606.17053)

def context_table(results: Runs, start_probe: dict, probes: dict[str, list[dict]]) -> str:
    """Task, selection and forgetting: what ordinary and balanced questions lose against the start, greedy.  A
    probe is what context_pairs.probe says of a checkpoint."""
    summaries = read_summaries(results)
    before = next(iter(summaries.values()))[0]["start_greedy"]["families"]

    def cells(ends: list[tuple[dict, dict]], of_row: list[dict]) -> list[str]:
        def lost(family: str) -> str:
            return spread([before[family]["process_accuracy"] - greedy["families"][family]["process_accuracy"]
                           for _, greedy in ends])

        return [spread([end["process_accuracy"] for end, _ in ends]),
                spread([greedy["process_accuracy"] for _, greedy in ends]),
                spread([end["families"]["hard"]["process_accuracy"] for end, _ in ends]),
                *(spread([p[name] for p in of_row]) for name in ("accuracy", "right_in_both_orders", "bias")),
                lost("ordinary"), lost("balanced")]

    table = [["", "process, T = 1", "process, greedy", "hard, T = 1", "selection (chance .50)",
              "right in both orders (.25)", "position bias", "lost: ordinary", "lost: balanced"],
             ["start", *cells([(s["start"], s["start_greedy"]) for s in summaries["GRPO"]], [start_probe])]]
    table += [[label, *cells([(s["end"], s["end_greedy"]) for s in of_row], probes[label])]
              for label, of_row in summaries.items()]
    return markdown_table(table)
