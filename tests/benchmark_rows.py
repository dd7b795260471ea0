"""Rows with the columns of the real data sets, all made here: no row of a benchmark is in this repository."""

import base64
import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from benchmarks.items import texts
from benchmarks.table import BENCHMARKS


def png(seed: int = 0, size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def picture(seed: int) -> dict:
    return {"bytes": png(seed), "path": f"{seed}.jpg"}


def base64_picture(seed: int) -> str:
    return base64.b64encode(png(seed)).decode()


def mmstar(i):
    return {"index": i, "question": "How many red ?\nOptions: A: one, B: two, C: three, D: four",
            "image": picture(i), "answer": "ABCD"[i % 4], "category": "math", "l2_category": f"kind {i % 2}",
            "meta_info": {"source": "s", "split": "val", "image_path": "p"}}


def simplevqa(i):
    return {"data_id": i, "image": base64_picture(i), "image_description": "",
            "language": "EN" if i % 2 else "CN", "question": "how many red ?", "answer": "3",
            "original_category": "c", "source": "u", "atomic_question": "q", "atomic_fact": "f",
            "vqa_category": "{}"}


def hallusionbench(i):
    return {"category": "VD", "subcategory": "chart", "visual_input": "1", "set_id": str(i // 4),
            "figure_id": str(i // 2 % 2), "sample_note": "", "question_id": str(i % 2),
            "question": "Is it red ?", "gt_answer_details": "it is", "gt_answer": str(i % 2),
            "filename": "f.png", "image": picture(i)}


def hrbench8k(i):
    options = np.roll(["one", "two", "three", f"number {i // 4}"], i % 4).tolist()
    return {"index": i, "question": "how many red ?", "answer": "ABCD"[i % 4],
            "category": "single" if i // 4 % 2 else "cross", **dict(zip("ABCD", options)),
            "cycle_category": f"cycle_{i % 4}", "image": base64_picture(i // 4)}


def mme_realworld_lite(i):
    return {"index": i, "bytes": base64_picture(i), "question": "how many red ?",
            "multi-choice options": ["(A) one", "(B) two", "(C) three", "(D) four", "(E) not in the image"],
            "answer": "ABCDE"[i % 5], "l2-category": "x",
            "category": ["Perception/Monitoring", "Reasoning/OCR_with_Complex_Context"][i % 2]}


def mathverse(i):
    versions = ["Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"]
    multi = i // 5 % 2 == 0
    question = "how many red ?\nChoices:\nA:40°\nB:50°\nC:60°\nD:70°" if multi else "how many red ?"
    return {"sample_index": str(i), "problem_index": str(i // 5), "problem_version": versions[i % 5],
            "question": question if i % 5 < 4 else "", "image": picture(i), "answer": "B" if multi else "3",
            "question_type": "multi-choice" if multi else "free-form",
            "metadata": {"split": "testmini", "source": "s", "subject": "plane", "subfield": "angle"},
            "query_wo": "Please directly answer.\n" + question, "question_for_eval": question,
            "query_cot": "Please first conduct reasoning.\nQuestion: " + question}


def mathvista(i):
    kinds = [("multi_choice", "text", ["red", "blue"], "blue", None),
             ("free_form", "integer", None, "3", None),
             ("free_form", "float", None, "1.25", 2.0), ("free_form", "list", None, "[1, 2]", None)]
    question_type, answer_type, choices, answer, precision = kinds[i % 4]
    return {"pid": str(i), "question": "how many red ?", "image": "images/1.jpg",
            "decoded_image": picture(i), "choices": choices, "unit": None, "precision": precision,
            "answer": answer, "question_type": question_type, "answer_type": answer_type,
            "metadata": {"task": "t", "skills": ["s"]},
            "query": "Hint: Please answer the question.\nQuestion: how many red ?"}


def logicvista(i):
    return {"id": str(i),
            "question": "Which ? Select from A, B, C and D. (A) one (B) two (C) three (D) four",
            "answer": "A, C" if i % 2 else "B", "reasoning": "r", "image": picture(i), "skill": "numerical",
            "broad_capability": "b", "specific_capability": "s", "imagesource": "", "sourcelink": "",
            "liscenced": ""}


def wemath(i):
    key = ["2steps_1", "2steps_2", "2steps_multi", "3steps_1", "3steps_2", "3steps_3", "3steps_multi"][i % 7]
    return {"ID": f"{key[0]}-{i // 7}", "split": "testmini", "knowledge concept": "k",
            "question": "how many red ?", "option": "A. 1; B. 2; C. 3; D. 4; E. No correct answer",
            "answer": "C", "key": key, "question number": i, "knowledge concept description": "d",
            "image_path": picture(i)}


def charxiv_rq(i):
    answers = {1: "Joint-CNN", 2: "red", 3: "94", 4: "2"}
    more = {f"descriptive_{c}{n}": "x" for c in "qa" for n in range(1, 5)}
    return {"image": picture(i), "category": "cs", "year": "23", "original_figure_path": "p",
            "original_id": f"id{i}", "figure_path": f"images/{i}.jpg", "num_subplots": 1, "subplot_row": 0,
            "subplot_col": 0, "subplot_loc": "", **more, "reasoning_q": "how many red ?",
            "reasoning_q_source": 3, "reasoning_a": answers[i % 4 + 1], "reasoning_a_type": i % 4 + 1}


def dynamath(i):
    kinds = [("float", "3.142"), ("multiple choice", "B"), ("text", "odd")]
    return {"id": str(i // 10), "question": "how many red ? A: one B: two", "image": "p.png",
            "decoded_image": picture(i), "ground_truth": kinds[i // 10 % 3][1],
            "answer_type": kinds[i // 10 % 3][0], "subject": "algebra", "knowledge_level": "high school",
            "variant": str(i % 10 + 1)}


ROWS = {make.__name__: make
        for make in (simplevqa, mmstar, hallusionbench, hrbench8k, mme_realworld_lite, mathverse,
                     mathvista, logicvista, wemath, charxiv_rq, dynamath)}
SIZES = dict.fromkeys(ROWS, 4) | {"hrbench8k": 8, "wemath": 7, "dynamath": 30, "mathverse": 10,
                                  "mme_realworld_lite": 5}


def write_data(name: str, folder: Path, size: int = 0, change=lambda row: row) -> Path:
    """Parquet as on the hub: pictures as the Image feature; DynaMath in one file per variant, without that
    column."""
    rows = [change(ROWS[name](i)) for i in range(size or SIZES[name])]
    image = BENCHMARKS[name].image
    files = {f"{name}.parquet": rows}
    if name == "dynamath":
        files = {f"dynamath/sample_variant{v}-00000-of-00001.parquet":
                 [{k: x for k, x in row.items() if k != "variant"} for row in rows
                  if row["variant"] == str(v)]
                 for v in range(1, 11)}
    for file, part in files.items():
        data = datasets.Dataset.from_list(part)
        if image in part[0] and isinstance(part[0][image], dict):
            data = data.cast_column(image, datasets.Image())
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(folder / file)
    return folder


def item_of(name: str, i: int = 0, **changes):
    item = BENCHMARKS[name].item(texts(ROWS[name](i) | changes))
    item.unit = item.unit or item.id
    return item
