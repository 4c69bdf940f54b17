"""Read the rows of one source, or of several sources mixed by weight or count."""

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


def iter_source_rows(source: Source, split_files: SourceFiles) -> Iterator[Row]:
    """Iterate over the rows of a split in the order of its files, with columns and texts changed as the source says."""
    rows = (row for file in split_files.files.values() for row in read_rows(file))
    adapter = {ADAPTER: source.adapter} if isinstance(source, Mixed) and source.adapter else {}
    for number, row in enumerate(islice(rows, source.max_rows), 1):
        named = {**row, **{name: _column(row, path, number) for name, path in source.columns.items()}}
        yield {**(_replaced(named, source.replace) if source.replace else named), **adapter}


def _replaced(value: Any, replace: Mapping[str, str]) -> Any:
    """Replace the keys of `replace` in every text inside a value, in one pass, the longest first."""
    if isinstance(value, str):
        longest_first = sorted(replace, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), lambda match: replace[match[0]], value)
    if isinstance(value, dict):
        return {key: _replaced(inner, replace) for key, inner in value.items()}
    return [_replaced(inner, replace) for inner in value] if isinstance(value, list) else value


def _column(row: Row, path: str, number: int) -> Any:
    """Return the value of a column; `a.b` is b inside a, unless the row has a column of that name."""
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


def iter_mixed_rows(data: Data, parts: list[dict[str, SourceFiles]], split: str) -> Iterator[Row]:
    """Iterate over the rows of a split, source by source.

    Of train, `rows_per_source` rows of each source are sampled without replacement by `data.seed`, in their order.

    Args:
        data: the section with the list of sources.
        parts: for each source, its files by split.
        split: the split to read.
    """
    having = [(source, files[split]) for source, files in zip(data.sources, parts, strict=True) if split in files]
    if split != "train":
        for source, files in having:
            yield from iter_source_rows(source, files)
        return
    available = [sum(1 for _ in iter_source_rows(source, files)) for source, files in having]
    for index, ((source, files), num) in enumerate(zip(having, rows_per_source(data, available), strict=True)):
        chosen = np.zeros(available[index], bool)
        chosen[generator(data.seed, "mixture", index).permutation(available[index])[:num]] = True
        rows = zip(iter_source_rows(source, files), chosen, strict=True)
        yield from (row for row, is_chosen in rows if is_chosen)


def rows_per_source(data: Data, available: list[int]) -> list[int]:
    """Return the number of training rows of each source: its count, or its weight's share of the total.

    The total is the largest for which no source must repeat a row. `available` holds the training rows of each source.
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
