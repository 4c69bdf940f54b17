"""Open compressed files, and read them within a limit of memory whatever they decompress to."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from prefdag.errors import UserError

PACKED = (".gz", ".xz", ".zst")
LINE_LIMIT = 64 << 20  # bytes of one line
WHOLE_LIMIT = 1 << 30  # bytes of a file that is read as a whole, after decompression


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


def open_packed(path: Path) -> BinaryIO:
    """Open a file, plain or compressed (.gz, .xz, .zst), as a stream of its content."""
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstandard(path), 1 << 16)
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")


def read_whole(path: Path, stream: Any) -> bytes:
    """Read a stream to its end. Raises `UserError` at a size that does not fit into memory."""
    content: bytes = stream.read(WHOLE_LIMIT + 1)
    return joined(path, [content])


def joined(path: Path, parts: Iterable[bytes]) -> bytes:
    """Join the parts of a file. Raises `UserError` at a size that does not fit into memory."""
    size, blocks = 0, []
    for part in parts:
        size += len(part)
        if size > WHOLE_LIMIT:
            raise UserError(f"{path}: larger than 1 GiB and not one row on each line; convert it to JSON lines")
        blocks.append(part)
    return b"".join(blocks)


def short_lines(path: Path, stream: Any) -> Iterator[bytes]:
    """Yield lines. Raises `UserError` for a line that is too long to be a row: a binary file, or a bomb."""
    number = 0
    while line := stream.readline(LINE_LIMIT):
        if len(line) == LINE_LIMIT and not line.endswith(b"\n"):
            raise UserError(f"{path}: line {number + 1} is longer than 64 MiB; put one row on each line")
        yield line
        number += 1


BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, _BrokenZstandard)
