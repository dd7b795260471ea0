"""Near copies: 64-bit perceptual hashes of pictures, 8-grams of questions, and both of a folder of
benchmarks."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data import DataError, json_lines, read_picture
from tools.tables import image_bytes, parquet_rows

COSINES = np.cos(np.pi / 64 * np.outer(np.arange(8), np.arange(1, 64, 2)))         # first rows of a DCT of 32


def perceptual_hash(picture: Image.Image) -> int:
    """64 bits: which of the 8 x 8 lowest frequencies of the grey picture are above their median."""
    grey = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.BOX), dtype=np.float64)
    low = np.round(COSINES @ grey @ COSINES.T, 3).ravel()        # of a flat picture noise would be left
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


class HashIndex:
    """Finds hashes within `distance` bits.  Split into distance + 1 parts, two such hashes have one part in
    common, so only those of the same part have to be compared."""

    def __init__(self, distance: int):
        self.distance, self.known = distance, defaultdict(list)
        self.bounds = [64 * i // (distance + 1) for i in range(distance + 2)]

    def parts(self, value: int, group: int) -> Iterator[int]:
        for i, (low, high) in enumerate(zip(self.bounds, self.bounds[1:])):
            yield hash((group, i, value >> low & (1 << high - low) - 1))

    def add(self, value: int, group: int = 0) -> None:
        for part in self.parts(value, group):
            self.known[part].append(value)

    def has(self, value: int, group: int = 0) -> bool:
        return any((value ^ other).bit_count() <= self.distance
                   for part in self.parts(value, group) for other in self.known.get(part, ()))


def hash_of_text(text: str) -> int:
    """64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def grams(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    return {hash_of_text(" ".join(words[i:i + 8])) for i in range(len(words) - 7)}


def benchmark_files(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".parquet", ".jsonl"))
    if not files:
        raise DataError(f"no parquet or JSONL files of benchmarks in {folder}")
    other = next((f for f in sorted(folder.rglob("*")) if f.suffix in (".tsv", ".json", ".csv", ".zip")),
                 None)
    if other:
        raise DataError(f"benchmark {other} is neither parquet nor JSONL: convert it or take it away")
    return files


def benchmark_rows(folder: Path) -> Iterator[tuple[Path, dict]]:
    for file in benchmark_files(folder):
        try:
            if file.suffix == ".jsonl":
                yield from ((file, json.loads(line)) for _, line in json_lines(file))
                continue
            for row in parquet_rows(file):
                if isinstance(row, DataError):
                    raise row
                yield file, row
        except (ValueError, OSError) as error:           # half a benchmark would let its other half through
            raise DataError(f"benchmark {file} cannot be read: {error}") from None


def benchmark_index(folder: Path, distance: int, clean: Callable) -> tuple[HashIndex, set[int], dict]:
    """-> (hashes of all pictures, 8-grams of all questions, what was found).  Columns go by their usual
    names; a picture is bytes, {bytes, path}, a path beside the file, base64, or a list of them."""
    pictures, questions, files = HashIndex(distance), set(), defaultdict(Counter)
    for file, row in benchmark_rows(folder):
        if not isinstance(row, dict):
            raise DataError(f"benchmark {file}: a row must be an object")
        counts = files[str(file.relative_to(folder))]
        counts["rows"] += 1
        values = next((row[name] for name in ("decoded_image", "image", "images", "bytes", "image_path")
                       if row.get(name)), [])
        for value in values if isinstance(values, list) else [values]:
            try:
                pictures.add(perceptual_hash(read_picture(image_bytes(value, file.parent))))
                counts["pictures"] += 1
            except DataError:
                counts["pictures that cannot be read"] += 1
        names = ("question", "reasoning_q", "query", "problem", "prompt")
        text = next((row[name] for name in names if row.get(name)), "")
        questions |= grams(clean(str(text)))
        counts["questions"] += bool(text)
    for file, counts in files.items():           # half a benchmark would let its other half through
        if not counts["pictures"] or not counts["questions"] or counts["pictures that cannot be read"]:
            raise DataError(f"benchmark {folder / file}: {dict(counts)}, is there a column image and a "
                            "question?")
    return pictures, questions, {file: dict(counts) for file, counts in files.items()}
