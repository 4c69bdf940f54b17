"""What was lost before anything was measured: rows that `prepare` dropped, and answers cut at their token limit."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from prefdag.data.dropped import lost_rows
from prefdag.provenance.manifest import read_manifest, read_training


def losses_of_runs(
    policies: Iterable[str],
    summaries: Mapping[str, Mapping[str, Any]],
    preferences: Sequence[Path],
    comparisons: Path,
) -> pd.DataFrame:
    """Return columns of runs.csv by policy: rows trained on, rows dropped of them, and the share of finished answers.

    Args:
        policies: their names.
        summaries: score/summary.json by policy.
        preferences: manifests of the runs. One that was trained on another dataset has no numbers of rows.
        comparisons: manifest of the comparisons.
    """
    train = audit_of(comparisons).get("train")
    digest = read_manifest(comparisons).sha256
    trained = {path.parent.name: read_training(path).content.get("inputs", {}) for path in preferences}
    table = pd.DataFrame(index=pd.Index(list(policies), name="run"))
    counts = lost_rows(train) if train else (0, 0)
    of_comparisons = [bool(train) and trained.get(name, {}).get("comparisons") == digest for name in table.index]
    numbers = {"rows_used": counts[1] - counts[0], "rows_dropped": counts[0]}
    for name, number in numbers.items():
        table[name] = pd.array([number if known else None for known in of_comparisons], dtype="Int64")
    table["ended"] = [summaries[name].get("ended", {}).get("mean") for name in table.index]
    return table


def audit_of(comparisons: Path) -> dict[str, Any]:
    """Return the splits of a dataset's audit.json; {} if it has none."""
    path = comparisons.parent / "audit.json"
    splits: dict[str, Any] = json.loads(path.read_text())["splits"] if path.is_file() else {}
    return splits
