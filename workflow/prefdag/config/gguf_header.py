"""Read what a GGUF file states before its weights: architecture, sizes, tokenizer, and whether all bytes are there.

The reader of the package `gguf` takes seconds for the vocabulary of a usual model, too long for a plan.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from prefdag.config.model_folder import models_of_gguf

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Types of values by their number in the file; 8 is a string, 9 an array.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BROKEN = (ValueError, KeyError, struct.error, UnicodeDecodeError, MemoryError, OverflowError)  # headers
UNREADABLE = "is no GGUF file, or is cut short; download it again"


@dataclass(frozen=True)
class Header:
    """What a file states of itself.

    Attributes:
        values: by key; of an array only its number of elements.
        parameters: number of weights.
        end: bytes that the file has if it is complete.
    """

    values: dict[str, Any]
    parameters: int
    end: int

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    def size(self, name: str) -> int | None:
        """Return a size that the architecture states, such as `block_count`."""
        value = self.values.get(f"{self.architecture}.{name}")
        return int(value) if isinstance(value, int | float) else None


def gguf_context(path: Path) -> int | None:
    """Return the positions that the model of a GGUF file was made for; None if it states none or cannot be read."""
    try:
        return read_header(path).size("context_length")
    except (OSError, *BROKEN):
        return None  # `gguf_mistake` says what is wrong with it


def gguf_mistake(path: Path) -> str | None:
    """Return why a GGUF file cannot be used, as the rest of a sentence that starts with its name; None if it can."""
    try:
        header = read_header(path)
    except BROKEN:
        return UNREADABLE
    if (parts := header.values.get("split.count") or 1) > 1:
        return f"is one of {parts} parts of a model; merge them with llama.cpp's `llama-gguf-split --merge`"
    known = models_of_gguf()
    if known and header.architecture not in known:
        return (
            f"has the architecture {header.architecture!r}, which transformers cannot read from GGUF as a language "
            f"model; it reads {', '.join(sorted(known))}"
        )
    if not header.values.get("tokenizer.ggml.tokens") or "tokenizer.ggml.model" not in header.values:
        return "holds no tokenizer (tokenizer.ggml.tokens); take a file of the whole model"
    if (size := path.stat().st_size) < header.end:
        return f"is cut short: it has {size:,} bytes of {header.end:,}; download it again"
    return None


def read_header(path: Path) -> Header:
    """Read all that is before the weights. Raises `ValueError` or `struct.error` for what is no such file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    with path.open("rb") as stream:
        if stream.read(4) != MAGIC or _number(stream, "I") not in VERSIONS:
            raise ValueError("not GGUF")
        num_tensors, num_values = _number(stream, "Q"), _number(stream, "Q")
        values = {}
        for _ in range(num_values):
            name = _string(stream)
            values[name] = _value(stream, _number(stream, "I"))
        parameters = last = 0
        for _ in range(num_tensors):
            _string(stream)
            shape = [_number(stream, "Q") for _ in range(_number(stream, "I"))]
            block, bytes_of_block = GGML_QUANT_SIZES[GGMLQuantizationType(_number(stream, "I"))]
            elements = math.prod(shape)
            parameters += elements
            last = max(last, _number(stream, "Q") + elements // block * bytes_of_block)
        alignment = int(values.get("general.alignment", 32))
        begin = -(-stream.tell() // alignment) * alignment
    return Header(values, parameters, begin + last)


def _value(stream: BinaryIO, kind: int) -> Any:
    """Read one value; of an array, its number of elements."""
    if kind == STRING:
        return _string(stream)
    if kind != ARRAY:
        return _number(stream, NUMBERS[kind])
    inner, length = _number(stream, "I"), _number(stream, "Q")
    if inner in NUMBERS:
        stream.seek(length * struct.calcsize(NUMBERS[inner]), 1)
    else:
        for _ in range(length):
            _value(stream, inner)
    return length


def _number(stream: BinaryIO, form: str) -> Any:
    (number,) = struct.unpack(f"<{form}", stream.read(struct.calcsize(form)))
    return number


def _string(stream: BinaryIO) -> str:
    length = _number(stream, "Q")
    content = stream.read(length)
    if len(content) < length:
        raise ValueError("cut short")
    return content.decode("utf-8", errors="replace")
