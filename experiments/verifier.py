"""A verifier's own errors (the paper's Table 2), both kinds, at three levels of context.

    python -m experiments.verifier                           two verifiers of the built-in world
    python -m experiments.verifier --responses FILE --verifier WHO

A row of FILE is a row of a data file (data.py) + "response" + "sound": is all of it right, reasoning and
answer?  Of those that are not sound, the ones with the reference's final answer (rule check) are the false
positives.  WHO is what contextrl.py's --verifier takes; 'rule' and a file of yours judge alike at every
level.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

import toy
from data import DataError, Query, json_lines, query_of_line
from experiments.figures import FIGURES, panels
from judges.rule import RuleFirst, answers_match
from reward import CONTEXTS, VerdictStatus, Verifier, VerifierLike, unambiguous
from sampler import Rollout, sample
from tools.numbers import bootstrap_interval
from tools.pages import markdown_table
from tools.programs import one_line_errors
from training import parts

PAPER_FLAGGED = {"paper, 32B": (46.25, 50.03, 81.98), "paper, 235B": (51.25, 54.60, 82.12)}      # Table 2
LABELLED = tuple[Query, str, bool]           # query, response, is it sound?


# ----------------------------------------------------------------------------------------- labelled responses

def load_labelled(path: Path) -> list[LABELLED]:
    """A bad row is skipped, counted and named; none at all is an error."""
    items, bad = [], []
    for where, line in json_lines(path):
        try:
            items.append(labelled_row(line, path.parent))
        except DataError as error:
            bad.append(f"{where}: {error}")
    if not items:
        raise DataError(f"no labelled response in {path}" + (f", the first bad row: {bad[0]}" if bad else ""))
    if bad:
        print(*(f"skipped {problem}" for problem in bad[:10]),
              f"{len(bad)} bad rows skipped, {len(items)} read", sep="\n", file=sys.stderr)
    return items


def labelled_row(line: bytes, folder: Path) -> LABELLED:
    try:
        row = json.loads(line, object_pairs_hook=unambiguous)
        response, sound = row.pop("response"), row.pop("sound")
        json.dumps(response, ensure_ascii=False).encode()                   # half a surrogate pair
    except KeyError as error:
        raise DataError(f"field {error} is missing") from None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise DataError("not a JSON object") from None
    if not isinstance(response, str) or not isinstance(sound, bool):
        raise DataError("'response' must be a text and 'sound' true or false")
    return query_of_line(json.dumps(row).encode(), folder), response, sound


def label_built_in(models: list[str], seeds: list[int], queries: int, samples: int) -> list[LABELLED]:
    """Responses of checkpoints to queries of the built-in world, labelled by its exact verifier, one of each
    text; and a worked solution of each query: the warm start has no sound response to a hard one."""
    asked = toy.heldout_queries(queries // 4)
    exact, worked = toy.ToyVerifier("solution"), {q.id: toy.solve(q.facts) for q in asked}
    items = {(q.id, worked[q.id]): (q, worked[q.id], True) for q in asked}
    for model in models:
        engine = parts.open_engine(model)
        for seed in seeds:
            rollouts = [Rollout(q, engine.processor.prompt(q), q.id) for q in asked]
            sample(engine, rollouts, samples, (seed, "verifier"))
            for query, text in ((r.query, drawn.text) for r in rollouts for drawn in r.samples_G):
                items[query.id, text] = (query, text, exact.judge_one(query, text).correct)
    return list(items.values())


# -------------------------------------------------------------------------------------------------- verifiers

class NoPolicy:
    """What a judge in this process takes turns with: nobody samples while it judges."""

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


def open_verifiers(args: argparse.Namespace,
                   queries: list[Query]) -> dict[str, Callable[[str], VerifierLike]]:
    """Name -> how to make it at one level of context."""
    if not args.verifier:
        engine = parts.open_engine("", max_new_tokens=64)
        fallible = toy.FallibleVerifier(engine, engine.processor)
        return {"exact (the labels are its own)": toy.ToyVerifier,
                "onlooker": lambda context: Verifier(fallible, context)}
    first = parts.open_verifier(args.verifier, args.contexts[0], queries, args.judge_model,
                                timeout=args.judge_timeout, concurrency=args.concurrency)
    judge = parts.of_model(first)
    if not isinstance(judge, Verifier):
        return {args.verifier: lambda context: parts.open_verifier(args.verifier, context, queries)}
    parts.start_judge(first, NoPolicy())

    def at_level(context: str) -> VerifierLike:
        verifier = Verifier(judge.chat, context, args.concurrency)
        return RuleFirst(verifier) if isinstance(first, RuleFirst) else verifier
    return {judge.chat.model: at_level}


def verifier_errors(verifier: VerifierLike, items: list[LABELLED]) -> dict:
    """What a verifier does with false positives (right answer, wrong reasoning), sound responses and wrong
    answers."""
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

    def shares(by_query: dict[str, list]) -> dict:
        if not by_query:
            return {"n": 0, "rejected": None, "interval": None}
        rejected = [x for of_query in by_query.values() for x in of_query]
        return {"n": len(rejected), "rejected": 100 * float(np.mean(rejected)),
                "interval": [100 * x for x in bootstrap_interval(list(by_query.values()))]}

    return {kind: shares(by_query) | {"failed": failed[kind], "families": families[kind]}
            for kind, by_query in kinds.items()}


# --------------------------------------------------------------------------------------------- tables, figure

Errors = dict[str, dict[str, dict]]           # verifier -> level of context -> what verifier_errors() says


def verifier_table(errors: Errors) -> str:
    def cell(part: dict) -> str:
        if not part["n"]:
            return "–"
        return "{:.1f} [{:.1f}, {:.1f}] of {}".format(part["rejected"], *part["interval"], part["n"])

    table = [["verifier", "is told", "false positives flagged, %", "good reasoning rejected, %",
              "wrong answers accepted, %", "failed verdicts of these"]]
    for name, levels in errors.items():
        for context, kinds in levels.items():
            wrong = kinds["wrong answers"]
            accepted = wrong if not wrong["n"] else wrong | {
                "rejected": 100 - wrong["rejected"],
                "interval": [100 - x for x in reversed(wrong["interval"])]}
            table.append([name, context, cell(kinds["false positives"]), cell(kinds["sound"]), cell(accepted),
                          ", ".join(str(kind["failed"]) for kind in kinds.values())])
    for name, flagged in PAPER_FLAGGED.items():
        table += [[name, context, f"{value:.2f}", "not measured", "not measured", ""]
                  for context, value in zip(CONTEXTS, flagged)]
    return markdown_table(table)


def family_table(errors: Errors) -> str:
    """The same by family, as counts: where is a verifier wrong?"""
    names = sorted({family for levels in errors.values() for kinds in levels.values()
                    for kind in kinds.values() for family in kind["families"]})
    table = [["verifier", "is told", *(f"{name}: flagged, rejected" for name in names)]]
    for verifier, levels in errors.items():
        for context, kinds in levels.items():
            counts = [[kinds[kind]["families"].get(name, []) for kind in ("false positives", "sound")]
                      for name in names]
            table.append([verifier, context, *(
                ", ".join(f"{sum(of_kind)} of {len(of_kind)}" for of_kind in pair) for pair in counts)])
    return markdown_table(table)


def verifier_figure(errors: Errors, target: Path) -> None:
    """Two panels of bars, a group for each level of context; the paper has the left one only."""
    axes, save = panels(2, width=5, sharey=True, width_ratios=[1 + 0.4 * bool(errors), 1])
    for axis, kind in zip(axes, ("false positives", "sound")):
        bars = {name: [(levels[c][kind]["rejected"], levels[c][kind]["interval"]) if c in levels
                       else (None, None) for c in CONTEXTS] for name, levels in errors.items()}
        if kind == "false positives":
            bars |= {name: [(value, None) for value in flagged] for name, flagged in PAPER_FLAGGED.items()}
        width = 0.8 / len(bars)
        for i, (name, values) in enumerate(bars.items()):
            for c, (value, span) in enumerate(values):
                if value is not None:
                    error = [[max(value - span[0], 0)], [max(span[1] - value, 0)]] if span else None
                    place = c + (i - (len(bars) - 1) / 2) * width
                    axis.bar(place, value, 0.92 * width, yerr=error, capsize=2, label="" if c else name,
                             color=f"C{i}" if name in errors else ("0.55", "0.75")[i % 2])
                    axis.text(place, (span[1] if span else value) + 1.5, f"{value:.0f}", ha="center",
                              fontsize=8)
        axis.set(xticks=range(len(CONTEXTS)), xticklabels=[f"told: {c}" for c in CONTEXTS], ylim=(0, 115))
    axes[0].set_title("false positives flagged, %")
    axes[1].set_title("good reasoning rejected, %")
    axes[1].text(0.97, 0.95, "the paper did not measure this", transform=axes[1].transAxes, ha="right",
                 color="0.4")
    save(target, note="95 % intervals by bootstrap over queries")


# ------------------------------------------------------------------------------------------------------- main

def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.verifier", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=Path, help="labelled responses; default: of the built-in world")
    parser.add_argument("--verifier", default="", help="who judges; default: the built-in world's two")
    parser.add_argument("--judge_model", default="", help="its name at a URL; default: the only one served")
    parser.add_argument("--judge_timeout", type=float, default=120.0)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--contexts", nargs="+", choices=CONTEXTS, default=list(CONTEXTS))
    built_in = parser.add_argument_group("responses of the built-in world")
    built_in.add_argument("--models", nargs="+", default=[""], help="checkpoints; default: the warm start")
    built_in.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4])
    built_in.add_argument("--queries", type=int, default=256, help="a quarter of each family")
    built_in.add_argument("--samples", type=int, default=4, help="per query, seed and checkpoint")
    parser.add_argument("--figure", type=Path, default=FIGURES / "verifier.png")
    args = parser.parse_args()
    with one_line_errors():
        measure_errors(args)


def measure_errors(args: argparse.Namespace) -> None:
    if args.responses and not args.verifier:
        raise DataError("--responses needs --verifier: the built-in world's know its own pictures only")
    if min(args.concurrency, args.samples, args.judge_timeout) <= 0 or args.queries < 4:
        raise DataError("--concurrency, --samples and --judge_timeout must be above 0, --queries at least 4")
    if args.figure.suffix not in (".png", ".pdf", ".svg"):
        raise DataError(f"--figure {args.figure}: the name must end in .png, .pdf or .svg")
    items = (load_labelled(args.responses) if args.responses else
             label_built_in(args.models, args.seeds, args.queries, args.samples))
    verifiers = open_verifiers(args, [query for query, _, _ in items])
    errors = {name: {context: verifier_errors(at_level(context), items) for context in args.contexts}
              for name, at_level in verifiers.items()}
    if not any(part["n"] for levels in errors.values() for kinds in levels.values()
               for part in kinds.values()):
        raise DataError("no response was judged: every verdict failed")
    odd = sum(sound and not answers_match(query, text) for query, text, sound in items)
    if odd:
        print(f"{odd} responses are labelled sound although their final answer is not the reference's by "
              "rule", file=sys.stderr)
    kinds = next(iter(next(iter(errors.values())).values()))
    print(", ".join(f"{part['n'] + part['failed']} {kind}" for kind, part in kinds.items())
          + (f" (seeds {', '.join(map(str, args.seeds))})" if not args.responses else "")
          + "; 95 % intervals by bootstrap over queries\n")
    print(verifier_table(errors) + "\n\n" + family_table(errors) + "\n")
    verifier_figure(errors, args.figure)


if __name__ == "__main__":
    main()
