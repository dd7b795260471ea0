"""A small data set in the shape of FineVision, with its faults: recipe/ can be tried without a download."""

import io
import json
import random
from pathlib import Path

from PIL import Image

from data import Query
from toy.world import HIDDEN, draw_problem, make_query, render, solve


def finevision_sample(folder: Path, size: int = 24) -> None:
    """Writes three subsets that have the irregularities of the real ones: several turns for one picture,
    phrases of the source data sets, fields in another order, ratings in some subsets only, duplicate and
    broken rows.

    `size`: valid rows of each subset.  FineVision has no column `facts`: the exact verifier needs it.
    """
    def conversation(queries: list[Query], texts: list[tuple[str, str]], **more) -> dict:
        return {"images": [{"bytes": queries[0].images[0], "path": None}],
                "facts": [json.dumps(query.facts | {"licence": "MIT (built-in world)"}) for query in queries],
                "texts": [{"user": user, "assistant": assistant} for user, assistant in texts], **more}

    # Worked solutions, two turns for every third picture, ratings.
    rows = []
    for i in range(size):
        rng = random.Random(f"sample-worked-{i}")
        families = (("hard", "ordinary")[i % 2], "ordinary")[:2 if i % 3 == 0 else 1]
        problems = [draw_problem(family, rng) for family in families]
        image = render(problems[0].scene, rng)
        for problem in problems:
            problem.scene = problems[0].scene
        facts = [problem.facts(HIDDEN) for problem in problems]
        queries = [Query("", [image], p.question, solve(f), "", facts=f) for p, f in zip(problems, facts)]
        rows.append(conversation(queries, [(f"<image>\n{q.question}", q.solution) for q in queries],
                                 ratings=[5] * len(queries)))
    rows[1]["ratings"] = [2]
    with Image.open(io.BytesIO(rows[3]["images"][0]["bytes"])) as picture:     # a duplicate, re-encoded
        file = io.BytesIO()
        picture.resize((120, 120)).save(file, "JPEG", quality=80)
    rows.append(rows[3] | {"images": [{"bytes": file.getvalue(), "path": "copy.jpg"}]})
    write_subset(folder / "toy_worked", rows)

    # Multiple choice, in the prompt formats of two families of sources; no ratings; assistant before user.
    rows = []
    for i in range(size):
        query, rng = make_query("ordinary", i, "choices", "canonical"), random.Random(i)
        values = rng.sample([v for v in range(28) if v != int(query.answer)], 3)
        values.insert(rng.randrange(4), int(query.answer))
        right = "ABCD"[values.index(int(query.answer))]
        if i % 2:
            user = ("Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, "
                    f"D, at the end.\nQuestion: {query.question}\nChoices:\n")
            user += "\n".join(f"({name}) {value}" for name, value in zip("ABCD", values))
            assistant = f"The answer is {right}"
        else:
            user = ("First perform reasoning, then finally select the question from the choices in the "
                    f"following format: Answer: xxx.\nQuestion:{query.question}\nChoices:\n")
            user += "\n".join(f"{name}:{value}" for name, value in zip("ABCD", values))
            steps = query.solution.split(" ; \\boxed")[0]
            assistant = f"{steps}\nTherefore, the answer is: {right}.\nAnswer:{right}"
        rows.append(conversation([query], [(f"[image] {user}", assistant)]))
    write_subset(folder / "toy_choices(mathv360k)", rows, ("assistant", "user"))

    # Short answers, for which a teacher has to write solutions; the last six rows are broken.
    rows = []
    for i in range(size + 6):
        query = make_query(("ordinary", "shortcut")[i % 2], i, "short", "half")
        user = f"<image_1>{query.question}\nAnswer the question using a single word or phrase."
        rows.append(conversation([query], [(user, f"{query.answer}.")], ratings=[4] if i % 2 else []))
    broken = rows[-1]["images"][0]["bytes"]
    rows[-1]["images"] = [{"bytes": broken[:len(broken) // 2], "path": None}]
    rows[-2]["images"] *= 2
    rows[-3]["images"] = []
    rows[-4]["images"] = [{"bytes": None, "path": "elsewhere.png"}]
    rows[-5]["texts"] = [{"user": "<image> What does it show ?",
                          "assistant": "It shows many things of many kinds."}]
    rows[-6]["texts"] = []
    write_subset(folder / "toy_short+vqa", rows)


def write_subset(folder: Path, rows: list[dict], fields: tuple[str, str] = ("user", "assistant")) -> None:
    """Writes one parquet file with the column types of FineVision; `fields` is the order within a turn."""
    import pyarrow
    from pyarrow.parquet import write_table

    folder.mkdir(parents=True, exist_ok=True)
    text = pyarrow.struct([(name, pyarrow.string()) for name in fields])
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"images": ([r["images"] for r in rows], image), "texts": ([r["texts"] for r in rows], text),
               "facts": ([r["facts"] for r in rows], pyarrow.string())}
    if "ratings" in rows[0]:
        columns |= {f"{axis}_ratings": ([r["ratings"] for r in rows], pyarrow.int64()) for axis in
                    ("relevance", "image_correspondence", "visual_dependency", "formatting")}
    table = {name: pyarrow.array(values, pyarrow.list_(kind)) for name, (values, kind) in columns.items()}
    table["source"] = pyarrow.array([folder.name] * len(rows))
    write_table(pyarrow.table(table), folder / "train-00000-of-00001.parquet", row_group_size=8)
