"""What a build looks like: the table of what each stage left, and one page of rows to look at."""

import base64
import html
import io
from collections import Counter
from pathlib import Path

from PIL import Image

from data import read_picture


def funnel(read: Counter, lost: Counter, stages: list[str]) -> list[list]:
    """A line for each subset: rows left after each stage."""
    table = [["subset", "turns", *stages]]
    for subset in sorted(read):
        line = [read[subset]]
        for stage in stages:
            line.append(line[-1] - lost[subset, stage])
        table.append([subset, *line])
    return [*table, ["all", *map(sum, zip(*(line[1:] for line in table[1:])))]]


def markdown(table: list) -> str:
    head, *body = ("| " + " | ".join(str(value).replace("|", "\\|") for value in line) + " |" for line in table)
    return "\n".join([head, "|" + " --- |" * len(table[0]), *body])


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
h2 { margin: 2em 0 .6em; border-bottom: 1px solid #ddd } table { border-collapse: collapse; font-size: 13px }
td, th { padding: .25em .7em; border-bottom: 1px solid #e4e4e4; text-align: right; font-weight: normal }
th { color: #666 } td:first-child, th:first-child { text-align: left } tr:last-child td { font-weight: 600 }
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1em }
.row { border: 1px solid #ddd; border-radius: 6px; padding: .8em; overflow-wrap: anywhere }
.row img { display: block; max-width: 100%; max-height: 220px; margin: 0 auto .7em }
pre { white-space: pre-wrap; font: inherit; margin: .3em 0; max-height: 16em; overflow: auto }
small { color: #777 } .why { color: #a33; font-weight: 600 } .wide { overflow-x: auto }"""


def samples_page(out: Path, table: list[list], reasons: list[tuple], page: dict) -> str:
    """A page without other files: rows to look at before anything is trained on them.

    `page`: (number, id, row) of some rows of each subset, under (subset,), and of each reason, under (stage, why).
    """
    def cell(value) -> str:
        return html.escape(str(value))

    def card(row: dict) -> str:
        kind = row.get("solution_kind", "")
        note = f"{kind} solution, solved {row['solved']} times; {row['licence']}" if kind and "why" not in row else ""
        return ('<div class="row">' + "".join(f'<img src="{thumbnail(out / image)}">' for image in row["images"])
                + (f'<div class="why">{cell(row["why"])}</div>' if "why" in row else "")
                + "".join(f"<pre><small>{name}</small> {cell(row[name])}</pre>"
                          for name in ("question", "solution", "answer") if row[name])
                + f"<small>{cell(row['id'])}<br>{cell(note)}</small></div>")

    def cards(place: tuple) -> str:
        return "".join(card(row) for *_, row in sorted(page[place], reverse=True, key=lambda item: item[:2]))

    head, *body = (("th" if i == 0 else "td", line) for i, line in enumerate(table))
    rows = "".join("<tr>" + "".join(f"<{tag}>{cell(value)}</{tag}>" for value in line) + "</tr>"
                   for tag, line in [head, *body])
    kept_ = "".join(f"<h2>{cell(line[0])}: {line[-1]} kept of {line[1]}</h2><div class=rows>{cards((line[0],))}</div>"
                    for line in table[1:-1])
    lost = "".join(f"<h2>Dropped at {cell(stage)}</h2><div class=rows>"
                   + "".join(cards(place) for place in reasons if place[0] == stage) + "</div>"
                   for stage in dict.fromkeys(stage for stage, _ in reasons))
    return (f"<!doctype html><meta charset=utf-8><title>Samples</title><style>{STYLE}</style><h1>Rows to look at</h1>"
            f"<p>Rows left after each stage.</p><div class=wide><table>{rows}</table></div>{kept_}{lost}\n")


def thumbnail(path: Path) -> str:
    picture, file = read_picture(str(path)), io.BytesIO()
    picture.thumbnail((440, 440), Image.Resampling.LANCZOS)
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
