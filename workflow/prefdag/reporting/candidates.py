"""The candidates that `select` compared on validation prompts, and what it chose."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from prefdag.reporting.tables import SYMBOLS

CRITERIA = {
    "reward_at_kl": "mean reward within {kl:g} nats of SFT (a candidate further away counts as its mixture with SFT "
    "that stays within)",
    "win_rate": "win rate by the headline judge",
    "held_out_accuracy": "accuracy on held-out validation pairs",
}
STEPS = "steps"
VALUES = ["value", "low", "high", "reward", "kl", "chosen"]


def candidates_table(choices: Sequence[Path]) -> pd.DataFrame | None:
    """Tabulate the candidates of every selected row: row, setting, criterion, SFT's reward and `VALUES`, or None.

    With early stopping also `training`, the setting without its length, and `steps`, the length.

    choices: manifests of `choose`, one for each row.
    """
    tables = []
    for path in choices:
        choice, table = (
            json.loads((path.parent / "choice.json").read_text()),
            pd.read_csv(path.parent / "candidates.csv"),
        )
        settings = _settings(path, choice["setting"])
        table = table.rename(columns={choice["criterion"]: "value"})
        about = {"row": path.parent.name, "setting": settings, "criterion": choice["criterion"]}
        about |= {"sft_reward": choice.get("sft_reward")}
        if "lengths" in choice:
            about |= {"training": _settings(path, [key for key in choice["setting"] if key != STEPS])}
            about |= {"steps": table[STEPS]}
        tables.append(pd.DataFrame(about).join(table[VALUES]))
    return pd.concat(tables, ignore_index=True) if tables else None


def _settings(path: Path, keys: Iterable[str]) -> list[str]:
    """Return the values of these keys of each candidate, as one text."""
    return [", ".join(f"{SYMBOLS.get(key, key)} {row[key]}" for key in keys) for row in _plain(path)]


def _plain(path: Path) -> list[dict[str, str]]:
    """Return the rows of candidates.csv as they are written: a table of floats would print 400 steps as 400.0."""
    return pd.read_csv(path.parent / "candidates.csv", dtype=str).to_dict("records")


def protocol(choices: Sequence[Path]) -> str:
    """Return the protocol of the search in a sentence; nothing without one."""
    if not choices:
        return ""
    made = [json.loads((path.parent / "choice.json").read_text()) for path in choices]
    first, sizes = made[0], sorted({one["candidates"] // one.get("lengths", 1) for one in made})
    lengths = sorted({one.get("lengths", 1) for one in made})
    seen = "training alone, at its checkpoints too" if lengths != [1] else "setting alone"
    stopped = f", measured at {' or '.join(map(str, lengths))} lengths" if lengths != [1] else ""
    seeds = sorted({one["seeds"] for one in made})
    return (
        f"Of each row, {' or '.join(map(str, sizes))} settings were trained with {' or '.join(map(str, seeds))} "
        f"seed{'' if seeds == [1] else 's'} each{stopped}, and the one of largest "
        f"{CRITERIA[first['criterion']].format(kl=first['kl'] or 0)} on {first['prompts']} validation prompts was "
        f"chosen, averaged over its seeds, of equal ones the first; the test prompts saw the chosen {seen}."
    )


def candidates_rows(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Return a line of the page for each candidate: its value with an interval, if it has one."""
    rows = []
    for row in table.to_dict("records") if table is not None else ():
        ends = {key: None if pd.isna(row[name]) else row[name] for key, name in (("low", "low"), ("high", "high"))}
        rows.append({**row, "measured": {"mean": row["value"], **ends}})
    return rows
