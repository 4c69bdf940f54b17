"""What the report says of judges: win rates by each, at equal length and by order, and who agrees with whom."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prefdag.evaluation.win_rates import JudgedPairs, agreement

BOOTSTRAP = 1000


def win_label(summary: Mapping[str, Any]) -> str:
    """The axis of a win rate. summary: any judge/summary.json of the suite, or nothing."""
    held = "the chosen responses" if summary.get("held_against") == "chosen" else "SFT"
    return f"win rate against {held}, judged by {summary.get('judge', 'reward')}"


def rates(wins: Mapping[str, Mapping[str, Any]], displays: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row a judge and a set of answers, with win rates in percent. wins: judge/summary.json by answers."""
    rows = []
    for name, summary in wins.items():
        if name in displays:
            judged = summary.get("judges") or {summary.get("judge", "reward"): summary}
            rows += [{"answers": displays[name], "judge": judge, **_rates(found)} for judge, found in judged.items()]
    return rows


def _rates(found: Mapping[str, Any]) -> dict[str, Any]:
    matched = found.get("matched_length") or {}
    order = found.get("order") or {}
    sides = [(order.get(side) or {}).get("win_rate") for side in ("ours_first", "ours_second")]
    return {
        "win_rate": _percent(found),
        "length_controlled": _percent(found.get("length_controlled")),
        "matched_length": _percent(matched if "low" in matched else None),
        "order": None
        if None in sides
        else {"rates": [100 * float(side or 0) for side in sides], "p_value": order["p_value"]},
        "n": found["n"],
        "without_verdict": found.get("without_verdict", 0),
    }


def _percent(found: Mapping[str, Any] | None) -> dict[str, float] | None:
    if found is None or found.get("win_rate") is None:
        return None
    return {key: 100 * float(found[name]) for key, name in (("mean", "win_rate"), ("low", "low"), ("high", "high"))}


def agreements(verdicts: Sequence[Path]) -> list[dict[str, Any]]:
    """Every two judges over all the answers that both have judged (Rafailov et al. 2023, table 2).

    verdicts: verdicts.csv of the stage `judge`, each in a folder named like its answers. Intervals draw prompts, all
    answers to one together. Empty with fewer than two judges.
    """
    tables = [pd.read_csv(path).assign(answers=path.parent.name) for path in verdicts]
    everything = pd.concat([table for table in tables if "judge" in table] or [pd.DataFrame({"judge": []})])
    judged = [_judged(str(judge), rows) for judge, rows in everything.groupby("judge", sort=False)]
    pairs = [agreement(*pair, seed="report", bootstrap=BOOTSTRAP) for pair in itertools.combinations(judged, 2)]
    return [_row(found) for found in pairs if found["n"]]


def _judged(judge: str, rows: pd.DataFrame) -> JudgedPairs:
    keys = list(zip(rows["answers"], rows["prompt_id"], rows["sample"], strict=True))
    return JudgedPairs(judge, keys, rows["verdict"].to_numpy(dtype=np.float64), rows["prompt_id"].to_numpy())


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    def interval(name: str, factor: float) -> dict[str, float] | None:
        ends = {"mean": name, "low": f"{name}_low", "high": f"{name}_high"}
        known = {key: found[column] for key, column in ends.items() if found.get(column) is not None}
        return {key: factor * value for key, value in known.items()} if len(known) == len(ends) else None

    agreed, kappa = interval("agreement", 100), interval("kappa", 1)
    return {"judges": found["judges"], "n": found["n"], "ties": found["ties"], "agreement": agreed, "kappa": kappa}
