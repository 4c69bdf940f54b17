"""Accuracy of a reward on subsets of comparisons: by label, and by which response is longer.

Shapes: N comparisons of two responses, the chosen one first.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefdag.errors import UserError
from prefdag.evaluation.bootstrap import bootstrap_interval, wilson
from prefdag.evaluation.calibration import FEWEST_PROMPTS, ranked_correctly

ALIKE = 0.1  # lengths that differ by no more than this share of the longer one
LENGTHS = ("chosen longer", "of like length", "chosen shorter")
UNLABELLED = "no label"


def labels_of(row: Mapping[str, Any], columns: Sequence[str], where: str) -> list[str]:
    """Return the subsets of a row, in the order of its columns.

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
            raise UserError(f"{where}: no column {column!r} for `subset`; it has {', '.join(row)}")
        value = row[column]
        parts: Iterable[Any] = value if isinstance(value, list) else [] if value is None else [value]
        if isinstance(value, dict):
            if not all(isinstance(one, bool) for one in value.values()):
                raise UserError(f"{where}: {column} is an object with other values than true and false; name its parts")
            parts = [name for name, is_true in value.items() if is_true]
        for part in parts:
            if isinstance(part, bool) or not isinstance(part, str | int | float):
                raise UserError(f"{where}: {column} holds {str(part)[:40]!r}; `subset` reads texts and numbers")
            labels[str(part)] = None
    return [*labels]


def length_classes(tokens: NDArray[np.int64]) -> NDArray[np.str_]:
    """Return which of `LENGTHS` each comparison is of. tokens: of chosen and rejected responses, [N, 2]."""
    chosen, rejected = tokens[:, 0], tokens[:, 1]
    like = np.abs(chosen - rejected) <= ALIKE * np.maximum(chosen, rejected)
    return np.where(like, LENGTHS[1], np.where(chosen > rejected, LENGTHS[0], LENGTHS[2]))


def accuracy_by_subset(
    rewards: Mapping[str, NDArray[np.floating]],
    prompts: NDArray[np.int64],
    tokens: NDArray[np.int64],
    labels: Sequence[Sequence[str]],
) -> pd.DataFrame:
    """Return the share of comparisons ranked right: of all, of each label and of each length class.

    Args:
        rewards: name -> rewards of chosen and rejected responses, [N, 2].
        prompts: equal for equal prompts, [N].
        tokens: of chosen and rejected responses, [N, 2].
        labels: the subsets of each comparison, which may be several.

    Returns:
        Columns kind (all, subset, length), subset, reward, accuracy, low, high, pairs, prompts. A tie counts half.
        Subsets come by their number of comparisons. Intervals resample prompts; where every comparison of a subset is
        ranked alike they are Wilson's over prompts, and NaN for fewer than `FEWEST_PROMPTS` prompts.
    """
    number = len(prompts)
    members = {("all", "all"): np.ones(number, bool)}
    if any(labels):
        named = {name: np.array([name in one for one in labels]) for one in labels for name in one}
        named[UNLABELLED] = np.array([not one for one in labels])
        order = sorted(named, key=lambda name: (name == UNLABELLED, -int(named[name].sum()), name))
        members |= {("subset", name): named[name] for name in order}
    classes = length_classes(tokens)
    members |= {("length", name): classes == name for name in LENGTHS}
    rows = []
    for (kind, subset), inside in members.items():
        if not inside.any():
            continue
        for reward, values in rewards.items():
            right = ranked_correctly(values[inside, 0] - values[inside, 1])
            low, high = _interval(right, prompts[inside], f"subset/{kind}/{subset}/{reward}")
            measured = {"accuracy": float(right.mean()), "low": low, "high": high}
            size = {"pairs": int(inside.sum()), "prompts": len(np.unique(prompts[inside]))}
            rows.append({"kind": kind, "subset": subset, "reward": reward, **measured, **size})
    return pd.DataFrame(rows)


def _interval(right: NDArray[np.float64], prompts: NDArray[np.int64], seed: str) -> tuple[float, float]:
    num_prompts = len(np.unique(prompts))
    if num_prompts < FEWEST_PROMPTS:
        return float("nan"), float("nan")
    if np.ptp(right) == 0:  # a bootstrap would have no width
        low, high = wilson(right.mean(), num_prompts)
        return float(low), float(high)
    low, high = bootstrap_interval(right, prompts, seed=seed, bootstrap=1000)
    return float(low), float(high)
