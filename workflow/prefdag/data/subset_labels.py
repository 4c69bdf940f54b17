"""Read the subsets that rows name for `evaluate_reward`, and compare them with the suite's sections of subsets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefdag.config.sections.evaluate_reward import UNLABELLED, Sections
from prefdag.data.rows import read_rows
from prefdag.data.token_store import Store
from prefdag.errors import UserError


def labels_of(row: Mapping[str, Any], columns: Sequence[str], where: str) -> list[str]:
    """Return the subsets of a row, in the order of its columns.

    If there are several columns, a label that is a bare number has its column's name before it: `order 0`.

    Args:
        row: a fetched row.
        columns: the columns that name its subsets: a text or number, a list of them, an object whose true keys are the
            labels, or null.
        where: file and number of the row, for errors.

    Raises:
        UserError: the row lacks a column, or holds another kind of value.
    """
    labels: dict[str, None] = {}
    for column in columns:
        if column not in row:
            raise UserError(f"{where}: no column {column!r}; `subset` may name {', '.join(row)}")
        value = row[column]
        parts: Iterable[Any] = value if isinstance(value, list) else [] if value is None else [value]
        if isinstance(value, dict):
            if not all(isinstance(one, bool) for one in value.values()):
                raise UserError(f"{where}: {column} is an object with other values than true and false; name its parts")
            parts = [name for name, is_true in value.items() if is_true]
        for part in parts:
            if isinstance(part, bool) or not isinstance(part, str | int | float):
                raise UserError(f"{where}: {column} holds {str(part)[:40]!r}; `subset` reads texts and numbers")
            labels[f"{column} {part}" if len(columns) > 1 and _is_number(part) else str(part)] = None
    return [*labels]


def _is_number(label: str | float) -> bool:
    """Return whether a label says nothing without its column."""
    try:
        float(label)
    except ValueError:
        return False
    return True


def check_sections(sections: Sections, labels: Sequence[Sequence[str]], where: str) -> str | None:
    """Compare sections with the subsets that the comparisons have.

    Args:
        sections: section -> its subsets.
        labels: the subsets of each comparison.
        where: the set's key in the suite, for the messages.

    Returns:
        A sentence that names the subsets in no section; None if each is in one, or there are no sections.

    Raises:
        UserError: a section names a subset that no comparison has.
    """
    sizes: dict[str, int] = {}
    for names in labels:
        for name in names or [UNLABELLED]:
            sizes[name] = sizes.get(name, 0) + 1
    for section, subsets in sections.items():
        absent = [name for name in subsets if name not in sizes or name == UNLABELLED]
        if absent:
            there = ", ".join(sorted(sizes.keys() - {UNLABELLED})) or "no subset"
            raise UserError(
                f"{where}.sections.{section}: no comparison is of the subset {', '.join(map(repr, absent))}; "
                f"they have {there}: correct the name, or leave it out"
            )
    inside = {name for subsets in sections.values() for name in subsets}
    outside = [f"{name} ({size})" for name, size in sorted(sizes.items()) if name not in inside]
    if not outside or not sections:
        return None
    return f"{where}.sections: no section has {', '.join(outside)}; the mean of sections leaves these comparisons out"


def labels_of_store(columns: Sequence[str], path: Path, store: Store, key: str) -> list[list[str]]:
    """Return the subsets of each comparison as its row names them, [N].

    Args:
        columns: the columns that name them.
        path: the fetched rows.
        store: the comparisons that were made of these rows.
        key: the set's key in the suite, for errors.

    Raises:
        UserError: a row lacks a column, or holds a value that names no subset.
    """
    numbers = np.asarray(store.rows).tolist()
    if not columns:
        return [[] for _ in numbers]
    wanted = set(numbers)
    labels = {
        number: labels_of(row, columns, f"{key}.subset: {path}: row {number + 1}")
        for number, row in enumerate(read_rows(path))
        if number in wanted
    }
    return [labels[number] for number in numbers]
