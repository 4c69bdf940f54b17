"""Read raw rows from files of several formats, one row at a time."""

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
PACKED = (".gz", ".xz", ".zst")
FIELD_LIMIT = 1 << 30  # bytes of one CSV field; Python's own limit is 128 KiB
ADAPTER = "_adapter"  # key of a mixture's row that names the adapter of its source


def refuse_lfs_pointer(path: Path) -> None:
    """Raise `UserError` if `path` is a Git-LFS pointer instead of the file."""
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: a Git-LFS pointer, not the file itself; run `git lfs pull` where it came from")


def read_rows(path: Path) -> Iterator[Row]:
    """Iterate over the rows of a jsonl, json, csv or parquet file, plain or compressed (.gz, .xz, .zst).

    Raises `UserError` with file and row (from 0) for content that does not fit the file's name.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path in the suite's `data`")
    refuse_lfs_pointer(path)
    suffix = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}.get(suffix)
    if reader is None:
        raise UserError(
            f"{path}: unknown format; the name must end in {', '.join(FORMATS)}, or {', '.join(PACKED)} of one"
        )
    try:
        with _opened(path) as stream:
            for number, row in enumerate(reader(path, stream)):
                if not isinstance(row, dict):
                    raise UserError(f"{path}: row {number}: expected an object with named fields, got {_kind(row)}")
                yield row
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, _BrokenZstandard) as error:
        raise UserError(f"{path}: the archive is broken or cut short ({error}); fetch it again") from None


class _BrokenZstandard(Exception):
    """pyarrow's error about a .zst file, which it raises as OSError."""


class _Zstandard(io.RawIOBase):
    """A .zst file as a binary stream."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._stream = pyarrow.input_stream(str(path), compression="zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._stream.read(len(buffer))
        except OSError as error:
            raise _BrokenZstandard(str(error).splitlines()[0]) from None
        buffer[: len(block)] = block
        return len(block)


def _opened(path: Path) -> BinaryIO:
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstandard(path), 1 << 16)
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")


def _jsonl(path: Path, stream: BinaryIO) -> Iterator[Any]:
    # Binary streams split at b"\n" alone: reviews hold U+0085 and U+2028, which text streams may split at.
    number = offset = 0
    for line in stream:
        if line.strip():
            yield decode_line(line, path, number, offset)
            number += 1
        offset += len(line)


def decode_line(line: bytes, path: Path, number: int = 0, offset: int = 0) -> Any:
    """Parse a line as JSON; row number and byte offset in the (uncompressed) file are for the `UserError` it raises."""
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        where = f"not UTF-8 at byte {error.start} of the row, byte {offset + error.start} of the file"
        raise UserError(f"{path}: row {number}: {where}; convert the file") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} at character {error.pos}"
        raise UserError(f"{path}: row {number}: not valid JSON ({where}); fix or remove that line") from None


def _json(path: Path, stream: BinaryIO) -> Iterator[Any]:
    values = decode_line(stream.read(), path)
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a JSON list of rows, got {_kind(values)}")
    yield from values


def _csv(path: Path, stream: BinaryIO) -> Iterator[Any]:
    csv.field_size_limit(FIELD_LIMIT)
    try:
        for number, row in enumerate(csv.DictReader(_Utf8(path, stream), strict=True)):
            if None in row or None in row.values():
                raise UserError(f"{path}: row {number}: more or fewer fields than the header names; fix that row")
            yield row
    except csv.Error as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from None


class _Utf8:
    """Lines of a stream as text, split only at newlines, which may be inside a quoted field."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path, self.stream, self.offset = path, stream, 0

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            try:
                yield line.decode("utf-8-sig" if self.offset == 0 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"not UTF-8 at byte {self.offset + error.start} of the file"
                raise UserError(f"{self.path}: {where}; convert the file") from None
            self.offset += len(line)


def _parquet(path: Path, stream: BinaryIO) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        source = stream if stream.seekable() else io.BytesIO(stream.read())
        for batch in pyarrow.parquet.ParquetFile(source).iter_batches(1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def _kind(value: Any) -> str:
    return {str: "text", list: "a list", dict: "an object", type(None): "null"}.get(type(value), repr(value)[:40])


def write_rows(path: Path, rows: Iterator[Row]) -> int:
    """Write rows as JSONL and return their number. Lone surrogates, which UTF-8 cannot encode, are escaped."""
    num = 0
    with path.open("wb") as stream:
        for row in rows:
            try:
                line = json.dumps(row, ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                line = json.dumps(row, default=str).encode()
            stream.write(line + b"\n")
            num += 1
    return num
