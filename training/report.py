"""One self-contained page, report.html, from one or more run folders: what was learned, and how, to look at.

    python -m training.report RUN [RUN ...]    writes RUN/report.html (the first one's); further runs share it

Top to bottom: read runs -> headline -> charts (SVG) -> gallery of rollouts -> page.  The page has no script
and asks the network for nothing.  Every text of a policy or a judge is untrusted: escape() it.  (No template
library: most of the page is curves, computed point by point, and the rest are fragments of a few lines beside
the numbers they show.)
"""

import argparse
import base64
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data import DataError
from tools.files import read_json, read_rows, write_whole
from tools.pages import escape
from tools.programs import one_line_errors

STYLE = Path(__file__).with_name("report.css")

KINDS = {"online": "right and wrong tries: trained as they are",
         "mixed": "all failed, a retry was kept: rolled back",
         "all_positive": "all tries right: nothing left to learn",
         "all_negative": "all failed, nothing recovered",
         "too_small": "fewer than two verdicts"}
HEALTH = {"kl": ("KL", "to the start policy"), "entropy": ("Entropy", "nats per token"),
          "grad_norm": ("Gradient norm", "before clipping"),
          "engine_gap_mean": ("Engine gap", "sampler and trainer"),
          "context_gap": ("Context gap", "log-prob that rolled-back tokens lose"),
          "failed_verdicts": ("Failed verdicts", "left out of every mean")}


# ---------------------------------------------------------------------------------------------- reading a run

@dataclass
class Run:
    """What the page needs of a run folder.  Rollouts stay on disk: they may be larger than memory."""

    folder: Path
    config: dict
    rows: list[dict]                # metrics.jsonl
    seconds: float
    label: str
    colour: str                     # a CSS variable
    note: str = ""                  # what a reader has to know of the data

    def evals(self) -> list[dict]:
        return [row["eval"] for row in self.rows if row.get("eval")] or [{}]

    def total(self, name: str) -> float:
        return sum(value(row, name) or 0 for row in self.rows)

    def chip(self) -> str:
        return f"<span class=chip style='--k:{self.colour}'>{escape(self.label)}</span>"


def read_runs(folders: list[Path]) -> list[Run]:
    """A label is the method, with the folder where that does not tell runs apart."""
    runs = []
    for i, folder in enumerate(folders):
        config, summary = (read_json(folder / name, default={}) for name in ("config.json", "summary.json"))
        rows = list(read_rows(folder / "metrics.jsonl"))
        for row in rows:                        # a mean over no tokens is logged as 0, but it is no number
            if row.get("trained_tokens") == 0:
                row.update(dict.fromkeys(set(HEALTH) - {"failed_verdicts"}))
            if row.get("rolled_back_token_share") == 0:
                row["context_gap"] = None
        run = Run(folder, config, rows, 0.0, config.get("method", folder.name), f"var(--c{i % 6})")
        run.note = str(summary.get("note", ""))
        run.seconds = summary.get("wall_seconds") or run.total("time/rollout") + run.total("time/update")
        runs.append(run)
    count = Counter(run.label for run in runs)
    for run in runs:
        run.label += f" {run.folder.name}" if count[run.label] > 1 else ""
    return runs


def value(row: dict, *path: str) -> float | None:
    """row[a][b]... if it is a finite number."""
    for key in path:
        row = row.get(key) if isinstance(row, dict) else None
    return float(row) if isinstance(row, (int, float)) and math.isfinite(row) else None


def percent(v: float | None) -> str:
    return "–" if v is None else f"{100 * v:.0f}%"


# ---------------------------------------------------------------------------------------- headline and charts

def families_of(runs: list[Run]) -> list[str]:
    """Families in the data, from the easiest to the hardest at the start."""
    start = next((run.evals()[0] for run in runs if run.evals()[0]), {})
    return sorted(start.get("families", {}),
                  key=lambda family: -(value(start, "families", family, "process_accuracy") or 0))


def headline(runs: list[Run]) -> str:
    """A table, one row per run: start -> end of the main numbers, and what they cost."""
    families, body = families_of(runs), ""
    columns = [("Process accuracy", "process_accuracy"), ("Answer accuracy", "answer_accuracy"),
               ("False positives", "false_positive_share")]
    columns += [(f"{hardest.capitalize()}, process", "families", hardest, "process_accuracy")
                for hardest in families[-1:]]
    for run in runs:
        body += f"<tr><th>{run.chip()} <small>seed {escape(str(run.config.get('seed', '–')))}</small>"
        for name, *path in columns:
            start, end = (value(run.evals()[i], *path) for i in (0, -1))
            low, high = sorted((100 * (start or 0), 100 * (end or 0)))
            body += (f"<td data-h='{escape(name)}'><s>{percent(start)} →</s> <b>{percent(end)}</b>"
                     f"<div class=track style='--k:{run.colour}'>"
                     f"<i style='left:{low:.1f}%;width:{high - low:.1f}%'></i>"
                     f"<b style='left:{100 * (end or 0):.1f}%'></b></div>")
        body += (f"<td data-h=Steps>{max((row['step'] for row in run.rows), default=0)}<td data-h=Tokens>"
                 f"{run.total('tokens_sampled') / 1000:,.0f} k<td data-h=Time>{run.seconds / 60:,.1f} min")
    names = ["", *(escape(name) for name, *_ in columns), "Steps", "Tokens", "Time"]
    heads = "".join(f"<th>{name}" for name in names)
    return f"<table class={'solo' if len(runs) == 1 else 'several'}><thead><tr>{heads}<tbody>{body}</table>"


def running_mean(points: list[tuple]) -> list[tuple]:
    """Centred means over a tenth of the run, at most 240 of them; a gap is where nothing near is known."""
    r, out = len(points) // 20, []
    for i in range(0, len(points), math.ceil(len(points) / 240)):
        near = [v for _, v in points[max(0, i - r):i + r + 1] if v is not None]
        out.append((points[i][0], sum(near) / len(near) if near else None))
    return out


def figure(title: str, note: str, marks: list[tuple], share: bool = True, size: tuple = (230, 140)) -> str:
    """Title, note, and an SVG of marks (kind, colour, points); kind: line (with dots), mean, raw or area."""
    (w, h), left, right, top, bottom = size, 36, size[0] - 40, 8, size[1] - 22
    known = [v for *_, points in marks for _, v in points if v is not None]
    last = max(x for *_, points in marks for x, _ in points) or 1
    unit = 10 ** math.floor(math.log10(max(map(abs, known)) or 1))
    low = 0 if share else math.floor(min(0, *known) / unit) * unit
    high = 1 if share else max(math.ceil(max(known) / unit), 1) * unit
    text = percent if share else lambda v: f"{v:.2g}".replace("e-0", "e-")

    def at(x: float, v: float) -> tuple[float, float]:
        return left + x / last * (right - left), bottom - (v - low) / (high - low) * (bottom - top)

    svg, ends = f"<text x={left} y={h - 3}>0</text><text x={right} y={h - 3} class=e>step {last}</text>", []
    for t in (low + (high - low) * i / 4 for i in range(0, 5, 1 if w > 400 else 2)):
        y = at(0, t)[1]
        svg += f"<path class=rule d='M{left} {y:.1f}H{right}'/>"
        svg += f"<text x={left - 6} y={y + 3.5:.1f} class=e>{text(t)}</text>"
    for kind, colour, points in marks:
        d, pen = "", "M"
        for x, v in points:
            if v is not None:                   # h0 makes a dot of a point between two gaps
                d += "{}{:.1f} {:.1f}".format(pen, *at(x, v)) + "h0" * (pen == "M")
            pen = "M" if v is None else "L"
        svg += f"<path class={kind} style='--k:{colour}' d='{d}'/>"
        dots = [(*at(x, v), colour, x, text(v)) for x, v in points if v is not None]
        if kind == "line":
            circle = "<circle cx={:.1f} cy={:.1f} r=2.6 style='--k:{}'><title>step {}: {}</title></circle>"
            svg += "".join(circle.format(*dot) for dot in dots[-100:])
        if kind in ("line", "mean"):
            x, y, *_, label = dots[-1]
            ends.append([y, x, colour, label])
    ends.sort()
    for i in range(1, len(ends)):               # labels that would overlap: apart, then back inside
        ends[i][0] = max(ends[i][0], ends[i - 1][0] + 11)
    for i, (y, x, colour, label) in enumerate(reversed(ends)):
        y = min(y, bottom - 11 * i) + 4
        svg += f"<text class=end x={x + 6:.1f} y={y:.1f} style='--k:{colour}'>{label}</text>"
    return (f"<figure class={'wide' if w > 400 else 'small'}><h3>{escape(title)}</h3><p class=note>{note}</p>"
            f"<svg viewBox='0 0 {w} {h}' role=img aria-label='{escape(title)}'>{svg}</svg></figure>")


def line_chart(runs: list[Run], title: str, note: str, *path: str, share: bool = True,
               size: tuple = (230, 140)) -> str:
    """All runs over steps; "" if none has the metric.  Evaluations as they are, training with a running
    mean."""
    marks, held_out = [], path[0] == "eval"
    for run in runs:
        rows = [row for row in run.rows if (row.get("eval") if held_out else row["step"])]
        points = [(row["step"], value(row, *path)) for row in rows]
        if any(v is not None for _, v in points):
            raw = ("raw", run.colour, points[::math.ceil(len(points) / 240)])
            mean = ("mean", run.colour, running_mean(points))
            marks += [("line", run.colour, points)] if held_out else [raw, mean]
    return figure(title, note, marks, share, size) if marks else ""


def group_chart(run: Run, size: tuple) -> str:
    """What became of the queries of a step, as shares, stacked."""
    steps, marks, base = [], [], {}
    for row in run.rows:
        counts = {kind: value(row, f"groups/{kind}") or 0 for kind in KINDS}
        if any(counts.values()):
            steps.append((row["step"], {kind: n / sum(counts.values()) for kind, n in counts.items()}))
    for kind in reversed(KINDS if steps else ()):
        top = {x: base.get(x, 0) + v for x, v in running_mean([(x, shares[kind]) for x, shares in steps])}
        outline = [*top.items(), *((x, base.get(x, 0)) for x in reversed(top))]
        marks.append(("area", f"var(--{kind})", outline))
        base = top
    return figure(run.label, "", marks, size=size) if steps else ""


def charts(runs: list[Run]) -> str:
    """All sections with charts; those without data are left out."""
    legend = f"<p class=legend>{''.join(run.chip() for run in runs)}</p>" if len(runs) > 1 else ""
    kinds = "".join(f"<li style='--k:var(--{kind})'><b>{kind.replace('_', ' ')}</b> {text}"
                    for kind, text in KINDS.items())
    groups = [group_chart(run, (600, 200) if len(runs) == 1 else (330, 180)) for run in runs]
    sections = [
        ("Process accuracy", "Share of held-out queries, sampled at T = 1, whose answer and reasoning are "
         "both right: the verifier sees the full reference solution.", "held", [
             line_chart(runs, "All", "", "eval", "process_accuracy", size=(560, 384)),
             *(line_chart(runs, f.capitalize(), "", "eval", "families", f, "process_accuracy")
               for f in families_of(runs))]),
        ("Training", "Bold: running mean. Faint: single steps.", "three", [
            line_chart(chosen, title, note, *path, size=(330, 180)) for chosen, title, note, *path in (
                (runs, "False positives", "held-out right answers, reasoning wrong", "eval",
                 "false_positive_share"),
                (runs, "Training reward", "mean of the first tries", "reward"),
                ([run for run in runs if run.total("retries")], "Hard queries recovered",
                 "no try was right, but a retry was kept", "recovered_share"),
                ([run for run in runs if run.total("context/loss")], "Context pairs",
                 "share told apart before they are trained on", "context/accuracy"))]),
        ("What became of the queries", "Share of the queries of a step by kind of group, running mean.",
         "three", groups + [f"<ul class=kinds>{kinds}</ul>"] * any(groups)),
        ("Health", "Numbers that should stay small or move slowly.", "three",
         [line_chart(runs, *names, key, share=False, size=(330, 150)) for key, names in HEALTH.items()])]
    return f"<main>{legend}" + "".join(
        f"<h2>{title}</h2><p class=intro>{intro}</p><div class='grid {css}'>{''.join(figures)}</div>"
        for title, intro, css, figures in sections if any(figures)) + "</main>"


# ---------------------------------------------------------------------------------------------------- gallery

SLOTS = {"Recovered": lambda row: row["kind"] == "mixed",
         "Not recovered": lambda row: row["kind"] == "all_negative",
         "Right answer, wrong reasoning": lambda row: row["kind"] == "online" and traps(row),
         "No retry needed": lambda row: row["kind"] == "online"}
NOTES = {"online": "Right and wrong tries side by side: trained as sampled.",
         "mixed": "Kept retries join the failed tries as answers to the <b>original question</b>. The report "
                  "is gone from the prompt; the tokens stay as sampled.",
         "all_negative": "No right answer to contrast the tries with: not trained."}


def traps(row: dict) -> int:
    """Tries that a reward for the answer alone would have paid although their reasoning is wrong."""
    return sum(m["answer_right"] and m["verdict"] == "judged" and not m["correct"] for m in row["stage1"])


def outcome(m: dict) -> tuple[str, str]:
    """(CSS class, words) for a try, or for a retry and what became of it."""
    if m.get("kept"):
        return "kept", "right: kept"
    if m["verdict"] == "failed":
        css, words = "none", "no verdict, the judge failed"
    elif m["correct"]:
        css, words = "good", "right" + ", but mentions the review" * ("kept" in m)
    elif not m["consistent"]:
        css, words = "bad", "contradicts itself or reads as a revision"
    elif m["answer_right"]:
        css, words = "trap", "right answer, wrong reasoning"
    else:
        css, words = "bad", "wrong" + ", cut off" * (m["status"] == "truncated")
    return css, words + ": dropped" * ("kept" in m)


def clarity(row: dict) -> tuple:
    """How well a person can follow a row: a wrong try whose report led to a kept retry, contrast, short
    texts."""
    members, pairs = row["stage1"] + row["stage2"], zip(row["stage1"], row["stage2"])
    told = any(retry["kept"] and m["report"] and not m["answer_right"] for m, retry in pairs)
    longest = max(len(m["text"]) for m in members)
    return bool(row["stage2"]) + told, len({outcome(m)[0] for m in members}), -longest


def pick_rollouts(run: Run) -> list[tuple[str, dict]]:
    """The clearest rows, in one pass that holds only the best so far; recovered ones from all over the
    run."""
    best, file = {}, run.folder / "rollouts.jsonl"
    last = max((row["step"] for row in run.rows), default=0) or 1
    for row in read_rows(file) if file.is_file() else ():
        for slot, suits in SLOTS.items():
            key = slot, row["step"] * 20 // last if slot == "Recovered" else 0
            if suits(row) and (key not in best or clarity(row) > best[key][0]):
                best[key] = clarity(row), row
                break
    recovered = sorted(key for key in best if key[0] == "Recovered")
    chosen = sorted({recovered[i] for i in (0, len(recovered) // 2, -1)} if recovered else ())
    chosen += [(slot, 0) for slot in list(SLOTS)[1:]]
    return [(key[0], best[key][1]) for key in chosen if key in best]


def cell(m: dict) -> str:
    """One try with its report, or one retry."""
    css, words = outcome(m)
    said = escape(m["report"]) or ("gave the answer away, not used" if m["leaked"] else "none")
    report = f"<p class=report>report: <b>{said}</b>" if "kept" not in m and not m["correct"] else ""
    return (f"<div class='cell {css}'><p class=said>{escape(m['text'])}</p>"
            f"<p class=badge>{words}{report}</div>")


def tries(row: dict) -> str:
    """Each try beside its retry; identical ones once, one of each outcome in sight, the rest folded away."""
    retries = row["stage2"] or [None] * len(row["stage1"])
    pairs = [[m for m in pair if m] for pair in zip(row["stage1"], retries)]
    order = ["kept", "good", "trap", "bad", "none"]
    pairs.sort(key=lambda pair: (order.index(outcome(pair[-1])[0]), pair[0]["answer_right"]))
    shown, folded = {}, []
    for (css, text), n in Counter((outcome(pair[-1])[0], "".join(map(cell, pair))) for pair in pairs).items():
        line = f"<div class=pair>{text}{f'<em>× {n}</em>' if n > 1 else ''}</div>"
        if css in shown or len(shown) == 3:
            folded.append(line)
        else:
            shown[css] = line
    more = f"<details><summary>{len(folded)} more</summary>{''.join(folded)}</details>" if folded else ""
    heads = "<p class=head><i>1</i>First tries, with the verifier’s report</p>" + (
        "<p class=head><i>2</i>Retry, with the try and its report in context</p>" if row["stage2"] else "")
    return (f"<div class={'two' if row['stage2'] else 'one'}><div class='pair heads'>{heads}</div>"
            f"{''.join(shown.values())}{more}</div>")


def trained(row: dict) -> str:
    """The group as it is trained: one bar per member, as high as its advantage."""
    members = [("kept retry" if "kept" in m else "right try" if m["correct"] else "failed try",
                m["advantage"]) for m in row["stage1"] + row["stage2"] if m["advantage"]]
    bars = "".join(f"<i class='{name}' style='--a:{a:.3f}'></i>" for name, a in members)
    counts = Counter((name, f"{a:+.2f}".replace("-", "−")) for name, a in members)
    key = "".join(f"<li class='{name}'>{n} × {name} <b>{a}</b>" for (name, a), n in counts.items())
    paid = (f" Paid by the answer alone, {traps(row)} of {len(row['stage1'])} would be rewarded for wrong "
            "reasoning.")
    return (f"<div class='trained {escape(row['kind'])}'><p class=head><i>{3 if row['stage2'] else 2}</i>"
            f"{'After rollback' if row['kind'] == 'mixed' else 'What is trained'}</p>"
            f"<p>{NOTES.get(row['kind'], '')}{paid if traps(row) else ''}"
            f"<div class=bars><div>{bars}</div><ul>{key}</ul></div></div>")


def picture(folder: Path, name: str, limit: int) -> str:
    """A picture of the run as a data URI; never a file from elsewhere, nor one that bloats the page."""
    file = folder / "images" / Path(name).name
    if not file.is_file() or file.stat().st_size > limit:
        return f"<p class=note>missing or too large to embed: {escape(name)}</p>"
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}'>"


def gallery(run: Run) -> str:
    """Cards of chosen rollouts: query, tries and retries, what was trained."""
    cards = ""
    for title, row in pick_rollouts(run):
        images = "".join(picture(run.folder, name, 300_000 // len(row["images"])) for name in row["images"])
        cards += (f"<article><header><h3>{title}</h3>"
                  f"<p class=note>step {row['step']:d}, {escape(row['family'])}</header>"
                  f"<div>{images}<p class=question>{escape(row['question'])}"
                  "<p class=note>Reference, for the verifier only"
                  f"<p class=said>{escape(row['solution'])}</div>"
                  f"<div>{tries(row)}{trained(row)}</div></article>")
    note = escape(run.note)
    return cards and (f"<h2>Rollouts</h2><p class=intro>From {escape(run.label)}; chosen because they are "
                      f"easy to follow, not because they are typical. {note}</p>{cards}")


# ------------------------------------------------------------------------------------------------------- page

def write_report(folders: list[Path]) -> Path:
    """Writes report.html into the first run folder and returns its path."""
    runs = read_runs([Path(folder) for folder in folders])
    shown = max(runs, key=lambda run: (run.total("groups/mixed") > 0, run.total("groups/online") > 0))
    labels, style = escape(", ".join(run.label for run in runs)), STYLE.read_text(encoding="utf-8")
    page = f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>ContextRL: {labels}</title><style>
{style}</style>
<h1>ContextRL</h1><p class=lede>A policy that fails a question tries again with a report of its mistakes in
context. Retries that the verifier accepts are rolled back: trained as answers to the original question, as if
there had been no report.</p>
{headline(runs)}{charts(runs)}{gallery(shown)}</html>"""
    target = runs[0].folder / "report.html"
    write_whole(target, page)
    return target


def main() -> None:
    parser = argparse.ArgumentParser("python -m training.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    folders = parser.parse_args().runs
    with one_line_errors():
        for folder in folders:
            if not (folder / "metrics.jsonl").is_file():
                raise DataError(f"{folder} is not a run folder: no metrics.jsonl")
        print(write_report(folders))


if __name__ == "__main__":
    main()
