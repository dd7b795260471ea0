"""Reads data sets in the shape of FineVision: parquet files on disk, or the hub by streaming.  Each turn of a
conversation is one problem.

    python -m recipe.finevision SOURCE OUT [--limit N] [--seed S] [--revision R]

writes all usable turns, as they are, to OUT/train.jsonl with OUT/images/: what `contextrl.py --data` reads.
A turn that cannot be used is skipped, counted and named.  (The paper's recipe, which cleans, filters and
verifies, is recipe/build.py.)  SOURCE is one of

    FILE.parquet, FOLDER                   one subset
    FOLDER, FOLDER:subset,subset           of folders of parquet files, one for each subset
    hub/name:subset,subset                 streamed with the `datasets` library

Pictures are in a column images, a list for each row, or in a column image.

FineVision's 185 subsets share the names of columns, but not their order, nor that of the fields inside, nor
whether there are ratings: everything is taken by name.  Names of subsets hold brackets and plus signs, and
are never patterns.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

from data import IMAGE_MARK, REPORTED, DataError, Query, open_picture
from judges.answers import final_span
from tools.files import write_whole
from tools.programs import one_line_errors
from tools.tables import hub_rows, parquet_rows

RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
# `facts` is no column of FineVision: a data set of your own may say there, one JSON text a turn, what more
# its verifier has to know.
COLUMNS = ("images", "image", "texts", "facts", *(f"{axis}_ratings" for axis in RATINGS))
PLACEHOLDER = re.compile(r"<\|?(?:image|img)[ _]?(?:pad|\d+)?\|?>|\[(?:image|img)(?:[ _]\d+)?\]",
                         re.IGNORECASE)


def finevision_turns(source: str, seed: int = 0, limit: int | None = None,
                     revision: str | None = None) -> Iterator[tuple[str, dict]]:
    """-> ("subset/file:row", turn), pictures still encoded.  A turn that cannot be read has "bad": why.

    limit      rows of each subset, taken from its files in an order drawn from `seed`
    """
    for subset, where, row in rows_of(source, seed, limit, revision):
        if why := why_unreadable(row):
            yield where, {"id": where, "subset": subset, "bad": why}
            continue
        images = pictures_of(row)
        columns = {name: row[name] for name in COLUMNS if isinstance(row.get(name), list)}
        for i, text in enumerate(row["texts"]):
            name = f"{where}/{i}"
            user, assistant = ((text or {}).get(role) or "" for role in ("user", "assistant"))
            if not isinstance(user, str) or not isinstance(assistant, str):
                yield where, {"id": name, "subset": subset, "bad": "texts are not texts"}
                continue
            of_turn = {column: values[i] for column, values in columns.items() if i < len(values)}
            ratings = {axis: of_turn.get(f"{axis}_ratings") for axis in RATINGS}
            yield where, {"id": name, "subset": subset, "turn": i, "user": user, "assistant": assistant,
                          "images": images, "facts": parse_facts(of_turn.get("facts")),
                          "ratings": {axis: r for axis, r in ratings.items() if r is not None}}


def why_unreadable(row: dict | DataError) -> str:
    """Why no turn of a row can be read, or ""."""
    if isinstance(row, DataError):
        return f"the file cannot be read ({row})"
    texts = row.get("texts")
    if not isinstance(texts, list) or not texts:
        return "no texts"
    if not pictures_of(row):
        for name, value in row.items():
            if isinstance(value, dict) and "bytes" in value:
                return f"a picture in the column {name}, which must be called images or image"
    pairs = all(isinstance(text, dict | None) for text in texts)
    return "" if pairs else "texts are not pairs of user and assistant"


def pictures_of(row: dict) -> list[bytes | None]:
    """Encoded files; None for one that is only named."""
    images = row.get("images") or row.get("image") or []
    files = (image.get("bytes") if isinstance(image, dict) else image
             for image in (images if isinstance(images, list) else [images]))
    return [file if isinstance(file, bytes) else None for file in files]


def parse_facts(text) -> dict:
    try:
        facts = json.loads(text) if text else {}
    except (TypeError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def rows_of(source: str, seed: int, limit: int | None,
            revision: str | None) -> Iterator[tuple[str, str, dict | DataError]]:
    """-> (subset, "subset/file:row", row)."""
    files = files_of(source)
    if not files:
        for subset in subsets_of(source):
            rows = hub_rows(source.rpartition(":")[0], subset, revision, limit, seed)
            yield from ((subset, f"{subset}:{i}", row) for i, row in enumerate(rows))

    def rows_of_file(path: Path) -> Iterator[tuple[str, dict | DataError]]:
        rows = parquet_rows(path, COLUMNS, needed="texts")
        return ((f"{path.name}:{i}", row) for i, row in enumerate(rows))

    for subset, paths in files.items():
        if limit:
            random.Random(f"{seed}-{subset}").shuffle(paths)
        for where, row in islice(chain.from_iterable(map(rows_of_file, paths)), limit):
            yield subset, f"{subset}/{where}", row


def subsets_of(source: str) -> list[str]:
    if ":" not in source or Path(source).exists():
        return []
    return [name for name in source.rpartition(":")[2].split(",") if name]


def files_of(source: str) -> dict[str, list[Path]]:
    """Subset -> its parquet files; nothing for a data set of the hub."""
    subsets = subsets_of(source)
    place = Path(source.rpartition(":")[0] if subsets else source)
    if not place.exists():
        of_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(place))
        if subsets and of_hub:
            return {}
        hint = f"; on the hub? name subsets: {place}:subset,subset" if of_hub else ""
        raise DataError(f"data not found: {source}{hint}")
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


def query_of_turn(turn: dict) -> Query:
    """A turn as it is: the question without image placeholders, the answer as the assistant's text gives
    it."""
    if "bad" in turn:
        raise DataError(turn["bad"])
    if not all(isinstance(image, bytes) for image in turn["images"]):
        raise DataError("a picture is not in the file")
    for image in turn["images"]:
        open_picture(image).close()
    marks = PLACEHOLDER.findall(turn["user"])
    if max(marks.count(IMAGE_MARK), len(set(marks))) > len(turn["images"]):
        raise DataError(f"{len(turn['images'])} images, but {len(marks)} places for them in the text")
    question, solution = PLACEHOLDER.sub("", turn["user"]).strip(), turn["assistant"].strip()
    answer = final_span(solution)
    for text, name in ((question, "question"), (solution, "text of the assistant"), (answer, "final answer")):
        if not text:
            raise DataError(f"no {name}")
    return Query(turn["id"], turn["images"], question, solution, answer, turn["subset"], turn["facts"])


# ------------------------------------------------------------------------------------------------ the program

def write_data(source: str, out: Path, seed: int = 0, limit: int | None = None,
               revision: str | None = None) -> Path:
    """All usable turns as OUT/train.jsonl + images/.  The file gets its name when it is whole; a picture is
    stored once, under the hash of its file."""
    target = out / "train.jsonl"
    if target.exists():
        raise DataError(f"{target} exists already: choose another folder")
    files_of(source)                                       # a wrong name is an error before anything is made
    (out / "images").mkdir(parents=True, exist_ok=True)
    part, ids, images, bad, first_bad = out / "train.part", set(), 0, 0, []
    with open(part, "w", encoding="utf-8", errors="replace") as file:
        for where, turn in finevision_turns(source, seed, limit, revision):
            try:
                query = query_of_turn(turn)
                if query.id in ids:
                    raise DataError(f"id '{query.id}' appears twice")
            except DataError as error:
                bad += 1
                first_bad += [f"{where}: {error}"] if bad <= REPORTED else []
                continue
            ids.add(query.id)
            images += len(query.images)
            query.images = [store_picture(image, out) for image in query.images]
            file.write(json.dumps(asdict(query), ensure_ascii=False) + "\n")
    if not ids:
        part.unlink()
        raise DataError(f"no usable row in {source}: all {bad} are bad, the first: {first_bad[0]}" if bad
                        else f"data set is empty: {source}")
    part.rename(target)
    if bad:
        print(*(f"skipped {problem}" for problem in first_bad),
              f"{bad} bad rows skipped, {len(ids)} read from {source}", sep="\n", file=sys.stderr)
    print(f"wrote {target}: {len(ids)} queries, {images} images; python data.py {target} says what is in it")
    return target


def store_picture(image: bytes, out: Path) -> str:
    """Writes the encoded file as it is -> its path relative to `out`."""
    with open_picture(image) as picture:
        ending = (picture.format or "picture").lower()
    name = f"images/{hashlib.sha256(image).hexdigest()[:32]}.{ending}"
    if not (out / name).exists():
        write_whole(out / name, image)
    return name


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipe.finevision", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--limit", type=positive, help="rows to read of each subset; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the order of files with --limit")
    parser.add_argument("--revision", help="of the hub's data set")
    args = parser.parse_args()
    with one_line_errors():
        write_data(args.source, args.out, args.seed, args.limit, args.revision)


if __name__ == "__main__":
    main()
