"""Remakes the tables and figures of the README on the built-in world, by starting contextrl.py as a user would.

    python experiments.py methods       SFT, GRPO, DAPO, ContextRL                      -> table, assets/methods.png
    python experiments.py ablations     the paper's Table 4, and one trap               -> table, assets/ablations.png

Every row is run with several seeds.  A seed changes the order of the queries and every sample, not the warm start, the
training pool or the held-out pictures.  The default seeds took no part in choosing any setting.
Finished runs under --folder are not run again; a table is made from what their summary.json says, nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent

METHODS = {
    "SFT, teacher's references": "--method sft --queries_per_step 64 --learning_rate 3e-4",
    "SFT, teacher's, 3 x steps": "--method sft --queries_per_step 64 --learning_rate 3e-4 --steps 360",
    "SFT, canonical (control)": "--method sft --queries_per_step 64 --learning_rate 3e-4 "
                                "--data {folder}/canonical/train.jsonl --eval_data {folder}/canonical/heldout.jsonl",
    "GRPO, answer only": "--method grpo --verifier_context answer",
    "GRPO, solution": "--method grpo",
    "DAPO, solution": "--method dapo",
    "ContextRL": "--method contextrl",
}
ABLATIONS = {
    "ContextRL": "--method contextrl",
    "judge sees the answer only": "--method contextrl --verifier_context answer",
    "no stage 2": "--method grpo",               # the same run as --no_stage2, which a test shows
    "no report": "--method contextrl --no_report",
    "no scaling (λ = 1)": "--method contextrl --mixed_scale 1",
    "trap: stage-2 old log-prob": "--method contextrl --stage2_old_logprob",
}
TIMEOUT = 1800          # seconds for one run


def run_name(arguments: str, seed: int) -> str:
    """Folder of a run: the same settings in two tables are one run.

    >>> run_name("--method grpo --verifier_context answer", 1)
    'grpo-verifier_context-answer-seed1'
    """
    words = arguments.replace("{folder}/", "").replace("/", "-").replace("--method ", "").replace("--", "").split()
    return "-".join([*words, f"seed{seed}"])


def run_one(label: str, arguments: str, seed: int, folder: Path) -> Path:
    """One finished run folder; resumes what was interrupted."""
    target = folder / run_name(arguments, seed)
    if (target / "summary.json").exists():
        return target
    command = [sys.executable, str(HERE / "contextrl.py"), *arguments.format(folder=folder).split(),
               "--seed", str(seed), "--output_dir", str(target)] + (["--resume"] if target.exists() else [])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"{label}, seed {seed}: exit {done.returncode}\n{done.stderr[-2000:]}")
    print(f"done: {label}, seed {seed}", flush=True)
    return target


def run_all(rows: dict[str, str], seeds: list[int], folder: Path, jobs: int) -> dict[str, list[Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    if any("canonical" in arguments for arguments in rows.values()) and not (folder / "canonical").exists():
        subprocess.run([sys.executable, str(HERE / "toy.py"), "data", str(folder / "canonical"), "--references",
                        "canonical"], check=True, timeout=TIMEOUT)
    with ThreadPoolExecutor(jobs) as pool:
        futures = {label: [pool.submit(run_one, label, arguments, seed, folder) for seed in seeds]
                   for label, arguments in rows.items()}
        return {label: [f.result() for f in runs] for label, runs in futures.items()}


# ------------------------------------------------------------------------------------------------------ table

def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds.

    >>> spread([0.5, 0.6, 0.7])
    '.60 ± .10'
    """
    def short(x: float) -> str:
        return f"{x:.2f}".removeprefix("0")
    return f"{short(statistics.mean(values))} ± {short(statistics.stdev(values)) if len(values) > 1 else '?'}"


COLUMNS = [      # heading, family ("" = overall), accuracy
    ("answer", "", "answer_accuracy"), ("process", "", "process_accuracy"), ("FP share", "", "false_positive_share"),
    ("ordinary", "ordinary", "process_accuracy"), ("shortcut", "shortcut", "process_accuracy"),
    ("balanced answer", "balanced", "answer_accuracy"), ("balanced process", "balanced", "process_accuracy"),
    ("hard answer", "hard", "answer_accuracy"), ("hard process", "hard", "process_accuracy")]


def accuracy_cells(summaries: list[dict]) -> list[str]:
    return [spread([(s["families"][family] if family else s)[name] for s in summaries]) for _, family, name in COLUMNS]


def make_tables(results: dict[str, list[Path]]) -> str:
    """Markdown: one table at T = 1, one greedy."""
    summaries = {label: [json.loads((run / "summary.json").read_text()) for run in runs]
                 for label, runs in results.items()}
    first = next(iter(summaries.values()))
    out = []
    for title, start, end in (("T = 1", "start", "end"), ("greedy", "start_greedy", "end_greedy")):
        lines = ["| " + " | ".join([title, *(c[0] for c in COLUMNS), "steps", "k tokens"]) + " |",
                 "|" + "---|" * (len(COLUMNS) + 3),
                 "| " + " | ".join(["start", *accuracy_cells([s[start] for s in first]), "0", ""]) + " |"]
        for label, runs in summaries.items():
            lines.append("| " + " | ".join([
                label, *accuracy_cells([s[end] for s in runs]), str(runs[0]["steps"]),
                f"{statistics.mean(s['tokens_sampled'] for s in runs) / 1000:.0f}"]) + " |")
        out.append("\n".join(lines))
    return "\n\n".join(out)


def make_figure(results: dict[str, list[Path]], target: Path) -> None:
    """Process accuracy over steps (T = 1), mean and range over seeds, one panel for each of three families."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    families = ("ordinary", "balanced", "hard")
    figure, axes = pyplot.subplots(1, len(families), figsize=(12, 3.6), sharey=True)
    for label, runs in results.items():
        curves = [{row["step"]: row["eval"]["families"] for row in map(json.loads, (run / "metrics.jsonl").open())
                   if row.get("eval")} for run in runs]
        steps = sorted(curves[0])
        for axis, family in zip(axes, families):
            values = [[curve[step][family]["process_accuracy"] for curve in curves] for step in steps]
            line, = axis.plot(steps, [statistics.mean(v) for v in values], label=label,
                              linewidth=2.6 if label == "ContextRL" else 1.4)
            axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15,
                              color=line.get_color(), linewidth=0)
    for axis, family in zip(axes, families):
        axis.set(title=family, xlabel="step", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("process accuracy, T = 1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(target, dpi=150)
    print(f"figure: {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=("methods", "ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--folder", type=Path, default=HERE / "runs" / "experiments")
    args = parser.parse_args()
    rows = {"methods": METHODS, "ablations": ABLATIONS}[args.experiment]
    results = run_all(rows, args.seeds, args.folder.resolve(), args.jobs)
    print(f"\n{len(args.seeds)} seeds, mean ± standard deviation\n\n{make_tables(results)}\n")
    make_figure(results, HERE / "assets" / f"{args.experiment}.png")


if __name__ == "__main__":
    main()
