"""The page's tables of reward models: accuracy by subset, policies by reward models, proxy against gold."""

from typing import Any

import pandas as pd

from prefdag.reporting.load import SuiteResults
from prefdag.reporting.rows import percent

RANKED_BY = ("before", "after", "reference", "reference_mean")


def reward_set_rows(results: SuiteResults) -> list[dict[str, Any]]:
    """Return a line for each subset of each set: accuracy by each of `RANKED_BY`, None for what is not there."""
    lines: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, table in results.reward_sets.items():
        for row in table.to_dict("records"):
            about = {"set": name, "subset": row["subset"], "kind": row["kind"], "pairs": int(row["pairs"])}
            line = lines.setdefault((name, row["kind"], row["subset"]), {**about, **dict.fromkeys(RANKED_BY)})
            values = {"mean": row["accuracy"], "low": row["low"], "high": row["high"]}
            line[row["reward"]] = percent({key: None if pd.isna(value) else value for key, value in values.items()})
    return list(lines.values())


def reward_content(results: SuiteResults) -> dict[str, Any]:
    """Return what the page shows of sets of comparisons and of further reward models."""
    gold = results.proxy_gold
    return {
        "reward_sets": reward_set_rows(results),
        "by_reward_model": policy_rows(results),
        "proxy_gold": [_sides(row) for row in gold.to_dict("records")] if gold is not None else [],
        "gold": results.settings.gold,
    }


def policy_rows(results: SuiteResults) -> list[dict[str, Any]]:
    """Return the mean score of each policy by each reward model; none without further reward models.

    The columns are the reward model before and after its training, then the further ones after theirs.
    """
    further = {path.parent.name: f"trained_{path.parent.name}" for path in results.inputs.reward_variants}
    if not further:
        return []
    columns = {"before training": "untrained", "after training": "trained", **further}
    return [
        {
            "display": row["display"],
            "scores": {
                title: {end or "mean": row[f"{column}{'_' if end else ''}{end}"] for end in ("", "low", "high")}
                for title, column in columns.items()
            },
        }
        for row in results.runs.to_dict("records")
    ]


def _sides(row: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the table of proxy and gold."""
    sides = {
        side: {"mean": row[side], "low": row[f"{side}_low"], "high": row[f"{side}_high"]} for side in ("proxy", "gold")
    }
    return {"answers": row["answers"], "display": row["display"], "kl": row["kl"], **sides}
