"""Reading FineVision: parquet files on disk, or the hub by streaming; each turn of a conversation is one problem.

Its 185 subsets share the names of columns, but not their order, nor that of the fields inside, nor whether there are
ratings: everything is taken by name.  Names of subsets hold brackets and plus signs, and are never patterns.
"""

import json
import random
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from data import DataError, Query, check_picture

RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
# `facts` is no column of FineVision: the built-in world's sample tells there, one JSON text a turn, what its exact
# verifier has to know.
COLUMNS = ("images", "texts", "facts", *(f"{axis}_ratings" for axis in RATINGS))
PLACEHOLDER = re.compile(r"<\|?(?:image|img)[ _]?(?:pad|\d+)?\|?>|\[(?:image|img)(?:[ _]\d+)?\]", re.IGNORECASE)


def finevision_turns(source: str, seed: int = 0, limit: int | None = None,
                     revision: str | None = None) -> Iterator[tuple[str, dict]]:
    """-> ("subset/file:row", turn), pictures still encoded.  A turn that cannot be read has "bad": why.

    source     folder or file of one subset, folder of subsets, FOLDER:subset,subset or hub/name:subset,subset
    limit      rows of each subset, taken from its files in an order drawn from `seed`
    """
    for subset, where, row in rows_of(source, seed, limit, revision):
        texts = row.get("texts")
        if "bad" in row or not isinstance(texts, list) or not texts:
            yield where, {"id": where, "subset": subset, "bad": row.get("bad", "no texts")}
            continue
        if not all(isinstance(text, dict | None) for text in texts):
            yield where, {"id": where, "subset": subset, "bad": "texts are not pairs of user and assistant"}
            continue
        images = [image.get("bytes") if isinstance(image, dict) else None for image in row.get("images") or []]
        for i, text in enumerate(texts):
            def of_turn(column):
                values = row.get(column)
                return values[i] if isinstance(values, list) and i < len(values) else None

            user, assistant = ((text or {}).get(name) or "" for name in ("user", "assistant"))
            if not isinstance(user, str) or not isinstance(assistant, str):
                yield where, {"id": f"{where}/{i}", "subset": subset, "bad": "texts are not texts"}
                continue
            facts = of_turn("facts")
            ratings = {axis: of_turn(f"{axis}_ratings") for axis in RATINGS}
            yield where, {"id": f"{where}/{i}", "subset": subset, "turn": i, "user": user, "assistant": assistant,
                          "images": images, "ratings": {axis: r for axis, r in ratings.items() if r is not None},
                          "facts": facts_of(facts)}


def facts_of(text) -> dict:
    try:
        facts = json.loads(text) if text else {}
    except (TypeError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def rows_of(source: str, seed: int, limit: int | None, revision: str | None) -> Iterator[tuple[str, str, dict]]:
    """-> (subset, "subset/file:row", row)."""
    files = files_of(source)
    if not files:
        yield from hub_rows(source.rpartition(":")[0], subsets_of(source), seed, limit, revision)
    for subset, paths in files.items():
        if limit:
            random.Random(f"{seed}-{subset}").shuffle(paths)
        for where, row in islice(chain.from_iterable(map(parquet_rows, paths)), limit):
            yield subset, f"{subset}/{where}", row


def subsets_of(source: str) -> list[str]:
    return [] if Path(source).exists() else [name for name in source.rpartition(":")[2].split(",") if name]


def files_of(source: str) -> dict[str, list[Path]]:
    """Subset -> its parquet files; nothing for a data set of the hub."""
    subsets = subsets_of(source)
    place = Path(source.rpartition(":")[0] if subsets else source)
    if not place.exists():
        if subsets and re.fullmatch(r"[\w.-]+/[\w.-]+", str(place)):
            return {}
        raise DataError(f"data not found: {source}")
    alone = place.is_file() or not subsets and any(place.glob("*.parquet"))
    folders = [place] if alone else [place / subset for subset in subsets] or sorted(place.glob("*"))
    files = {f.name.removesuffix(".parquet"): [f] if f.is_file() else sorted(f.glob("*.parquet"))
             for f in folders if alone or not f.is_file()}
    if not subsets:
        files = {subset: paths for subset, paths in files.items() if paths}
    missing = next((subset for subset, paths in files.items() if not paths), None if files else "it")
    if missing:
        raise DataError(f"no parquet files in {place}" + (f"/{missing}" if subsets else ""))
    return files


def parquet_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """-> ("file:row", row), a few rows at a time in memory.  Of a row group that is damaged the rest is bad rows."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{file}: reading parquet files needs: pip install pyarrow") from None
    number = 0
    try:
        with ParquetFile(file, pre_buffer=False) as parquet:
            present = [name for name in COLUMNS if name in parquet.schema_arrow.names]
            if "texts" not in present:
                yield f"{file.name}:0", {"bad": "the file has no column texts"}
                return
            for group in range(parquet.num_row_groups):
                end = number + parquet.metadata.row_group(group).num_rows
                try:
                    for batch in parquet.iter_batches(batch_size=16, columns=present, row_groups=[group]):
                        for row in batch.to_pylist():
                            yield f"{file.name}:{number}", row
                            number += 1
                except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                    why = first_words(error)
                    for number in range(number, end):
                        yield f"{file.name}:{number}", {"bad": f"the file cannot be read ({why})"}
                number = end
    except (pyarrow.ArrowException, OSError) as error:
        yield f"{file.name}:{number}", {"bad": f"the file cannot be read ({first_words(error)})"}


def hub_rows(name: str, subsets: list[str], seed: int, limit: int | None, revision: str | None):
    """The same by streaming.  With a limit the files are shuffled; rows stay in the order of their file."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name}: reading a data set by its id needs: pip install datasets") from None
    for subset in subsets:
        try:
            rows = datasets.load_dataset(name, subset, split="train", streaming=True, revision=revision).decode(False)
            rows = rows.shuffle(seed=seed, buffer_size=1).take(limit) if limit else rows
            for number, row in enumerate(rows):
                yield subset, f"{subset}:{number}", row
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{name}:{subset} cannot be read: {first_words(error)}") from None


def first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def query_of_turn(turn: dict) -> Query:
    """A turn as it is: the question without image placeholders, the answer as the assistant's text gives it."""
    from judges.answers import final_span

    if "bad" in turn:
        raise DataError(turn["bad"])
    if not all(isinstance(image, bytes) for image in turn["images"]):
        raise DataError("a picture is not in the file")
    for image in turn["images"]:
        check_picture(image)
    question, solution = PLACEHOLDER.sub("", turn["user"]).strip(), turn["assistant"].strip()
    answer = final_span(solution)
    for name, value in (("question", question), ("text of the assistant", solution), ("final answer", answer)):
        if not value:
            raise DataError(f"no {name}")
    return Query(turn["id"], turn["images"], question, solution, answer, turn["subset"], turn["facts"])
