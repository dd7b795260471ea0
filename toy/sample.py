"""A small data set in the shape of FineVision, faults and all: what recipe/ is tried on without a
download."""

import io
import json
import random
from pathlib import Path

from PIL import Image

from data import Query
from toy.world import HIDDEN, draw_problem, make_query, render, solve


def finevision_sample(folder: Path, size: int = 24) -> None:
    """Three subsets in the shape of FineVision, with what real ones are known for: several turns for a
    picture, the phrases of their sources, fields in another order, ratings here and none there, double and
    bad rows.

    `size`: sound rows of each subset.  Only the column `facts` is ours: it is for the exact verifier.
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
        queries = []
        for problem in problems:
            facts = problem.facts(HIDDEN)
            queries.append(Query("", [image], problem.question, solve(facts), "", facts=facts))
        rows.append(conversation(queries, [(f"<image>\n{q.question}", q.solution) for q in queries],
                                 ratings=[5] * len(queries)))
    rows[1]["ratings"] = [2]
    with Image.open(io.BytesIO(rows[3]["images"][0]["bytes"])) as picture:  # the same picture in another file
        file = io.BytesIO()
        picture.resize((120, 120)).save(file, "JPEG", quality=80)
    rows.append(rows[3] | {"images": [{"bytes": file.getvalue(), "path": "copy.jpg"}]})
    write_subset(folder / "toy_worked", rows)

    # Options to choose from, in the words of two families of sources; no ratings; assistant before user.
    rows = []
    for i in range(size):
        query, rng = make_query("ordinary", i, "choices", "canonical"), random.Random(i)
        values = rng.sample([v for v in range(28) if v != int(query.answer)], 3)
        values.insert(rng.randrange(4), int(query.answer))
        right = "ABCD"[values.index(int(query.answer))]
        if i % 2:
            user = ("Hint: Please answer the question and provide the correct option letter, "
                    f"e.g., A, B, C, D, at the end.\nQuestion: {query.question}\nChoices:\n")
            user += "\n".join(f"({name}) {value}" for name, value in zip("ABCD", values))
            assistant = f"The answer is {right}"
        else:
            user = ("First perform reasoning, then finally select the question from the choices "
                    f"in the following format: Answer: xxx.\nQuestion:{query.question}\nChoices:\n")
            user += "\n".join(f"{name}:{value}" for name, value in zip("ABCD", values))
            steps = query.solution.split(" ; \\boxed")[0]
            assistant = f"{steps}\nTherefore, the answer is: {right}.\nAnswer:{right}"
        rows.append(conversation([query], [(f"[image] {user}", assistant)]))
    write_subset(folder / "toy_choices(mathv360k)", rows, ("assistant", "user"))

    # Short answers, which need a teacher; and rows that no one can use.
    queries = [make_query(("ordinary", "shortcut")[i % 2], i, "short", "half") for i in range(size + 6)]
    rows = []
    for i, query in enumerate(queries):
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
    """One parquet file, typed as FineVision's."""
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
