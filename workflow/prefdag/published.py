"""Published numbers beside measured ones, a row each."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from prefdag.config.expected import Expected

EVALUATION = {"accuracy": "after training", "accuracy_untrained": "before training"}


def published_rows(
    expected: Sequence[Expected], runs: pd.DataFrame, accuracies: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each entry with `measured`, None where this suite does not measure it or has no such run.

    runs: the report's table; accuracies: held-out evaluations of rewards by name. A run of several seeds is their mean.
    """
    return [{**entry.model_dump(), "measured": _measured(entry, runs, accuracies)} for entry in expected]


def _measured(entry: Expected, runs: pd.DataFrame, accuracies: Mapping[str, Mapping[str, Any]]) -> float | None:
    if entry.measured in EVALUATION:
        found = accuracies.get(EVALUATION[entry.measured])
        return float(found["accuracy"]) if found else None
    of_run = runs[(runs["run"] == entry.run) | runs["run"].str.startswith(f"{entry.run}-seed")]
    if entry.measured is None or of_run.empty or of_run[entry.measured].isna().any():
        return None
    return float(of_run[entry.measured].mean())
