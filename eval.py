"""Measures a policy on held-out queries: answers, reasoning, and the gap between the two.

    answer accuracy         the final answer matches (rule check)
    process accuracy        the verifier, with the full solution, finds the reasoning right as well
    false-positive share    of the responses with the right answer, those whose reasoning is wrong: what an
                            answer-only reward would have paid for

    python eval.py --model RUN/checkpoints/step-000120 [--data held.jsonl] [--greedy]
    python eval.py run --model M --output_dir OUT       the eleven benchmarks of the paper (scoring.py)
    python eval.py probe --model M [--pairs FILE]       context pairs: is the right one chosen, does order matter?
    python eval.py verifier                             a verifier's own errors at three levels of context, in the
                                                        built-in world, or
    python eval.py verifier --responses FILE --verifier http://HOST:8000/v1

A row of that FILE is a row of a data file (data.py) + "response" + "sound": is all of it right, reasoning and answer?
Of those that are not, the ones with the reference's final answer (rule check) are the false positives.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import DataError, Processor, Query, json_lines, query_of_line
from reward import CONTEXTS, JudgeError, VerdictStatus, Verifier, VerifierUnreliable, answers_match, unambiguous
from sampler import Request, SampleStatus, by_leader, seed_of


def measure(engine, processor: Processor, queries: list[Query], verifier, temperature: float, seed_key: tuple,
            quiet: bool = True) -> list[dict]:
    """One sample for each query of this rank's share, judged: one record each."""
    mine, records = queries[engine.replica::engine.replicas], []
    for start in tqdm(range(0, len(mine), 256), desc="evaluate", leave=False, disable=quiet):
        part = mine[start:start + 256]
        samples = [s[0] for s in engine.generate(
            [Request(processor.prompt(q), [seed_of(*seed_key, q.id)]) for q in part], temperature=temperature)]
        verdicts = by_leader(engine, lambda: verifier.judge(part, [s.text for s in samples]))
        for query, sample, verdict in zip(part, samples, verdicts, strict=True):
            records.append({"id": query.id, "family": query.family, "text": sample.text,
                            "answer": answers_match(query, sample.text), "process": verdict.reward,
                            "failed": verdict.status is VerdictStatus.FAILED,
                            "truncated": sample.status is SampleStatus.TRUNCATED, "tokens": len(sample.ids)})
    return records


def accuracies(records: list[dict]) -> dict:
    """Shares over one set of records; a record whose judge failed counts in none of them."""
    judged = [r for r in records if not r["failed"]]
    right = [r for r in judged if r["answer"]]
    wrong_process = [r for r in right if not r["process"]]
    return {"process_accuracy": sum(r["process"] for r in judged) / max(len(judged), 1),
            "answer_accuracy": len(right) / max(len(judged), 1),
            "false_positive_share": len(wrong_process) / max(len(right), 1)}


def summarise(records: list[dict], overall: set[str] | None = None) -> dict:
    """-> the three accuracies overall and per family.  `overall`: the families that count in the former (all)."""
    families = sorted({r["family"] for r in records})
    chosen = [r for r in records if overall is None or r["family"] in overall]
    return {**accuracies(chosen), "queries": len(records), "failed_verdicts": sum(r["failed"] for r in records),
            "truncated_share": sum(r["truncated"] for r in records) / max(len(records), 1),
            "families": {f: accuracies([r for r in records if r["family"] == f]) for f in families}}


def table(columns: dict[str, dict]) -> str:
    """Summaries side by side, one line per family: answer / process accuracy."""
    families = ["all", *next(iter(columns.values()))["families"]]
    lines = [" " * 14 + "".join(f"{name:>24s}" for name in columns),
             "family".ljust(14) + f"{'answer  process   FP':>24s}" * len(columns)]
    for family in families:
        line = family.ljust(14)
        for summary in columns.values():
            s = summary if family == "all" else summary["families"][family]
            line += f"{s['answer_accuracy']:>10.2f}{s['process_accuracy']:>9.2f}{s['false_positive_share']:>5.2f}"
        lines.append(line)
    return "\n".join(lines)


# ----------------------------------------------------------------------- context pairs: which context is chosen?

def probe(policy, pairs: list, batch_size: int = 16) -> list[dict]:
    """Every pair in both orders (one whose order is fixed in that one): a record of the margin between the right
    letter and the wrong one, and of the letter chosen.  No sampling: the two letters' log-probs are compared."""
    from pairs import as_query, turned
    from policy import choice

    import torch

    asked = [p for pair in pairs for p in ([pair] if pair.kind == "prompt" else [pair, turned(pair)])]
    ids, records = policy.processor.option_ids(), []
    for start in tqdm(range(0, len(asked), batch_size), desc="probe", leave=False, disable=None):
        part = asked[start:start + batch_size]
        rows = [choice(policy.processor.prompt(as_query(pair)), ids[pair.letter], ids[turned(pair).letter])
                for pair in part]
        with torch.no_grad():
            right, wrong = policy.margins(rows)
        for pair, margin in zip(part, (right - wrong).tolist(), strict=True):
            records.append({"id": pair.id, "letter": pair.letter, "margin": margin,
                            "chosen": (pair if margin > 0 else turned(pair)).letter})
    return records


def selection(records: list[dict]) -> dict:
    """Accuracy with a 95 % interval over pairs, the same for each place of the right context, and position bias: half
    the difference of the two, so that letters need not be balanced."""
    by_pair: dict[str, list] = {}
    for record in records:
        by_pair.setdefault(record["id"], []).append(record["letter"] == record["chosen"])
    places = {letter: [r["chosen"] == letter for r in records if r["letter"] == letter] for letter in "AB"}
    both = [orders for orders in by_pair.values() if len(orders) == 2]
    return {"pairs": len(by_pair), "pairs_in_both_orders": len(both),
            "accuracy": float(np.mean([np.mean(orders) for orders in by_pair.values()])),
            "interval": interval(list(by_pair.values())),
            **{f"accuracy_{letter}": float(np.mean(hits)) if hits else None for letter, hits in places.items()},
            "right_in_both_orders": float(np.mean([all(orders) for orders in both])) if both else None,
            "bias": float(np.mean(places["A"]) - np.mean(places["B"])) / 2 if all(places.values()) else None,
            "margin": float(np.mean([r["margin"] for r in records]))}


def interval(clusters: list[list], resamples: int = 2000) -> list[float]:
    """95 % bootstrap interval of a share; whole clusters are drawn, because what is inside belongs together.  Of a
    share of 0 or 1, where nothing varies, the exact interval of that many clusters."""
    rng, n = np.random.default_rng(0), len(clusters)
    sums, sizes = np.array([[sum(c), len(c)] for c in clusters], dtype=float).T
    if sums.sum() in (0, sizes.sum()):
        reach = 1 - 0.025 ** (1 / n)
        return [0.0, reach] if sums.sum() == 0 else [1 - reach, 1.0]
    draws = (rng.integers(0, n, n) for _ in range(resamples))
    return [float(x) for x in np.percentile([sums[d].sum() / sizes[d].sum() for d in draws], [2.5, 97.5])]


def run_probe(argv: list[str]) -> None:
    from transformers.utils import logging

    parser = argparse.ArgumentParser(prog="eval.py probe", description="Selection accuracy on context pairs.")
    parser.add_argument("--model", default="assets/toy")
    parser.add_argument("--pairs", default="toy", help="as pairs.py reads them; default: the built-in world's held-out")
    parser.add_argument("--max_pixels", type=int, default=3_000_000)
    parser.add_argument("--max_context", type=int, default=32768, help="longest text of a pair, in tokens")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers and one record per question")
    args = parser.parse_args(argv)
    if min(args.batch_size, args.max_pixels, args.max_context) < 1:
        raise DataError("--batch_size, --max_pixels and --max_context must be at least 1")
    if args.out and args.out.is_dir():
        raise DataError(f"--out {args.out} is a folder")
    import toy
    from pairs import load_pairs, usable
    from policy import Policy

    logging.disable_progress_bar()
    pairs = toy.heldout_pairs() if args.pairs == "toy" else load_pairs(args.pairs)
    try:
        policy = Policy(args.model, Processor(args.model, args.max_pixels), reference=False, device=device())
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise DataError(f"cannot load model {args.model}: {(str(error).splitlines() or [''])[0]}") from None
    records = probe(policy, usable(pairs, policy.processor, args.max_context), args.batch_size)
    found = selection(records)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found | {"model": args.model, "records": records}, indent=2))
    low, high = found["interval"]

    def show(name: str) -> str:
        return "–" if found[name] is None else f"{found[name]:.3f}"
    print(f"selection accuracy {found['accuracy']:.3f}  [{low:.3f}, {high:.3f}]  ({found['pairs']} pairs, "
          f"{found['pairs_in_both_orders']} of them in both orders; chance 0.5)\n"
          f"  right context is A {show('accuracy_A')}, is B {show('accuracy_B')}; right in both orders "
          f"{show('right_in_both_orders')} (chance 0.25)\n"
          f"  position bias {'–' if found['bias'] is None else format(found['bias'], '+.3f')} (+0.5: always A, -0.5: "
          f"always B); mean margin {found['margin']:+.2f}")


# ------------------------------------------------------------------------------------ the verifier's own errors

PAPER_FLAGGED = {"paper, 32B": (46.25, 50.03, 81.98), "paper, 235B": (51.25, 54.60, 82.12)}      # Table 2


def load_labelled(path: Path) -> list[tuple[Query, str, bool]]:
    """-> (query, response, sound).  A bad row is skipped, counted and named; none at all is an error."""
    items, bad = [], []
    for where, line in json_lines(path):
        try:
            try:
                row = json.loads(line, object_pairs_hook=unambiguous)
                response, sound = row.pop("response"), row.pop("sound")
                json.dumps(response, ensure_ascii=False).encode()                   # half a surrogate pair
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                missing = f"field {error} is missing" if isinstance(error, KeyError) else "not a JSON object"
                raise DataError(missing) from None
            if not isinstance(response, str) or not isinstance(sound, bool):
                raise DataError("'response' must be a text and 'sound' true or false")
            items.append((query_of_line(json.dumps(row).encode(), path.parent), response, sound))
        except DataError as error:
            bad.append(f"{where}: {error}")
    if not items:
        raise DataError(f"no labelled response in {path}" + (f", the first bad row: {bad[0]}" if bad else ""))
    if bad:
        print(*(f"skipped {problem}" for problem in bad[:10]), f"{len(bad)} bad rows skipped, {len(items)} read",
              sep="\n", file=sys.stderr)
    return items


def toy_labelled(models: list[str], seeds: list[int], queries: int, samples: int) -> list[tuple[Query, str, bool]]:
    """Responses of checkpoints to queries of the built-in world, labelled by its exact verifier, one of each text; and
    a worked solution of each query: the warm start has no sound response to a hard one."""
    import toy
    from sampler import stage1

    asked = toy.heldout_queries(queries // 4)
    exact, worked = toy.ToyVerifier("solution"), {q.id: toy.solve(q.facts) for q in asked}
    items = {(q.id, worked[q.id]): (q, worked[q.id], True) for q in asked}
    for model in models:
        engine, processor = load_engine(model)
        prompts = [processor.prompt(q) for q in asked]
        for seed in seeds:
            for query, drawn in zip(asked, stage1(engine, prompts, [q.id for q in asked], samples, (seed, "verifier"))):
                for sample in drawn:
                    items[query.id, sample.text] = (query, sample.text, exact.judge_one(query, sample.text).correct)
    return list(items.values())


def verifier_errors(verifier, items: list[tuple[Query, str, bool]]) -> dict:
    """What a verifier does with false positives (right answer, wrong reasoning), sound responses and wrong answers."""
    verdicts = verifier.judge([query for query, _, _ in items], [text for _, text, _ in items])
    kinds: dict[str, dict[str, list]] = {"false positives": {}, "sound": {}, "wrong answers": {}}
    families: dict[str, dict[str, list]] = {kind: {} for kind in kinds}
    failed = Counter()
    for (query, text, sound), verdict in zip(items, verdicts, strict=True):
        kind = "sound" if sound else "false positives" if answers_match(query, text) else "wrong answers"
        if verdict.status is VerdictStatus.FAILED:
            failed[kind] += 1
        else:
            kinds[kind].setdefault(query.id, []).append(not verdict.correct)
            families[kind].setdefault(query.family, []).append(not verdict.correct)
    return {kind: {"families": families[kind], "n": sum(map(len, by_query.values())), "failed": failed[kind],
                   "rejected": 100 * float(np.mean([x for c in by_query.values() for x in c])) if by_query else None,
                   "interval": [100 * x for x in interval(list(by_query.values()))] if by_query else None}
            for kind, by_query in kinds.items()}


def verifier_table(found: dict[str, dict[str, dict]]) -> str:
    def cell(part: dict) -> str:
        return ("{:.1f} [{:.1f}, {:.1f}] of {}".format(part["rejected"], *part["interval"], part["n"]) if part["n"]
                else "–")

    lines = ["| verifier | is told | false positives flagged, % | good reasoning rejected, % "
             "| wrong answers accepted, % | failed verdicts of these |", "|---|---|---|---|---|---|"]
    for name, levels in found.items():
        for context, kinds in levels.items():
            wrong = kinds["wrong answers"]
            accepted = dict(wrong, rejected=None if wrong["rejected"] is None else 100 - wrong["rejected"],
                            interval=wrong["interval"] and [100 - x for x in reversed(wrong["interval"])])
            cells = [name, context, cell(kinds["false positives"]), cell(kinds["sound"]), cell(accepted),
                     ", ".join(str(kind["failed"]) for kind in kinds.values())]
            lines.append(f"| {' | '.join(cells)} |")
    for name, flagged in PAPER_FLAGGED.items():
        lines += [f"| {name} | {context} | {value:.2f} | not measured | not measured | |"
                  for context, value in zip(CONTEXTS, flagged)]
    return "\n".join(lines)


def family_table(found: dict[str, dict[str, dict]]) -> str:
    """The same by family, as counts: where is a verifier wrong?"""
    names = sorted({f for levels in found.values() for kinds in levels.values() for k in kinds.values()
                    for f in k["families"]})
    lines = ["| verifier | is told | " + " | ".join(f"{name}: flagged, rejected" for name in names) + " |",
             "|---|---|" + "---|" * len(names)]
    for verifier, levels in found.items():
        for context, kinds in levels.items():
            counts = [[kinds[kind]["families"].get(name, []) for kind in ("false positives", "sound")]
                      for name in names]
            cells = [", ".join(f"{sum(of_kind)} of {len(of_kind)}" for of_kind in pair) for pair in counts]
            lines.append(f"| {verifier} | {context} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verifier_figure(found: dict[str, dict[str, dict]], target: Path) -> None:
    """Two panels of bars, a group for each level of context; the paper has the left one only."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), sharey=True, width_ratios=[1 + 0.4 * bool(found), 1])
    for axis, kind in zip(axes, ("false positives", "sound")):
        bars = {name: [(levels[c][kind]["rejected"], levels[c][kind]["interval"]) if c in levels else (None, None)
                       for c in CONTEXTS] for name, levels in found.items()}
        if kind == "false positives":
            bars |= {name: [(value, None) for value in flagged] for name, flagged in PAPER_FLAGGED.items()}
        width = 0.8 / len(bars)
        for i, (name, values) in enumerate(bars.items()):
            for c, (value, span) in enumerate(values):
                if value is not None:
                    error = [[max(value - span[0], 0)], [max(span[1] - value, 0)]] if span else None
                    place = c + (i - (len(bars) - 1) / 2) * width
                    axis.bar(place, value, 0.92 * width, yerr=error, capsize=2, label=name if c == 0 else None,
                             color=f"C{i}" if name in found else ("0.55", "0.75")[i % 2])
                    axis.text(place, (span[1] if span else value) + 1.5, f"{value:.0f}", ha="center", fontsize=8)
        if kind == "sound":
            axis.text(0.97, 0.95, "the paper did not measure this", transform=axis.transAxes, ha="right", color="0.4")
        axis.set(xticks=range(len(CONTEXTS)), xticklabels=[f"told: {c}" for c in CONTEXTS], ylim=(0, 115),
                 title={"false positives": "false positives flagged, %", "sound": "good reasoning rejected, %"}[kind])
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    print(f"figure: {target}")


def run_verifier(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="eval.py verifier", description="A verifier's own errors.")
    parser.add_argument("--responses", type=Path, help="labelled responses; default: of the built-in world")
    parser.add_argument("--verifier", help="server(s) of a judge: URL[,URL]; default: the built-in world's two")
    parser.add_argument("--judge_model", default="", help="its name; default: the only one served")
    parser.add_argument("--judge_timeout", type=float, default=120.0)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--contexts", nargs="+", choices=CONTEXTS, default=list(CONTEXTS))
    parser.add_argument("--models", nargs="+", default=["assets/toy"], help="built-in world: whose responses")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4], help="built-in world: of the responses")
    parser.add_argument("--queries", type=int, default=256, help="built-in world: a quarter of each family")
    parser.add_argument("--samples", type=int, default=4, help="built-in world: per query, seed and checkpoint")
    parser.add_argument("--figure", type=Path, default=Path("runs/verifier.png"))
    args = parser.parse_args(argv)
    import toy

    if args.responses and not args.verifier:
        raise DataError("--responses needs --verifier: the built-in world's verifiers know its own pictures only")
    if min(args.concurrency, args.samples, args.judge_timeout) <= 0 or args.queries < 4:
        raise DataError("--concurrency, --samples and --judge_timeout must be above 0, --queries at least 4")
    if args.figure.suffix not in (".png", ".pdf", ".svg"):
        raise DataError(f"--figure {args.figure}: the name must end in .png, .pdf or .svg")
    items = load_labelled(args.responses) if args.responses else toy_labelled(args.models, args.seeds, args.queries,
                                                                              args.samples)
    if args.verifier:
        from judge import OpenAIChat

        chat = OpenAIChat(args.verifier, args.judge_model, args.judge_timeout)
        chat.check()
        judges = {chat.model: lambda context: Verifier(chat, context, args.concurrency)}
    else:
        onlooker = toy.Onlooker(*load_engine("assets/toy", 64))
        judges = {"exact (the labels are its own)": toy.ToyVerifier,
                  "onlooker": lambda context: Verifier(onlooker, context)}
    found = {name: {context: verifier_errors(judge(context), items) for context in args.contexts}
             for name, judge in judges.items()}
    kinds = next(iter(next(iter(found.values())).values()))
    if not any(part["n"] for levels in found.values() for kinds in levels.values() for part in kinds.values()):
        raise DataError("no response was judged: every verdict failed")
    odd = sum(sound and not answers_match(query, text) for query, text, sound in items)
    if odd:
        print(f"{odd} responses are labelled sound although their final answer is not the reference's by rule",
              file=sys.stderr)
    print(", ".join(f"{part['n'] + part['failed']} {kind}" for kind, part in kinds.items())
          + (f" (seeds {', '.join(map(str, args.seeds))})" if not args.responses else "")
          + "; 95 % intervals by bootstrap over queries\n")
    print(verifier_table(found) + "\n\n" + family_table(found) + "\n")
    verifier_figure(found, args.figure)


# ------------------------------------------------------------------------------------------------- command line

def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_engine(model: str, max_new_tokens: int = 32):
    """-> (engine, processor) of a checkpoint, in transformers."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    from sampler import HFEngine

    logging.disable_progress_bar()
    try:
        processor = Processor(model)
        loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).to(device())
    except (OSError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise DataError(f"cannot load model {model}: {(str(error).splitlines() or [''])[0]}") from None
    return HFEngine(loaded, processor, max_new_tokens=max_new_tokens), processor


def main() -> None:
    commands = {"probe": run_probe, "verifier": run_verifier}
    try:
        if sys.argv[1:2] == ["run"]:
            from scoring import run

            run(sys.argv[2:])
        elif sys.argv[1:2] and sys.argv[1] in commands:
            commands[sys.argv[1]](sys.argv[2:])
        else:
            run_measure()
    except (DataError, JudgeError, VerifierUnreliable) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run_measure() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assets/toy")
    parser.add_argument("--data", help="JSONL of held-out queries; default: the built-in world")
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_new_tokens", type=int, default=32)
    args = parser.parse_args()
    import toy                                  # the built-in world's exact verifier
    from data import load_queries

    queries = load_queries(args.data) if args.data else toy.heldout_queries()
    engine, processor = load_engine(args.model, args.max_new_tokens)
    records = measure(engine, processor, queries, toy.ToyVerifier(), 0.0 if args.greedy else 1.0,
                      (args.seed, "evaluation"), quiet=False)
    print(table({args.model: summarise(records, toy.COUNTED if not args.data else None)}))


if __name__ == "__main__":
    import eval as evaluation       # not this copy of it: what the readers raise has to be what main() catches

    evaluation.main()
