"""Figures of run folders."""

import math
import statistics
from pathlib import Path

from experiments.tables import GAIN, PAPER, Runs, information_gains, points_lost
from tools.files import read_rows

FIGURES = Path(__file__).resolve().parent / "figures"


def panels(count: int, width: float = 4, **more):
    """-> (axes in one row, a function that saves their figure)."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(width * count, 3.6), **more)

    def save(target: Path, note: str = "band: range over seeds", legend: int = 4) -> None:
        for axis in axes:
            axis.grid(alpha=0.25)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
        entries = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels())}
        figure.legend(entries.values(), entries, loc="lower center", ncol=legend, frameon=False, title=note,
                      title_fontsize=9)
        figure.tight_layout(rect=(0, 0.06 + 0.07 * math.ceil(len(entries) / legend), 1, 1))
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=150)
        print(f"figure: {target}")
    return axes, save


def plot_band(axis, points: list[dict[int, float]], label: str, **style) -> None:
    """Mean over seeds, and their range; `points`: step -> value, of each seed."""
    steps = sorted(set.intersection(*map(set, points)))
    values = [[of_seed[step] for of_seed in points] for step in steps]
    line, = axis.plot(steps, [statistics.mean(v) for v in values], label=label, **style)
    axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15,
                      color=line.get_color(), linewidth=0)


def plot_learning(axis, results: Runs, family: str) -> None:
    """Process accuracy over steps at T = 1 of one family."""
    for label, runs in results.items():
        points = [{row["step"]: row["eval"]["families"][family]["process_accuracy"]
                   for row in read_rows(run / "metrics.jsonl") if row.get("eval")} for run in runs]
        plot_band(axis, points, label, linewidth=2.6 if label == "ContextRL" else 1.4)
    axis.set(title=family, xlabel="step", ylim=(-0.02, 1.02))


def learning_figure(results: Runs, target: Path) -> None:
    axes, save = panels(3, sharey=True)
    for axis, family in zip(axes, ("ordinary", "balanced", "hard")):
        plot_learning(axis, results, family)
    axes[0].set_ylabel("process accuracy, T = 1")
    save(target)


def injection_figure(results: Runs, target: Path) -> None:
    """What false positives cost against all sound: here by family (hard ones have no sound response, so they
    are not in the data), and in the paper by benchmark.  The panels have different scales."""
    (*here, there), save = panels(3)
    shares = (0, 10, 20, 30)
    for axis, end, how in zip(here, ("end", "end_greedy"), ("T = 1", "greedy")):
        for family in ("ordinary", "shortcut", "balanced"):
            lost = points_lost(results, end, family)
            deviations = [statistics.stdev(v) if len(v) > 1 else 0 for v in lost]
            axis.errorbar(shares, [statistics.mean(v) for v in lost], deviations, marker="o", markersize=4,
                          capsize=3, label=family)
        axis.set(title=f"here: process accuracy, {how}", ylim=(-60, 5))
    heading, paper = PAPER["injection"]
    numbers = [[float(x) for x in paper[label].split(" / ")] for label in results]
    for i, name in enumerate(heading.removeprefix("paper: ").split(" / ")):
        there.plot(shares, [row[i] - numbers[0][i] for row in numbers], "--", marker=".", color=f"C{i + 3}",
                   label=f"paper: {name}")
    there.set(title="paper: benchmark scores")
    for axis in (*here, there):
        axis.set(xlabel="false positives in the data, %", xticks=shares)
    here[0].set_ylabel("points against all sound")
    save(target, note="bars: one standard deviation over seeds; mind the scales")


def gain_figure(results: Runs, target: Path) -> None:
    """The two terms over training, means over 5 steps; dashed: the paper's mean over its epoch."""
    axes, save = panels(2, sharex=True)
    names = [list(GAIN)[i] for i in (1, 4)]
    for axis, name in zip(axes, names):
        points = []
        for run in results["ContextRL"]:
            by_step: dict[int, list] = {}
            for row in read_rows(run / "rollouts.jsonl"):
                by_step.setdefault(math.ceil(row["step"] / 5) * 5, []).append(row)
            points.append({step: information_gains(rows)[name] for step, rows in by_step.items()})
        plot_band(axis, points, "built-in world (one epoch is 75 steps)")
        axis.axhline(float(GAIN[name]), linestyle="--", color="0.4", label="paper, mean over its epoch")
        axis.set(title=name, xlabel="step", ylim=(0, None))
        axis.title.set_fontsize(10)
    axes[0].set_ylabel("%")
    save(target)


def context_figure(results: Runs, target: Path) -> None:
    (selection, *tasks), save = panels(3, sharey=True)
    for i, (label, runs) in enumerate(results.items()):
        points = [{row["step"]: row["context/accuracy"] for row in read_rows(run / "metrics.jsonl")
                   if "context/accuracy" in row} for run in runs]
        if all(points):
            smooth = [{step: statistics.mean(p[s] for s in range(max(1, step - 4), step + 1)) for step in p}
                      for p in points]
            plot_band(selection, smooth, label, color=f"C{i}", linewidth=1.4)
    selection.axhline(0.5, linestyle="--", color="0.4")
    selection.set(title="selection accuracy in training", xlabel="step", ylim=(-0.02, 1.02))
    for axis, family in zip(tasks, ("ordinary", "hard")):
        plot_learning(axis, results, family)
    save(target, legend=3)
