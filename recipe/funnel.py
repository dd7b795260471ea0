"""What a build looks like: the table of what each stage left, and one page of rows to look at."""

from collections import Counter
from pathlib import Path

from tools.pages import escape, thumbnail


def funnel(turns: Counter, dropped: Counter, stages: list[str]) -> list[list]:
    """A line for each subset: rows left after each stage."""
    table = [["subset", "turns", *stages]]
    for subset in sorted(turns):
        left = [turns[subset]]
        for stage in stages:
            left.append(left[-1] - dropped[subset, stage])
        table.append([subset, *left])
    return [*table, ["all", *map(sum, zip(*(line[1:] for line in table[1:])))]]


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
  padding: 0 1em }
h2 { margin: 2em 0 .6em; border-bottom: 1px solid #ddd } table { border-collapse: collapse; font-size: 13px }
td, th { padding: .25em .7em; border-bottom: 1px solid #e4e4e4; text-align: right; font-weight: normal }
th { color: #666 } td:first-child, th:first-child { text-align: left } tr:last-child td { font-weight: 600 }
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1em }
.row { border: 1px solid #ddd; border-radius: 6px; padding: .8em; overflow-wrap: anywhere }
.row img { display: block; max-width: 100%; max-height: 220px; margin: 0 auto .7em }
pre { white-space: pre-wrap; font: inherit; margin: .3em 0; max-height: 16em; overflow: auto }
small { color: #777 } .boxed { background: #eef6ee } .why { color: #a33; font-weight: 600 }
.wide { overflow-x: auto }"""


def samples_page(out: Path, table: list[list], reasons: list[tuple], examples: dict) -> str:
    """A page without other files: rows to look at before anything is trained on them.

    `examples`: (number, id, row) of a few rows of each subset, under (subset,), and of each reason, under
    (stage, why).
    """
    def card(row: dict) -> str:
        kind, note = row.get("solution_kind", ""), ""
        if kind and "why" not in row:
            note = f"{kind} solution, solved {row['solved']} times; {row['licence']}"
        pictures = "".join(f'<img src="{thumbnail(str(out / image))}">' for image in row["images"])
        return (f'<div class="row">{pictures}'
                + (f'<div class="why">{escape(row["why"])}</div>' if "why" in row else "")
                + "".join(f"<pre><small>{name}</small> {escape(row[name])}</pre>"
                          for name in ("question", "solution", "answer") if row[name])
                + f"<small>{escape(row['id'])}<br>{escape(note)}</small></div>")

    def cards(place: tuple) -> str:
        chosen = sorted(examples[place], reverse=True, key=lambda item: item[:2])
        return "".join(card(row) for *_, row in chosen)

    head, *body = (("th" if i == 0 else "td", line) for i, line in enumerate(table))
    rows = "".join("<tr>" + "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in line) + "</tr>"
                   for tag, line in [head, *body])
    kept = "".join(f"<h2>{escape(line[0])}: {line[-1]} kept of {line[1]}</h2>"
                   f"<div class=rows>{cards((line[0],))}</div>" for line in table[1:-1])
    dropped = "".join(f"<h2>Dropped at {escape(stage)}</h2><div class=rows>"
                      + "".join(cards(place) for place in reasons if place[0] == stage) + "</div>"
                      for stage in dict.fromkeys(stage for stage, _ in reasons))
    return ("<!doctype html><meta charset=utf-8><title>Samples</title>"
            f"<style>{STYLE}</style><h1>Rows to look at</h1><p>Rows left after each stage.</p>"
            f"<div class=wide><table>{rows}</table></div>{kept}{dropped}\n")
