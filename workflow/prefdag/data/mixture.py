"""Rows of one source, or of several mixed by weight or by count."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from prefdag.config.data import Data, Mixed, Source
from prefdag.data.rows import ADAPTER, Row, read_rows
from prefdag.data.sources.resolve import SourceFiles
from prefdag.errors import UserError
from prefdag.seeds import generator


def iter_source_rows(source: Source, found: SourceFiles) -> Iterator[Row]:
    """The rows of a split in the order of its files, their columns under the names that the adapter reads."""
    rows = (row for file in found.files.values() for row in read_rows(file))
    adapter = {ADAPTER: source.adapter} if isinstance(source, Mixed) and source.adapter else {}
    for number, row in enumerate(islice(rows, source.max_rows)):
        named = {**row, **{name: _column(row, path, number) for name, path in source.columns.items()}}
        yield {**(_replaced(named, source.replace) if source.replace else named), **adapter}


def _replaced(value: Any, replace: Mapping[str, str]) -> Any:
    """Every text inside a value with the keys of `replace` replaced, in one pass, the longest first."""
    if isinstance(value, str):
        longest_first = sorted(replace, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), lambda found: replace[found[0]], value)
    if isinstance(value, dict):
        return {key: _replaced(inner, replace) for key, inner in value.items()}
    return [_replaced(inner, replace) for inner in value] if isinstance(value, list) else value


def _column(row: Row, path: str, number: int) -> Any:
    """The value of a column; `a.b` is b inside a, where the row has no column of that whole name."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            known = ", ".join(row)
            raise UserError(f"data.columns: row {number} has no column {path!r}; it has {known}") from None
    return value


def iter_mixed_rows(data: Data, found: list[dict[str, SourceFiles]], split: str) -> Iterator[Row]:
    """The rows of all sources, one source after the other; of train, as many of each as `rows_per_source` says.

    Which ones is drawn without repetition, by `data.seed`; their order stays.
    """
    parts = [(source, files[split]) for source, files in zip(data.sources, found, strict=True) if split in files]
    if split != "train":
        for source, files in parts:
            yield from iter_source_rows(source, files)
        return
    available = [sum(1 for _ in iter_source_rows(source, files)) for source, files in parts]
    for index, ((source, files), num) in enumerate(zip(parts, rows_per_source(data, available), strict=True)):
        kept = np.zeros(available[index], bool)
        kept[generator(data.seed, "mixture", index).permutation(available[index])[:num]] = True
        yield from (row for row, keep in zip(iter_source_rows(source, files), kept, strict=True) if keep)


def rows_per_source(data: Data, available: list[int]) -> list[int]:
    """How many rows of each source: its count; or its weight's share of as many as no source must repeat a row for.

    available: training rows of each source that has some.
    """
    sources = [source for source in data.sources if source.trains]
    counts = [source.count for source in sources]
    if all(count is not None for count in counts):
        numbers = [int(count or 0) for count in counts]
    else:
        weights = np.array([source.weight for source in sources], dtype=float)
        total = min(num * weights.sum() / weight for num, weight in zip(available, weights, strict=True))
        total = min(total, data.max_rows or total)
        numbers = [round(float(total * weight / weights.sum())) for weight in weights]
    for source, wanted, num in zip(sources, numbers, available, strict=True):
        if wanted > num:
            raise UserError(f"data.sources: {source.source} holds {num} rows, not the {wanted} that its count asks for")
    return numbers
