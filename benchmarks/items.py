"""Rows of a benchmark become items: read from local files or the hub, checked, pictures left encoded.

A column that is missing, a reference answer that is none of the options and a group that lacks a member are
errors of one line: each of them would make scores wrong without anybody noticing.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data import DataError, json_lines
from tools.programs import first_line
from tools.tables import image_bytes, import_datasets

MAX_ODD_SHARE = 0.02                            # of rows whose reference answer is none of the options


@dataclass
class Item:
    """One question.  Its picture stays in the data until it is needed: HRBench8K alone has 3 GB of them."""

    id: str                                     # unique within the benchmark
    question: str                               # as a judge reads it
    gold: str
    prompt: str                                 # what the policy reads, "ours"
    harness_prompt: str                         # ... "vlmevalkit"
    options: dict = field(default_factory=dict)     # letter -> text
    kind: str = ""                              # of the answer, where a benchmark has several
    unit: str = ""                              # rows that are resampled and limited as one; "" = id
    member: str = ""                            # which row of its unit
    keys: dict = field(default_factory=dict)    # what numbers are grouped by
    row: int = 0


@dataclass
class Score:
    """What the rules say of one response.  right None: only a judge can tell."""

    extracted: str                              # the answer that was found; "" = none: unparsed
    right: float | None


@dataclass
class Benchmark:
    name: str                                   # of files and flags
    title: str
    area: str                                   # perception, reasoning
    hub: tuple[str, str | None, tuple[str, ...]]    # data set id, configuration, splits
    columns: tuple[str, ...]                    # needed, the picture's too
    image: str                                  # the picture's column
    rows: int                                   # of the whole benchmark
    licence: str
    item: Callable[[dict], Item]                # of texts(row)
    score: Callable[[Item, str, str], Score]    # (item, response, harness)
    numbers: Callable[[list[dict]], dict]       # records -> name: parts (see aggregate.py)
    headline: str                               # the number that stands for the benchmark
    paper: dict                                 # the paper's columns -> scores of its three models (table.py)
    rules: Callable[[Item], str] | None = None  # what a judge is told besides; None: no judge in "ours"
    units: int = 0                              # a score over fewer is none, if given
    group_size: Callable[[Item], int] | None = None     # members that an item's unit must have


# ----------------------------------------------------------------------------------------------------- rows

def load_rows(benchmark: Benchmark, data_dir: str | None = None) -> Sequence[dict]:
    """Rows, pictures not decoded: of DIR/<name>*.parquet or .jsonl (or in DIR/<name>/), else of the hub."""
    title, name, (repository, config, splits) = benchmark.title, benchmark.name, benchmark.hub
    if data_dir is None:
        failure = f"{title}: cannot load {repository} (local files: --data_dir)"
        return concatenate(benchmark, [
            read_table(benchmark, repository, variant_of(split), failure, repository, config, split=split)
            for split in splits])
    beside, inside = (
        sorted(file for file in Path(data_dir).glob(pattern) if file.suffix in (".parquet", ".jsonl"))
        for pattern in (f"{name}*", f"{name}/**/*"))
    files = beside or inside
    if not files:
        raise DataError(f"{title}: no {name}*.parquet or {name}*.jsonl in {data_dir}")
    if beside and inside:
        raise DataError(f"{title}: both {beside[0]} and {inside[0]}; which is meant?")
    if len({file.suffix for file in files}) > 1:
        raise DataError(f"{title}: both parquet and JSONL in {data_dir}; which is meant?")
    if files[0].suffix == ".jsonl":
        return check_columns(benchmark, [row for file in files for row in jsonl_rows(file)], files[0])
    return concatenate(benchmark, [
        read_table(benchmark, file, variant_of(file.name), f"{file}: cannot be read as parquet", "parquet",
                   data_files=[str(file)], split="train") for file in files])


def variant_of(name: str) -> dict:
    """DynaMath has its ten variants as ten splits without a column that tells which."""
    variant = re.search(r"variant(\d+)", name)
    return {"variant": variant[1]} if variant else {}


def read_table(benchmark: Benchmark, where, variant: dict, failure: str, *source, **more):
    """One file, or split of the hub, with columns checked; `source` and `more` are for `datasets`."""
    datasets = import_datasets(where)
    try:
        table = datasets.load_dataset(*source, **more)
    except Exception as error:                  # of four libraries, none of them ours
        raise DataError(f"{failure} ({type(error).__name__}: {first_line(error)[:200]})") from None
    for column, value in variant.items():
        if column not in table.column_names:
            table = table.add_column(column, [value] * len(table))
    return check_columns(benchmark, table, where)


def concatenate(benchmark: Benchmark, tables: list):
    datasets = import_datasets(benchmark.title)
    try:
        rows = datasets.concatenate_datasets(tables)
    except (ValueError, TypeError) as error:
        raise DataError(f"{benchmark.title}: its files have columns of different types "
                        f"({first_line(error)[:200]})") from None
    if isinstance(rows.features.get(benchmark.image), datasets.Image):
        rows = rows.cast_column(benchmark.image, datasets.Image(decode=False))
    return rows


def jsonl_rows(file: Path) -> Iterator[dict]:
    variant = variant_of(file.name)
    for where, line in json_lines(file):
        try:
            yield variant | json.loads(line) | {"_folder": str(file.parent), "_where": where}
        except (ValueError, TypeError, RecursionError):
            raise DataError(f"{where}: not a JSON object") from None


def check_columns(benchmark: Benchmark, rows, where):
    """The same rows; a column that is missing, or has another name, is one line that names it."""
    if not len(rows):
        raise DataError(f"{benchmark.title}: {where} is empty")
    for row in rows if isinstance(rows, list) else [dict.fromkeys(rows.column_names)]:
        missing = [name for name in benchmark.columns if name not in row]
        if missing:
            others = ", ".join(sorted(name for name in row if not name.startswith("_")))
            raise DataError(f"{benchmark.title}: {row.get('_where', where)} has no column '{missing[0]}'; "
                            f"it has {others}")
    return rows


def without_pictures(benchmark: Benchmark, rows: Sequence[dict]) -> Sequence[dict]:
    return rows if isinstance(rows, list) else rows.remove_columns(benchmark.image)


# ---------------------------------------------------------------------------------------------------- items

def texts(row: dict) -> dict:
    """Values as stripped text, None as ""; lists stay lists."""
    return {name: value if isinstance(value, list) else "" if value is None else str(value).strip()
            for name, value in row.items()}


def load_items(benchmark: Benchmark, rows: Sequence[dict], limit: int = 0) -> list[Item]:
    """Items of the first `limit` units (0: of all).  A unit that lacks a member is an error."""
    items, times, units, odd = [], Counter(), {}, []
    for i, row in enumerate(without_pictures(benchmark, rows)):
        where = f"{benchmark.title}, row {i}"
        try:
            item = benchmark.item(texts(row))
        except (KeyError, ValueError, TypeError, AttributeError, SyntaxError) as error:
            raise DataError(f"{where}: {type(error).__name__}: {error}") from None
        item.row = i
        if not item.gold:
            raise DataError(f"{where}: no reference answer")
        lettered = item.options and item.kind in ("", "letter")
        if lettered and not set(item.gold.split(", ")) <= set(item.options):
            odd.append(f"{where}: the reference answer {item.gold[:80]!r} is none of the options "
                       f"{', '.join(item.options)}")
        times[item.id] += 1
        if times[item.id] > 1:
            if benchmark.group_size:
                raise DataError(f"{where}: id '{item.id}' appears twice")
            item.id += f" ({times[item.id]})"              # elsewhere it is only a name
        item.unit = item.unit or item.id
        units.setdefault(item.unit, []).append(item)
        items.append(item)
    if len(odd) > MAX_ODD_SHARE * len(items):
        raise DataError(f"{odd[0]}; {len(odd)} of {len(items)} rows are like that")
    if odd:
        print(f"{odd[0]}; {len(odd)} such rows, which can only be scored wrong", file=sys.stderr)
    for unit, group in units.items() if benchmark.group_size else ():
        members, size = {item.member for item in group}, benchmark.group_size(group[0])
        if len(members) != size:
            raise DataError(f"{benchmark.title}: group '{unit[:80]}' has {len(members)} of {size} members "
                            f"({', '.join(sorted(members))}): its score would be wrong")
    if limit:
        chosen = set(list(units)[:limit])
        return [item for item in items if item.unit in chosen]
    if benchmark.units and len(units) != benchmark.units:
        raise DataError(f"{benchmark.title}: {len(units)} of {benchmark.units} groups; "
                        "for a part of it use --limit")
    return items


# ------------------------------------------------------------------------------------------------- pictures

def image_of(benchmark: Benchmark, rows: Sequence[dict], item: Item) -> bytes:
    try:
        row = rows[item.row]
        return image_bytes(row[benchmark.image], row.get("_folder", "."))
    except DataError as error:
        raise DataError(f"{benchmark.title}, item {item.id}: {error}") from None
