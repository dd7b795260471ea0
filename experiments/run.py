"""Remakes the tables and figures of the README on the built-in world, by starting contextrl.py as a user would.

    python experiments.py methods           SFT, GRPO, DAPO, ContextRL (Table 1)            assets/methods.png
    python experiments.py ablations         the paper's Table 4                             assets/ablations.png
    python experiments.py trap              rolled-back samples under the wrong old         assets/trap.png
                                            log-prob
    python experiments.py injection         SFT on samples with 0 to 30 % false positives   assets/injection.png
                                            (Table 3)
    python experiments.py information_gain  what solution-aware verdicts and stage 2 add    assets/information_gain.png
                                            (section 4.4)
    python experiments.py context           the loss of context pairs (arXiv 2606.17053)    assets/context.png

Each prints a table, beside the paper's numbers where it has any, and writes a figure.  (Table 2: eval.py verifier.)
Every row is run with several seeds.  A seed changes the order of the queries and every sample, not the warm start, the
training pool or the held-out pictures.  The default seeds took no part in choosing any setting.
Finished runs under --folder are not run again; a table is made from what their summary.json says, nothing else.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
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
}
TRAP = {"ContextRL": "--method contextrl", "stage-2 old log-prob": "--method contextrl --stage2_old_logprob"}
INJECTION = {"all sound" if share == 0 else f"{share} % false": "--method sft --queries_per_step 64 --steps 60 "
             f"--eval_every 0 --data {{folder}}/recording-seed{{seed}}/false-{share}.jsonl "
             "--eval_data {folder}/canonical/heldout.jsonl" for share in (0, 10, 20, 30)}
CONTEXT = {
    "GRPO": "--method grpo",
    "GRPO + pairs as data": "--method grpo --context_pairs {folder}/canonical/pairs.jsonl --context_as_data",
    "GRPO + context loss": "--method grpo --context_pairs toy --context_weight 4 --context_batch 64",
    "ContextRL": "--method contextrl",
    "ContextRL + context loss": "--method contextrl --context_pairs toy --context_weight 4 --context_batch 64",
}
# The paper's numbers on its own benchmarks: nothing can be compared but the direction.  Its GRPO and DAPO are judged by
# the final answer (inferred from its appendix), so its DAPO has no row here.
PAPER = {
    "methods": ("paper: perception / reasoning", {
        "start": "59.31 / 57.12", "SFT, teacher's references": "62.07 / 57.94", "GRPO, answer only": "64.25 / 58.17",
        "ContextRL": "65.22 / 62.37"}),
    "ablations": ("paper: 8 benchmarks", {
        "ContextRL": "66.67", "judge sees the answer only": "64.71", "no stage 2": "65.13", "no report": "66.35",
        "no scaling (λ = 1)": "66.24"}),
    "injection": ("paper: MME-RW-lite / MMStar / HRB8K / MathVista / We-Math", {
        "start": "49.61 / 64.06 / 70.00 / 76.80 / 59.14", "all sound": "53.93 / 72.87 / 73.25 / 78.60 / 63.05",
        "10 % false": "53.88 / 73.93 / 73.00 / 78.30 / 62.76", "20 % false": "54.72 / 73.00 / 73.50 / 78.30 / 61.33",
        "30 % false": "53.41 / 72.47 / 73.49 / 77.00 / 61.29"}),
}
TIMEOUT = 1800          # seconds for one run


def run_name(arguments: str, seed: int) -> str:
    """Folder of a run: the same settings in two tables are one run.

    >>> run_name("--method grpo --verifier_context answer", 1)
    'grpo-verifier_context-answer-seed1'
    """
    for old, new in (("{folder}/", ""), ("-seed{seed}", ""), ("/", "-"), ("--method ", ""), ("--", "")):
        arguments = arguments.replace(old, new)
    return "-".join([*arguments.split(), f"seed{seed}"])


def run_one(label: str, arguments: str, seed: int, folder: Path) -> Path:
    """One finished run folder; resumes what was interrupted."""
    target = folder / run_name(arguments, seed)
    if (target / "summary.json").exists():
        return target
    command = ["contextrl.py", "--eval_every", "30", *arguments.format(folder=folder, seed=seed).split(),
               "--seed", str(seed), "--output_dir", str(target)] + (["--resume"] if target.exists() else [])
    start(command, f"{label}, seed {seed}")
    print(f"done: {label}, seed {seed}", flush=True)
    return target


def start(command: list[str], name: str) -> None:
    """One of the programs beside this file, on one thread."""
    done = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], cwd=HERE, capture_output=True,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"{name}: exit {done.returncode}\n{done.stderr[-2000:]}")


def run_all(rows: dict[str, str], seeds: list[int], folder: Path, jobs: int) -> dict[str, list[Path]]:
    folder.mkdir(parents=True, exist_ok=True)
    needed = [folder / "canonical" / f"{name}.jsonl" for name in ("train", "heldout", "pairs")]
    if any("canonical" in arguments for arguments in rows.values()) and not all(file.exists() for file in needed):
        start(["toy.py", "data", str(folder / "canonical"), "--references", "canonical"], "data")
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
        return f"{round(x, 2) + 0.0:.2f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.2f}"
    return f"{short(statistics.mean(values))} ± {short(statistics.stdev(values)) if len(values) > 1 else '?'}"


COLUMNS = [      # heading, family ("" = overall), accuracy
    ("answer", "", "answer_accuracy"), ("process", "", "process_accuracy"), ("FP share", "", "false_positive_share"),
    ("ordinary", "ordinary", "process_accuracy"), ("shortcut", "shortcut", "process_accuracy"),
    ("balanced answer", "balanced", "answer_accuracy"), ("balanced process", "balanced", "process_accuracy"),
    ("hard answer", "hard", "answer_accuracy"), ("hard process", "hard", "process_accuracy")]


def accuracy_cells(summaries: list[dict]) -> list[str]:
    return [spread([(s["families"][family] if family else s)[name] for s in summaries]) for _, family, name in COLUMNS]


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def summaries_of(results: dict[str, list[Path]]) -> dict[str, list[dict]]:
    return {label: [json.loads((run / "summary.json").read_text()) for run in runs] for label, runs in results.items()}


def make_tables(results: dict[str, list[Path]], paper: tuple[str, dict[str, str]] | None = None) -> str:
    """Markdown: one table at T = 1, beside the paper's numbers if it has any, and one greedy."""
    summaries = summaries_of(results)
    first, out = next(iter(summaries.values())), []
    for title, start, end in (("T = 1", "start", "end"), ("greedy", "start_greedy", "end_greedy")):
        rows = [[title, *(c[0] for c in COLUMNS), "steps", "k tokens"],
                ["start", *accuracy_cells([s[start] for s in first]), "0", ""]]
        rows += [[label, *accuracy_cells([s[end] for s in runs]), str(runs[0]["steps"]),
                  f"{statistics.mean(s['tokens_sampled'] for s in runs) / 1000:.0f}"]
                 for label, runs in summaries.items()]
        if title == "T = 1" and paper:
            rows = [[*row, paper[1].get(row[0], "") if i else paper[0]] for i, row in enumerate(rows)]
        out.append(markdown(rows))
    return "\n\n".join(out)


def panels(count: int, **more):
    """A figure with `count` axes in one row, and a function that saves it."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(4 * count, 3.6), **more)

    def save(target: Path, note: str = "band: range over seeds", legend: int = 4) -> None:
        for axis in axes:
            axis.grid(alpha=0.25)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
        entries = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels())}
        figure.legend(entries.values(), entries, loc="lower center", ncol=legend, frameon=False, title=note,
                      title_fontsize=9)
        figure.tight_layout(rect=(0, 0.06 + 0.07 * math.ceil(len(entries) / legend), 1, 1))
        figure.savefig(target, dpi=150)
        print(f"figure: {target}")
    return axes, save


def curve(axis, points: list[dict[int, float]], label: str, **style) -> None:
    """Mean over seeds, and their range; `points`: step -> value of each seed."""
    steps = sorted(set.intersection(*map(set, points)))
    values = [[of_seed[step] for of_seed in points] for step in steps]
    line, = axis.plot(steps, [statistics.mean(v) for v in values], label=label, **style)
    axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=line.get_color(),
                      linewidth=0)


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def learning_curves(axis, results: dict[str, list[Path]], family: str) -> None:
    """Process accuracy over steps at T = 1 of one family."""
    for label, runs in results.items():
        curve(axis, [{row["step"]: row["eval"]["families"][family]["process_accuracy"] for row in metrics_of(run)
                      if row.get("eval")} for run in runs], label, linewidth=2.6 if label == "ContextRL" else 1.4)
    axis.set(title=family, xlabel="step", ylim=(-0.02, 1.02))


def make_figure(results: dict[str, list[Path]], target: Path) -> None:
    axes, save = panels(3, sharey=True)
    for axis, family in zip(axes, ("ordinary", "balanced", "hard")):
        learning_curves(axis, results, family)
    axes[0].set_ylabel("process accuracy, T = 1")
    save(target)


# --------------------------------------------------------------------------- Table 3: false positives in the data

def record_samples(seeds: list[int], folder: Path, jobs: int) -> None:
    """Eight samples of the start policy for each training query, then a data file for each share of false positives.

    The files hold the SAME queries, one response each: in `share` of the rows a sound response is replaced by a false
    positive (right answer, wrong reasoning) of the same query.  So nothing differs but the reasoning, and with it the
    length: most false positives of this policy are guesses without steps.
    """
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda seed: run_one("samples of the start policy", "--method grpo --rollout_only --steps 75 "
                                           "--eval_every 0", seed, folder), seeds))
    for seed in seeds:
        run = folder / run_name("--method grpo --rollout_only --steps 75 --eval_every 0", seed)
        link = folder / f"recording-seed{seed}"
        link.mkdir(exist_ok=True)
        sound, false = {}, {}
        for row in map(json.loads, (run / "rollouts.jsonl").open()):
            for member in row["stage1"]:
                if member["verdict"] == "judged" and member["answer_right"]:
                    (sound if member["correct"] else false).setdefault(row["query"], (row, member["text"]))
        both = sorted(sound.keys() & false.keys())
        random.Random(seed).shuffle(both)
        for share in (0, 10, 20, 30):
            chosen = both[:round(share / 100 * len(sound))]
            if len(chosen) < round(share / 100 * len(sound)):
                raise RuntimeError(f"seed {seed}: {len(both)} queries have both kinds, too few for {share} %")
            rows = [{"id": name, "images": [f"../{run.name}/{image}" for image in row["images"]],
                     "question": row["question"], "solution": text, "answer": row["answer"], "family": row["family"]}
                    for name, (row, text) in (sound | {name: false[name] for name in chosen}).items()]
            (link / f"false-{share}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        families = {name: row["family"] for name, (row, _) in sound.items()}
        print(f"seed {seed}: {len(sound)} queries have a sound response ({counted(families.values())}), {len(both)} of "
              f"them a false positive too; at 30 %, {len(chosen)} are replaced "
              f"({counted(map(families.get, chosen))})")


def counted(names) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(Counter(names).items()))


def points_lost(results: dict[str, list[Path]], end: str, family: str) -> list[list[float]]:
    """Points of process accuracy against the mean of the first row (all sound): one list over seeds for each row."""
    values = [[100 * s[end]["families"][family]["process_accuracy"] for s in runs]
              for runs in summaries_of(results).values()]
    return [[value - statistics.mean(values[0]) for value in row] for row in values]


def injection_figure(results: dict[str, list[Path]], target: Path) -> None:
    """What false positives cost against all sound: here by family (hard ones have no sound response, so they are not in
    the data), and in the paper by benchmark.  The panels have different scales."""
    (*here, there), save = panels(3)
    shares = (0, 10, 20, 30)
    for axis, end, how in zip(here, ("end", "end_greedy"), ("T = 1", "greedy")):
        for family in ("ordinary", "shortcut", "balanced"):
            lost = points_lost(results, end, family)
            axis.errorbar(shares, [statistics.mean(v) for v in lost], [statistics.stdev(v) if len(v) > 1 else 0 for v in
                          lost], marker="o", markersize=4, capsize=3, label=family)
        axis.set(title=f"here: process accuracy, {how}", ylim=(-60, 5))
    names = PAPER["injection"][0].removeprefix("paper: ").split(" / ")
    numbers = [[float(x) for x in PAPER["injection"][1][label].split(" / ")] for label in results]
    for i, name in enumerate(names):
        there.plot(shares, [row[i] - numbers[0][i] for row in numbers], "--", marker=".", color=f"C{i + 3}",
                   label=f"paper: {name}")
    there.set(title="paper: benchmark scores")
    for axis in (*here, there):
        axis.set(xlabel="false positives in the data, %", xticks=shares)
    here[0].set_ylabel("points against all sound")
    save(target, note="bars: one standard deviation over seeds; mind the scales")


# ------------------------------------------------------------------------------------ section 4.4: information gain

# Measure -> the paper's number, in per cent; * is derived from its numbers.  The last line adds a share of responses to
# a share of queries, as the paper's text does.  (Its appendix has a difference of false-positive rates as first term.)
GAIN = {
    "stage-1 responses judged negative": "51.12",
    "of all responses: answer right, reasoning wrong": "8.9",
    "of the negatives: answer right, reasoning wrong": "17.4*",
    "of the right answers: reasoning wrong": "15.5*",
    "queries with a positive from stage 2 only": "8.56",
    "information gain (second + fifth line)": "about 17",
}


def gains(rows: list[dict]) -> dict[str, float]:
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


def gain_table(results: dict[str, list[Path]], epoch: int = 75) -> str:
    """Over the first epoch of training, as in the paper, and over the whole run."""
    rows = [["share, %", "first epoch", "whole run", "paper (one epoch)"]]
    of_runs = [[json.loads(line) for line in (run / "rollouts.jsonl").open()] for run in results["ContextRL"]]
    found = [[gains([row for row in rows_ if row["step"] <= last]) for rows_ in of_runs] for last in (epoch, math.inf)]
    for name, paper in GAIN.items():
        cells = [f"{statistics.mean(v):.1f} ± " + (f"{statistics.stdev(v):.1f}" if len(v) > 1 else "?")
                 for v in ([of_seed[name] for of_seed in seeds] for seeds in found)]
        rows.append([name, *cells, paper])
    return markdown(rows)


def gain_figure(results: dict[str, list[Path]], target: Path) -> None:
    """The two terms over training, means over 5 steps; dashed: the paper's mean over its epoch."""
    axes, save = panels(2, sharex=True)
    names = [list(GAIN)[i] for i in (1, 4)]
    for axis, name in zip(axes, names):
        points = []
        for run in results["ContextRL"]:
            by_step: dict[int, list] = {}
            for row in map(json.loads, (run / "rollouts.jsonl").open()):
                by_step.setdefault(math.ceil(row["step"] / 5) * 5, []).append(row)
            points.append({step: gains(rows)[name] for step, rows in by_step.items()})
        curve(axis, points, "built-in world (one epoch is 75 steps)")
        axis.axhline(float(GAIN[name]), linestyle="--", color="0.4", label="paper, mean over its epoch")
        axis.set(title=name, xlabel="step", ylim=(0, None))
        axis.title.set_fontsize(10)
    axes[0].set_ylabel("%")
    save(target)


# --------------------------------------------------------------------------------- context pairs (arXiv 2606.17053)

def probe(model: Path, out: Path) -> dict:
    """Selection accuracy on held-out context pairs, measured once."""
    if not out.exists():
        start(["eval.py", "probe", "--model", str(model), "--out", str(out)], f"probe of {model}")
    return json.loads(out.read_text())


def context_table(results: dict[str, list[Path]], folder: Path) -> str:
    """Task, selection and forgetting: what ordinary and balanced questions lose against the start, greedy."""
    summaries, at_start = summaries_of(results), probe(HERE / "assets/toy", folder / "probe-start.json")
    first = next(iter(summaries.values()))[0]

    def cells(ends: list[tuple[dict, dict]], probes: list[dict]) -> list[str]:
        def lost(family: str) -> str:
            before = first["start_greedy"]["families"][family]["process_accuracy"]
            return spread([before - greedy["families"][family]["process_accuracy"] for _, greedy in ends])

        return [spread([end["process_accuracy"] for end, _ in ends]),
                spread([greedy["process_accuracy"] for _, greedy in ends]),
                spread([end["families"]["hard"]["process_accuracy"] for end, _ in ends]),
                spread([p["accuracy"] for p in probes]), spread([p["right_in_both_orders"] for p in probes]),
                spread([p["bias"] for p in probes]), lost("ordinary"), lost("balanced")]

    rows = [["", "process, T = 1", "process, greedy", "hard, T = 1", "selection (chance .50)",
             "right in both orders (.25)", "position bias", "lost: ordinary", "lost: balanced"],
            ["start", *cells([(s["start"], s["start_greedy"]) for s in summaries["GRPO"]], [at_start])]]
    for label, runs in results.items():
        probes = [probe(sorted((run / "checkpoints").glob("step-*"))[-1], run / "probe.json") for run in runs]
        rows.append([label, *cells([(s["end"], s["end_greedy"]) for s in summaries[label]], probes)])
    return markdown(rows)


def context_figure(results: dict[str, list[Path]], target: Path) -> None:
    (selection, *tasks), save = panels(3, sharey=True)
    for i, (label, runs) in enumerate(results.items()):
        points = [{row["step"]: row["context/accuracy"] for row in metrics_of(run) if "context/accuracy" in row}
                  for run in runs]
        if all(points):
            smooth = [{step: statistics.mean(p[s] for s in range(max(1, step - 4), step + 1)) for step in p}
                      for p in points]
            curve(selection, smooth, label, color=f"C{i}", linewidth=1.4)
    selection.axhline(0.5, linestyle="--", color="0.4")
    selection.set(title="selection accuracy in training", xlabel="step", ylim=(-0.02, 1.02))
    for axis, family in zip(tasks, ("ordinary", "hard")):
        learning_curves(axis, results, family)
    save(target, legend=3)


EXPERIMENTS = {"methods": METHODS, "ablations": ABLATIONS, "trap": TRAP, "injection": INJECTION,
               "information_gain": {"ContextRL": METHODS["ContextRL"]}, "context": CONTEXT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--folder", type=Path, default=HERE / "runs" / "experiments")
    args = parser.parse_args()
    if args.jobs < 1 or len(set(args.seeds)) < len(args.seeds):
        parser.error("--jobs must be at least 1, and no seed may stand twice")
    try:
        run_experiment(args)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"error: {error}")


def run_experiment(args: argparse.Namespace) -> None:
    name, folder, target = args.experiment, args.folder.resolve(), HERE / "assets" / f"{args.experiment}.png"
    if name == "injection":
        record_samples(args.seeds, folder, args.jobs)
    results = run_all(EXPERIMENTS[name], args.seeds, folder, args.jobs)
    print(f"\nseeds {', '.join(map(str, args.seeds))}: mean ± standard deviation over seeds"
          + (" (95 % interval of the mean over seeds: ± 2.5 of them)" if len(args.seeds) == 3 else "") + "\n")
    if name == "information_gain":
        print(gain_table(results) + "\n")
        gain_figure(results, target)
    elif name == "context":
        print(context_table(results, folder) + "\n")
        context_figure(results, target)
    else:
        print(make_tables(results, PAPER.get(name)) + "\n")
        (injection_figure if name == "injection" else make_figure)(results, target)


if __name__ == "__main__":
    main()
