"""Published numbers beside measured ones, a row each."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from prefdag.across_runs import interval_of
from prefdag.config.expected import Expected

EVALUATION = {"accuracy": "after training", "accuracy_untrained": "before training"}


def published_rows(
    expected: Sequence[Expected],
    runs: pd.DataFrame,
    means: Mapping[str, pd.DataFrame],
    accuracies: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Each entry with `measured` (mean, low, high), None where this suite does not measure it or has no such run.

    runs: the report's table; means: run -> its numbers by prompt; accuracies: held-out evaluations of rewards by name.
    A run of several seeds is their mean, its interval over seeds and prompts.
    """
    return [{**entry.model_dump(), "measured": _measured(entry, runs, means, accuracies)} for entry in expected]


def _measured(
    entry: Expected,
    runs: pd.DataFrame,
    means: Mapping[str, pd.DataFrame],
    accuracies: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | None:
    if entry.measured in EVALUATION:
        found = accuracies.get(EVALUATION[entry.measured])
        return (
            {"mean": found["accuracy"], "low": found["accuracy_low"], "high": found["accuracy_high"]} if found else None
        )
    return interval_of(runs, means, entry.run, entry.measured) if entry.measured else None
