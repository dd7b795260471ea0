"""Remakes the tables and figures of RESULTS.md on the built-in world, by starting programs as a user would.

    python -m experiments.run methods           SFT, GRPO, DAPO, ContextRL (Table 1)
    python -m experiments.run ablations         the paper's Table 4
    python -m experiments.run trap              rolled-back samples under the wrong old log-prob
    python -m experiments.run injection         SFT on samples with 0 to 30 % false positives (Table 3)
    python -m experiments.run information_gain  what solution-aware verdicts and stage 2 add (section 4.4)
    python -m experiments.run context           the loss of context pairs (arXiv 2606.17053)

Each prints its table and writes figures/<name>.png.  (Table 2: python -m experiments.verifier.)  Every row is
run with several seeds.  A seed changes the order of the queries and every sample, not the warm start, the
training pool or the held-out pictures.  The default seeds took no part in choosing any setting.

Finished runs under --folder are not run again; a table is made from what their summary.json says.  Several
experiments may share --folder at the same time: of what both need, one makes it and the other waits.
"""

import argparse
import fcntl
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from data import DataError
from experiments.figures import FIGURES, context_figure, gain_figure, injection_figure, learning_figure
from experiments.tables import PAPER, Runs, accuracy_tables, context_table, gain_table
from tools.files import read_json, read_rows, write_rows
from tools.programs import Stopped, one_line_errors

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 1800          # seconds for one run

# Row of a table -> arguments of contextrl.py; "-m ..." is another program.
METHODS = {
    "SFT, teacher's references": "--method sft --queries_per_step 64 --learning_rate 3e-4",
    "SFT, teacher's, 3 x steps": "--method sft --queries_per_step 64 --learning_rate 3e-4 --steps 360",
    "SFT, canonical (control)": "--method sft --queries_per_step 64 --learning_rate 3e-4 "
                                "--data {folder}/canonical/train.jsonl "
                                "--eval_data {folder}/canonical/heldout.jsonl",
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
TRAP = {"ContextRL": "--method contextrl", "stage-2 old log-prob": "-m experiments.trap --method contextrl"}
SHARES = (0, 10, 20, 30)                         # of false positives, %
INJECTION = {
    f"{share} % false" if share else "all sound":
    "--method sft --queries_per_step 64 --steps 60 --eval_every 0 "
    f"--data {{folder}}/recording-seed{{seed}}/false-{share}.jsonl "
    "--eval_data {folder}/canonical/heldout.jsonl" for share in SHARES}
CONTEXT = {
    "GRPO": "--method grpo",
    "GRPO + pairs as data": "--method grpo --data {folder}/pairs-as-queries-seed{seed}/train.jsonl "
                            "--eval_data {folder}/half/heldout.jsonl",
    "GRPO + context loss": "--method grpo --context_pairs toy --context_weight 4 --context_batch 64",
    "ContextRL": "--method contextrl",
    "ContextRL + context loss": "--method contextrl --context_pairs toy --context_weight 4 "
                                "--context_batch 64",
}
EXPERIMENTS = {"methods": METHODS, "ablations": ABLATIONS, "trap": TRAP, "injection": INJECTION,
               "information_gain": {"ContextRL": METHODS["ContextRL"]}, "context": CONTEXT}


# ------------------------------------------------------------------------------------------------------- runs

def start_program(arguments: list, name: str) -> None:
    """`python ARGUMENTS` at the root of the repository, on one thread."""
    command = [sys.executable, *map(str, arguments)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    except subprocess.TimeoutExpired:
        raise Stopped(f"{name}: not finished in {TIMEOUT} s") from None
    if done.returncode:
        said = (done.stderr.strip() or "nothing on stderr").splitlines()
        kind = DataError if done.returncode == 2 else Stopped
        raise kind(f"{name}: exit {done.returncode}: {said[-1]}")


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """One thread of one process at a time makes `target`; the lock goes when its holder does."""
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_name(arguments: str, seed: int) -> str:
    """Folder of a run: the same settings in two tables are one run.

    >>> run_name("--method grpo --verifier_context answer", 1)
    'grpo-verifier_context-answer-seed1'
    """
    for left_out in ("{folder}/", "-seed{seed}", "--method ", "--", "-m "):
        arguments = arguments.replace(left_out, "")
    arguments = arguments.replace("/", "-")
    return "-".join([*arguments.split(), f"seed{seed}"])


def run_one(label: str, arguments: str, seed: int, folder: Path) -> Path:
    """One finished run folder; resumes what was interrupted."""
    target = folder / run_name(arguments, seed)
    words = arguments.format(folder=folder, seed=seed).split()
    program, words = (words[:2], words[2:]) if words[0] == "-m" else (["contextrl.py"], words)
    with alone(target):
        if not (target / "summary.json").exists():
            start_program([*program, "--eval_every", "30", *words, "--seed", seed, "--output_dir", target,
                           *(["--resume"] if target.exists() else [])], f"{label}, seed {seed}")
            print(f"done: {label}, seed {seed}", flush=True)
    return target


def run_all(rows: dict[str, str], seeds: list[int], folder: Path, jobs: int) -> Runs:
    with ThreadPoolExecutor(jobs) as pool:
        futures = {label: [pool.submit(run_one, label, arguments, seed, folder) for seed in seeds]
                   for label, arguments in rows.items()}
        return {label: [f.result() for f in runs] for label, runs in futures.items()}


def run_probe_once(model: Path | str, out: Path) -> dict:
    """Selection accuracy on held-out context pairs; "" is the start policy."""
    if not out.exists():
        start_program(["-m", "context_pairs.probe", "--model", model, "--out", out], f"probe for {out}")
    return read_json(out)


# ------------------------------------------------------------------------------------------------------- data

def make_data(rows: dict[str, str], seeds: list[int], folder: Path) -> None:
    """Data files that the rows name and that are no samples."""
    def once(name: str, *command) -> None:
        beside = folder / f".{name}.partial"
        with alone(folder / name):
            if not (folder / name).exists():
                shutil.rmtree(beside, ignore_errors=True)                          # of a killed process
                start_program([str(word).format(beside) for word in command], name)
                beside.rename(folder / name)

    folder.mkdir(parents=True, exist_ok=True)
    named = " ".join(rows.values())
    if "canonical" in named:
        once("canonical", "-m", "toy", "data", "{}", "--references", "canonical")
    if "pairs-as-queries" in named:
        once("half", "-m", "toy", "data", "{}", "--references", "half")
        for seed in seeds:
            once(f"pairs-as-queries-seed{seed}", "-m", "experiments.pairs_as_queries",
                 folder / "half/pairs.jsonl", "{}/train.jsonl", "--with", folder / "half/train.jsonl",
                 "--seed", seed)


def record_samples(seeds: list[int], folder: Path, jobs: int) -> None:
    """Eight samples of the start policy for each training query, then a data file for each share of false
    positives.

    The files hold the SAME queries, one response each: in `share` of the rows a sound response is replaced by
    a false positive (right answer, wrong reasoning) of the same query.  So nothing differs but the reasoning,
    and with it the length: most false positives of this policy are guesses without steps.
    """
    recording = "--method grpo --rollout_only --steps 75 --eval_every 0"
    with ThreadPoolExecutor(jobs) as pool:
        runs = list(pool.map(lambda seed: run_one("samples of the start", recording, seed, folder), seeds))
    for seed, run in zip(seeds, runs):
        target = folder / f"recording-seed{seed}"
        target.mkdir(exist_ok=True)
        sound, false = {}, {}
        for row in read_rows(run / "rollouts.jsonl"):
            for member in row["stage1"]:
                if member["verdict"] == "judged" and member["answer_right"]:
                    (sound if member["correct"] else false).setdefault(row["query"], (row, member["text"]))
        both = sorted(sound.keys() & false.keys())
        random.Random(seed).shuffle(both)
        for share in SHARES:
            replaced = both[:round(share / 100 * len(sound))]
            if len(replaced) < round(share / 100 * len(sound)):
                raise DataError(f"seed {seed}: {len(both)} queries have both kinds, too few for {share} %")
            chosen = sound | {name: false[name] for name in replaced}
            write_rows(target / f"false-{share}.jsonl", (
                {"id": name, "images": [f"../{run.name}/{image}" for image in row["images"]],
                 "question": row["question"], "solution": text, "answer": row["answer"],
                 "family": row["family"]}
                for name, (row, text) in chosen.items()))
        families = {name: row["family"] for name, (row, _) in sound.items()}
        print(f"seed {seed}: {len(sound)} queries have a sound response ({count_text(families.values())}), "
              f"{len(both)} of them a false positive too; at 30 %, {len(replaced)} are replaced "
              f"({count_text(families[name] for name in replaced)})")


def count_text(names: Iterable[str]) -> str:
    """
    >>> count_text(["hard", "easy", "hard"])
    '1 easy, 2 hard'
    """
    return ", ".join(f"{n} {name}" for name, n in sorted(Counter(names).items()))


# ------------------------------------------------------------------------------------------------------- main

def run_experiment(name: str, seeds: list[int], folder: Path, jobs: int) -> None:
    rows, target = EXPERIMENTS[name], FIGURES / f"{name}.png"
    make_data(rows, seeds, folder)
    if name == "injection":
        record_samples(seeds, folder, jobs)
    results = run_all(rows, seeds, folder, jobs)
    print(f"\nseeds {', '.join(map(str, seeds))}: mean ± standard deviation over seeds"
          + (" (95 % interval of the mean over seeds: ± 2.5 of them)" if len(seeds) == 3 else "") + "\n")
    if name == "information_gain":
        print(gain_table(results) + "\n")
        gain_figure(results, target)
    elif name == "context":
        probes = {label: [run_probe_once(max((run / "checkpoints").glob("step-*")), run / "probe.json")
                          for run in runs] for label, runs in results.items()}
        print(context_table(results, run_probe_once("", folder / "probe-start.json"), probes) + "\n")
        context_figure(results, target)
    else:
        print(accuracy_tables(results, PAPER.get(name)) + "\n")
        (injection_figure if name == "injection" else learning_figure)(results, target)


def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "experiments")
    args = parser.parse_args()
    if args.jobs < 1 or len(set(args.seeds)) < len(args.seeds):
        parser.error("--jobs must be at least 1, and no seed may stand twice")
    with one_line_errors("; the same command goes on"):
        run_experiment(args.experiment, args.seeds, args.folder.resolve(), args.jobs)


if __name__ == "__main__":
    main()
