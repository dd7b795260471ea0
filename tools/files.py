"""Files: atomic writes, JSONL files that are read row by row, a lock on a folder, digests of content.

`data.json_lines` and `data.json_row` read files of users, where any row may be bad; `read_rows` reads files
of this project, where only the last line can be incomplete.
"""

import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from data import DataError
from tools.programs import CannotWrite

NO_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def writing(what: object) -> Iterator[None]:
    """A full disk, or one that cannot be written, is CannotWrite: one line that names what was written.  A
    place where nothing can be written is bad input."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = 2 if getattr(error, "errno", None) in NO_PLACE else 3
        raise CannotWrite(f"cannot write {what}: {getattr(error, 'strerror', None) or error}", code) from None


def write_whole(file: Path, content: str | bytes) -> None:
    """Atomic write: a temporary file is renamed, so a reader sees the old file or the new one."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with writing(file):
            beside.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
            os.replace(beside, file)
    except CannotWrite:
        beside.unlink(missing_ok=True)
        raise


def write_rows(file: Path, rows: Iterable[dict]) -> None:
    """Writes a JSONL file atomically."""
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_rows(file: Path, rows: Iterable[dict]) -> None:
    """Appends rows in one write, so that lines of several threads do not mix."""
    with writing(file), open(file, "a", encoding="utf-8", errors="replace") as out:
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


def lock_folder(folder: Path, whose: str) -> IO:
    """The folder is this process's until the returned file is closed or the process ends, however it ends."""
    file = open(folder / "lock", "a")                                       # noqa: SIM115, the caller's
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"another {whose} is at work in {folder}") from None
    except OSError as error:
        print(f"no lock on {folder} ({error.strerror}): nothing keeps a second {whose} out", file=sys.stderr)
    return file


def digest_of(*parts: str | bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode("utf-8", "replace"))
        digest.update(b"\0")
    return digest.hexdigest()


def weights_digest(model: str) -> str:
    """Which weights: of a folder names, sizes, and the first and last megabyte of every weight file; a hub id
    as it is."""
    if not Path(model).is_dir():
        return model
    parts: list[str | bytes] = []
    for file in sorted([*Path(model).glob("*.safetensors"), *Path(model).glob("*.bin")]):
        size = file.stat().st_size
        with open(file, "rb") as weights:
            parts += [f"{file.name} {size}", weights.read(1 << 20)]
            weights.seek(max(0, size - (1 << 20)))
            parts.append(weights.read())
    return digest_of(*parts)
