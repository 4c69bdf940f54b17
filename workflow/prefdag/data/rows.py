"""Read raw rows from files of several formats, one row at a time."""

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from prefdag.data.packed import BROKEN, PACKED, joined, open_packed, read_whole, short_lines
from prefdag.errors import UserError
from prefdag.schema import parse_json

Row = dict[str, Any]
LFS_POINTER = b"version https://git-lfs.github.com/spec"
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
FIELD_LIMIT = 1 << 30  # bytes of one CSV field; Python's own limit is 128 KiB
LISTED = 10  # bad lines that an error names
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ADAPTER = "_adapter"  # key of a mixture's row that names the adapter of its source


def refuse_lfs_pointer(path: Path) -> None:
    """Raise `UserError` if `path` is a Git-LFS pointer instead of the file."""
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: a Git-LFS pointer, not the file itself; run `git lfs pull` where it came from")


def read_rows(path: Path) -> Iterator[Row]:
    """Iterate over the rows of a jsonl, json, csv, tsv or parquet file, plain or compressed (.gz, .xz, .zst).

    JSON is read as lines or as one list, independent of its name, and text as UTF-8, or as UTF-16 with its mark.

    Raises `UserError` with file and row (from 1) for content that does not fit the file's name.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path in the suite's `data`")
    refuse_lfs_pointer(path)
    suffix = path.with_suffix("").suffix if path.suffix in PACKED else path.suffix
    reader = {".jsonl": _json, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}.get(suffix)
    if reader is None:
        raise UserError(
            f"{path}: unknown format; the name must end in {', '.join(FORMATS)}, or {', '.join(PACKED)} of one"
        )
    try:
        with open_packed(path) as stream:
            text = stream if reader is _parquet else _utf8(path, stream)
            for number, row in enumerate(reader(path, text), 1):
                if not isinstance(row, dict):
                    raise UserError(f"{path}: row {number}: expected an object with named fields, got {_kind(row)}")
                yield row
    except BROKEN as error:
        raise UserError(f"{path}: the archive is broken or cut short ({error}); fetch it again") from None


def _utf8(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """Return the lines of a text as UTF-8; a file that begins with the mark of UTF-16 is converted."""
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(cast(Any, stream))
    if not buffered.peek(2).startswith(UTF16):
        return short_lines(path, buffered)
    try:
        return iter(io.BytesIO(read_whole(path, buffered).decode("utf-16").encode("utf-8", "surrogatepass")))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-16 at byte {error.start}, though it begins so; convert the file") from None


def _json(path: Path, stream: Any) -> Iterator[Any]:
    """Read JSON lines, or one JSON value: a list of rows, or an object that holds one list of rows."""
    first = next((line for line in stream if line.strip()), b"")
    begin = first.removeprefix(codecs.BOM_UTF8).strip()
    lines: Iterable[bytes] = itertools.chain([first], stream)
    is_row = begin.startswith(b"{") and _parsed(begin) is not None
    if is_row and not _wrapped(_parsed(begin)):
        yield from _lines(path, lines)
        return
    if begin.startswith(b"["):
        whole = joined(path, lines)
        values = _parsed(whole.removeprefix(codecs.BOM_UTF8))
        if values is None and _parsed(begin) is not None:
            yield from _lines(path, io.BytesIO(whole))  # a list on each line, which the caller refuses
        else:
            yield from decode_line(whole, path) if values is None else values
        return
    whole = joined(path, lines)  # a broken line, an object over several lines, or one that holds a list
    value = _parsed(whole.removeprefix(codecs.BOM_UTF8))
    if isinstance(value, dict):
        yield from _wrapped_rows(path, value)
    else:
        yield from _lines(path, io.BytesIO(whole))


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the reader of lines says what is wrong
        return None


def _wrapped(value: Any) -> list[str]:
    """Return the keys of an object under which it has lists of objects, if it has nothing but few of them."""
    if not isinstance(value, dict):
        return []
    lists = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    if any({"role", "from"} & value[key][0].keys() for key in lists):  # a row that is one dialogue
        return []
    return lists if len(value) == len(lists) == 1 else []


def _wrapped_rows(path: Path, value: Row) -> Iterator[Any]:
    """Read the one list of an object. Raises `UserError` for an object that holds something else."""
    keys = _wrapped(value)
    if keys:
        yield from value[keys[0]]
        return
    raise UserError(
        f"{path}: expected a JSON list of rows, got an object with {', '.join(map(str, value))[:80]}; "
        "write its rows as a list, or one on each line"
    )


def _lines(path: Path, lines: Iterable[bytes]) -> Iterator[Any]:
    # Binary streams split at b"\n" alone: reviews hold U+0085 and U+2028, which text streams may split at.
    number = offset = 0
    bad: list[tuple[int, UserError]] = []
    for line in lines:
        if line.strip():
            try:
                row = decode_line(line, path, number, offset)
            except UserError as error:
                bad.append((number, error))
            else:
                if not bad:
                    yield row
            number += 1
        offset += len(line)
    if bad:
        rows = ", ".join(str(number + 1) for number, _ in bad[:LISTED])
        more = ", ..." if len(bad) > LISTED else ""
        others = f" ({len(bad)} bad rows of {number}: {rows}{more})" if len(bad) > 1 else ""
        raise UserError(f"{bad[0][1]}{others}")


def decode_line(line: bytes, path: Path, number: int = 0, offset: int = 0) -> Any:
    """Parse a line as JSON; row (from 0) and byte offset in the uncompressed file are for the `UserError` it raises."""
    try:
        text = line.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        where = f"not UTF-8 at byte {error.start} of the row, byte {offset + error.start} of the file"
        raise UserError(f"{path}: row {number + 1}: {where}; convert the file") from None
    try:
        return parse_json(text.rstrip("\r\n"), f"{path}: row {number + 1}", "fix or remove that line")
    except UserError as error:  # the row is one line: its number in the row would be taken for the file's
        raise UserError(str(error).replace(": line 1 column ", ": column ")) from None


def _csv(path: Path, stream: Any) -> Iterator[Any]:
    csv.field_size_limit(FIELD_LIMIT)
    lines = iter(_Utf8(path, stream))
    header = next((line for line in lines if line.strip()), "")
    delimiter = next(
        (mark for mark in ("\t" if ".tsv" in path.suffixes else ",", ",", ";", "\t") if mark in header), ","
    )
    try:
        reader = csv.DictReader(itertools.chain([header], lines), strict=True, delimiter=delimiter)
        names = [name.strip() for name in reader.fieldnames or ()]
        if len(set(names)) < len(names):
            raise UserError(f"{path}: the header names a column twice ({', '.join(names)[:80]}); rename one")
        reader.fieldnames = names
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise UserError(f"{path}: row {number}: more or fewer fields than the header names; fix that row")
            yield row
    except csv.Error as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from None


class _Utf8:
    """Lines of a stream as text, split only at newlines, which may be inside a quoted field."""

    def __init__(self, path: Path, stream: Iterable[bytes]) -> None:
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
        source = stream if stream.seekable() else io.BytesIO(read_whole(path, stream))
        file = pyarrow.parquet.ParquetFile(source)
        is_binary = "binary" in str(file.schema_arrow)
        number = 0
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                yield _decoded(row, path, number) if is_binary else row
                number += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def _decoded(value: Any, path: Path, number: int, column: str = "") -> Any:
    """Return a row with its binary values as text. Raises `UserError` for a value that is not UTF-8."""
    if isinstance(value, dict):
        return {key: _decoded(inner, path, number, column or key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_decoded(inner, path, number, column) for inner in value]
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: row {number + 1}: the binary column `{column}` is not UTF-8 text; remove it or convert it to text"
        ) from None


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
