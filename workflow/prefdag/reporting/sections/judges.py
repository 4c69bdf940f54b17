"""The section of judges: win rates by each, at equal length and by order, and their agreement."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefdag.evaluation.win_rates import JudgedPairs, agreement

BOOTSTRAP = 1000


def rates(wins: Mapping[str, Mapping[str, Any]], displays: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row per judge and set of answers, with win rates in percent. wins: judge/summary.json by answers."""
    rows = []
    for name, summary in wins.items():
        if name in displays:
            judged = summary.get("judges") or {summary.get("judge", "reward"): summary}
            rows += [{"answers": displays[name], "judge": judge, **_rates(one)} for judge, one in judged.items()]
    return rows


def _rates(summary: Mapping[str, Any]) -> dict[str, Any]:
    matched = summary.get("matched_length") or {}
    order = summary.get("order") or {}
    sides = [(order.get(side) or {}).get("win_rate") for side in ("ours_first", "ours_second")]
    return {
        "win_rate": _percent(summary),
        "length_controlled": _percent(summary.get("length_controlled")),
        "matched_length": _percent(matched if "low" in matched else None),
        "order": None
        if None in sides
        else {"rates": [100 * float(side or 0) for side in sides], "p_value": order["p_value"]},
        "n": summary["n"],
        "without_verdict": summary.get("without_verdict", 0),
    }


def _percent(summary: Mapping[str, Any] | None) -> dict[str, float] | None:
    if summary is None or summary.get("win_rate") is None:
        return None
    return {key: 100 * float(summary[name]) for key, name in (("mean", "win_rate"), ("low", "low"), ("high", "high"))}


def agreements(verdicts: Sequence[Path]) -> list[dict[str, Any]]:
    """Compare every two judges over the answers that both judged; intervals resample prompts.

    verdicts: verdicts.csv of the stage `judge`, each in a folder named like its answers.

    Reference: Rafailov et al. 2023, table 2.
    """
    tables = [pd.read_csv(path).assign(answers=path.parent.name) for path in verdicts]
    everything = pd.concat([table for table in tables if "judge" in table] or [pd.DataFrame({"judge": []})])
    judged = [_judged(str(judge), rows) for judge, rows in everything.groupby("judge", sort=False)]
    pairs = [agreement(*pair, seed="report", bootstrap=BOOTSTRAP) for pair in itertools.combinations(judged, 2)]
    return [_row(row) for row in pairs if row["n"]]


def _judged(judge: str, rows: pd.DataFrame) -> JudgedPairs:
    keys = list(zip(rows["answers"], rows["prompt_id"], rows["sample"], strict=True))
    return JudgedPairs(judge, keys, rows["verdict"].to_numpy(dtype=np.float64), rows["prompt_id"].to_numpy())


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    def interval(name: str, factor: float) -> dict[str, float] | None:
        ends = {"mean": name, "low": f"{name}_low", "high": f"{name}_high"}
        known = {key: row[column] for key, column in ends.items() if row.get(column) is not None}
        return {key: factor * value for key, value in known.items()} if len(known) == len(ends) else None

    agreed, kappa = interval("agreement", 100), interval("kappa", 1)
    return {"judges": row["judges"], "n": row["n"], "ties": row["ties"], "agreement": agreed, "kappa": kappa}
