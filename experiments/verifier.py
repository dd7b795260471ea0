"""A verifier's own errors (paper, Table 2), both kinds.

    python -m experiments.verifier                       at three levels of context, in the built-in world, or
    python -m experiments.verifier --responses FILE --verifier http://HOST:8000/v1

A row of that FILE is a row of a data file (data.py) + "response" + "sound": is all of it right, reasoning and answer?
Of those that are not, the ones with the reference's final answer (rule check) are the false positives.
"""

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
        from judges.server import OpenAIChat

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


if __name__ == "__main__":
    run_verifier()
