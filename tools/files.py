"""Files: atomic writes, and JSONL files that are read row by row.

`data.json_lines` and `data.json_row` read files of users, where any row may be bad; `read_rows` reads files
of this project, where only the last line can be incomplete.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data import DataError


def write_whole(file: Path, content: str | bytes) -> None:
    """Atomic write: a temporary file is renamed, so a reader sees the old file or the new one."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    os.replace(beside, file)


def write_rows(file: Path, rows: Iterable[dict]) -> None:
    """Writes a JSONL file atomically."""
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_rows(file: Path, rows: Iterable[dict]) -> None:
    """Appends rows in one write, so that lines of several threads do not mix."""
    with open(file, "a", encoding="utf-8", errors="replace") as out:
        out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(file: Path, *names: str) -> Iterator[dict]:
    """Rows of a JSONL file of this project; each has the keys `names`.  A last line without a newline is what
    a killed run was writing: it is skipped.  Any other line that is no such row raises DataError."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                raise DataError(f"{file}:{number}: not a JSON object") from None
            if not isinstance(row, dict) or not row.keys() >= set(names):
                raise DataError(f"{file}:{number}: not a row with {', '.join(names)}" if names else
                                f"{file}:{number}: not a JSON object")
            yield row


def read_json(file: Path, default: dict | None = None) -> dict:
    """One JSON object; `default`, if given, when there is no such file."""
    if default is not None and not file.is_file():
        return default
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file} ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise DataError(f"{file}: not a JSON object")
    return value


def model_digest(model: str) -> str:
    """Which weights: of a folder names, sizes, and the first and last megabyte of every weight file; a hub id
    as it is."""
    if not Path(model).is_dir():
        return model
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(model).glob("*.safetensors")):
        with open(file, "rb") as weights:
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + weights.read(1 << 20))
            weights.seek(max(0, file.stat().st_size - (1 << 20)))
            digest.update(weights.read())
    return digest.hexdigest()
