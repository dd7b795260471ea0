"""samples.html: five samples of each benchmark to look at, right, wrong and undecided ones.

No library of templates: one page of one shape is an f-string, and every text in it passes through escape().
"""

from benchmarks.items import Item, image_of
from benchmarks.table import bracket
from tools.pages import escape, thumbnail

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 1100px; margin: auto; padding: 24px }
small, h3, dt { font-weight: normal; font-size: 13px; color: #5a6675; margin: 0 }
article { display: grid; grid-template-columns: 220px 1fr 1fr; gap: 4px 20px; padding: 16px; margin: 12px 0;
  border: 1px solid #dde2e8; border-left: 5px solid #9aa5b1; border-radius: 6px } article > * { min-width: 0 }
article.right { border-left-color: #2c8a57 } article.wrong { border-left-color: #c2453f }
img { max-width: 220px; max-height: 220px } b.boxed { background: #fff1b8 }
pre { font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 2px 0 8px; max-height: 340px; overflow-y: auto }
dl { grid-column: 1 / 4; display: flex; flex-wrap: wrap; gap: 4px 24px; margin: 0 }
dt, dd { display: inline } dd { margin: 0 0 0 6px; font-weight: 600; overflow-wrap: anywhere }
@media (max-width: 760px) { article { display: block } }"""


def sample_card(item: Item, picture: bytes, record: dict) -> str:
    outcome = {1.0: "right", 0.0: "wrong"}.get(record["right"], "undecided")
    facts = {"extracted": record["extracted"] or "nothing", "reference": record["gold"], "score": outcome,
             "by": record["by"], "response": f"{record['status']}, {record['tokens']} tokens", "id": item.id}
    if record["by"] == "undecided":
        del facts["by"]
    # escape() marks a boxed answer; the prompt's empty box is none
    prompt = "\\boxed{}".join(escape(part) for part in record["prompt"].split("\\boxed{}"))
    return (f"<article class='{outcome}'><img src='{thumbnail(picture)}' alt=''>"
            f"<div><h3>prompt</h3><pre>{prompt}</pre></div>"
            f"<div><h3>response</h3><pre>{escape(record['response']) or '(empty)'}</pre></div><dl>"
            + "".join(f"<div><dt>{name}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts.items())
            + "</dl></article>")


def samples_page(parts: list[tuple], model: str, harness: str, temperature: float) -> str:
    """`parts`: (benchmark, items, rows, records, scores) of each benchmark."""
    body, how = "", f"temperature {temperature:g}" if temperature else "greedy"
    for benchmark, items, rows, records, scores in parts:
        head = bracket(scores["numbers"][benchmark.headline])
        body += (f"<h2>{escape(benchmark.title)} <small>{escape(benchmark.headline)} <b>{head}</b>, "
                 f"{scores['n']} samples; licence: {escape(benchmark.licence)}</small></h2>")
        ordered = sorted(range(len(items)), key=lambda i: (records[i]["right"] is None, records[i]["right"]))
        for i in sorted({ordered[k * (len(ordered) - 1) // 4] for k in range(5)}):
            body += sample_card(items[i], image_of(benchmark, rows, items[i]), records[i])
    return (f"<!doctype html><html lang=en><meta charset=utf-8><title>Benchmark samples</title>"
            f"<style>{STYLE}</style><h1>Benchmark samples</h1>"
            f"<p>{escape(model)}, prompts and rules: {harness}, {how}. Holds rows of the benchmarks: mind "
            f"their licences before you pass it on.</p>{body}</html>\n")
