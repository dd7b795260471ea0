"""Rows of parquet files and of data sets on the hub: read in small batches, pictures still encoded, in
whatever form they are.

For a row that cannot be read, `parquet_rows` yields a DataError that says why instead of raising it: the
caller decides whether to skip the row or to stop.
"""

import base64
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from data import PICTURE_ERRORS, DataError


def parquet_rows(file: Path, columns: tuple[str, ...] = (), needed: str = "") -> Iterator[dict | DataError]:
    """In a damaged row group each remaining row is yielded as one error; a file that is no parquet, or has no
    column `needed`, is yielded as one error.  `columns`: read only those of them that the file has, and those
    that hold pictures, whatever their name; default: all columns."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{file}: reading parquet files needs: pip install pyarrow") from None
    try:
        with ParquetFile(file, pre_buffer=False) as parquet:
            schema = parquet.schema_arrow
            if needed and needed not in schema.names:
                yield DataError(f"no column {needed}")
                return
            present = [field.name for field in schema
                       if field.name in columns or "bytes: " in str(field.type)] if columns else None
            for group in range(parquet.num_row_groups):
                left = parquet.metadata.row_group(group).num_rows
                try:
                    for batch in parquet.iter_batches(batch_size=16, columns=present, row_groups=[group]):
                        for row in batch.to_pylist():
                            left -= 1
                            yield row
                except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                    why = one_line(error)
                    yield from (DataError(why) for _ in range(left))
    except (pyarrow.ArrowException, OSError) as error:
        yield DataError(one_line(error))


def hub_rows(name: str, subset: str = "", revision: str | None = None, limit: int | None = None,
             seed: int = 0) -> Iterator[dict]:
    """Streams the split "train" of a data set or of one of its subsets.  With `limit`, files are shuffled by
    `seed`; the rows of one file keep their order."""
    place = f"{name}:{subset}" if subset else name
    datasets = import_datasets(place)
    more = {key: value for key, value in (("name", subset), ("revision", revision)) if value}
    try:
        rows = datasets.load_dataset(name, split="train", streaming=True, **more)
        rows = rows.decode(False) if rows.features else rows                   # pictures as encoded files
        yield from rows.shuffle(seed=seed, buffer_size=1).take(limit) if limit else rows
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"cannot read {place} from the hub: {one_line(error)}") from None


def import_datasets(place: object):
    try:
        import datasets
    except ImportError:
        raise DataError(f"reading {place} needs: pip install datasets") from None
    datasets.disable_progress_bars()
    return datasets


def image_bytes(value, folder: str | Path = ".") -> bytes:
    """An encoded picture from whatever data sets hold: a PIL image, bytes, {"bytes", "path"}, base64, or a
    path.  Its format is read from the file's first bytes, never from its name."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Image.Image):
        out = io.BytesIO()
        value.convert("RGB").save(out, "PNG")
        return out.getvalue()
    if isinstance(value, str):                  # Path.is_file raises on a long base64
        if len(value) < 1000 and os.path.isfile(Path(folder) / value):
            value = (Path(folder) / value).read_bytes()
        else:
            try:
                value = base64.b64decode(re.sub(r"^data:[\w/.+-]+;base64,|\s", "", value), validate=True)
            except ValueError:
                raise DataError(f"no picture: neither a file nor base64 ({value[:40]!r})") from None
    if not isinstance(value, (bytes, bytearray)) or not value:
        raise DataError(f"no picture ({type(value).__name__})")
    try:
        with Image.open(io.BytesIO(value)):
            return bytes(value)
    except PICTURE_ERRORS as error:
        raise DataError(f"no picture ({type(error).__name__})") from None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
