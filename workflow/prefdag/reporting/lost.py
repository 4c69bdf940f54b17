"""What was lost or leaked before anything was measured: rows dropped or seen in training, and answers that were cut."""

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


def silent_share(answers: pd.DataFrame) -> float:
    """Return the share of answers that ended with their first token. answers: scores.csv; 0 without the columns."""
    if not {"length", "ended"} <= set(answers.columns):
        return 0.0
    return float(((answers["length"] <= 1) & (answers["ended"] == 1)).mean())


def audit_of(comparisons: Path) -> dict[str, Any]:
    """Return the splits of a dataset's audit.json; {} if it has none."""
    path = comparisons.parent / "audit.json"
    splits: dict[str, Any] = json.loads(path.read_text())["splits"] if path.is_file() else {}
    return splits


def leaked(comparisons: Path) -> list[str]:
    """Say how many held-out prompts are trained on, if the suite allows any. comparisons: manifest of the stage."""
    config = read_manifest(comparisons).content.get("config", {})
    if config.get("prepare", {}).get("leakage") != "allow":
        return []
    path = comparisons.parent / "audit.json"
    audit: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"splits": {}, "shared_prompts": {}}
    shares = {name: number for name, number in audit["shared_prompts"].items() if name.startswith("test and ")}
    if not shares:
        return ["This suite states leakage: allow; no prompt of the test split is in a split that trains."]
    test = audit["splits"]["test"]
    prompts = test["used"] - test["prompts"]["repeated_rows"]
    parts = [f"{number} are in {_owner(name.removeprefix('test and '))}" for name, number in shares.items()]
    return [f"This suite states leakage: allow. Of {prompts} prompts of the test split, {' and '.join(parts)} too."]


def _owner(name: str) -> str:
    return name if name.startswith("SFT") else f"the {name}"
