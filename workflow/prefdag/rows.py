"""Raw rows from files, whatever they are written in, a row at a time."""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from prefdag.errors import UserError

Row = dict[str, Any]
LFS_POINTER = b"version https://git-lfs.github.com/spec"
FORMATS = (".jsonl", ".json", ".csv", ".parquet")


def refuse_lfs_pointer(path: Path) -> None:
    """Raises `UserError` when `path` is a Git-LFS pointer standing where the file should be."""
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: a Git-LFS pointer, not the file itself; run `git lfs pull` where it came from")


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a jsonl, json, csv or parquet file, plain or .gz or .xz, in order.

    Raises `UserError` naming file and row (from 0) for anything that is not what its name says.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path in the suite's `data`")
    refuse_lfs_pointer(path)
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".xz") else path.suffix
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}.get(suffix)
    if reader is None:
        raise UserError(
            f"{path}: cannot tell its format; the name must end in {', '.join(FORMATS)}, or .gz or .xz of one"
        )
    try:
        with _opened(path) as stream:
            for number, row in enumerate(reader(path, stream)):
                if not isinstance(row, dict):
                    raise UserError(f"{path}: row {number}: expected an object with named fields, got {_kind(row)}")
                yield row
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the archive is broken or cut short ({error}); fetch it again") from None


def _opened(path: Path) -> BinaryIO:
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")


def _jsonl(path: Path, stream: BinaryIO) -> Iterator[Any]:
    # Binary streams split at b"\n" alone: reviews hold U+0085 and U+2028, which text streams may split at.
    number = 0
    for line in stream:
        if line.strip():
            yield _decoded(path, number, line)
            number += 1


def _decoded(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: row {number}: not UTF-8 at byte {error.start} of the row; convert the file") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} at character {error.pos}"
        raise UserError(f"{path}: row {number}: not valid JSON ({where}); mend or remove that line") from None


def _json(path: Path, stream: BinaryIO) -> Iterator[Any]:
    values = _decoded(path, 0, stream.read())
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a JSON list of rows, got {_kind(values)}")
    yield from values


def _csv(path: Path, stream: BinaryIO) -> Iterator[Any]:
    try:
        yield from csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8", newline=""), strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from None


def _parquet(path: Path, stream: BinaryIO) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def _kind(value: Any) -> str:
    return {str: "text", list: "a list", dict: "an object", type(None): "null"}.get(type(value), repr(value)[:40])


def write_rows(path: Path, rows: Iterator[Row]) -> int:
    """Write rows as JSONL; returns how many."""
    num = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            num += 1
    return num
