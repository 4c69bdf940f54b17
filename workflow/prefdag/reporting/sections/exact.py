"""What the report of an exact suite shows: its figures, its tables and the content of its page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from prefdag.reporting.figures.exact import AT_REST, exact_frontier, gaps

TEMPLATE = "exact.html.jinja"
ON_THE_FRONTIER = 1e-8  # reward


def exact_report(manifests: list[Path]) -> tuple[dict[str, Figure], dict[str, pd.DataFrame], dict[str, Any]]:
    """Figures by name, tables by name, and what the page says. manifests: of every job of the stage `exact`."""
    folders = [path.parent for path in manifests]
    points = pd.concat([pd.read_csv(folder / "points.csv") for folder in folders], ignore_index=True)
    policies = pd.concat([pd.read_csv(folder / "policies.csv") for folder in folders], ignore_index=True)
    curve = pd.read_csv(folders[0] / "frontier.csv")
    points["setting"] = points["setting"].fillna("")
    shown = points.sort_values("gap", kind="stable")
    on = points.groupby("run", sort=False)[["gap", "gradient"]].max()
    content = {
        "rows": [_row(row) for row in shown.to_dict("records")],
        "exact_runs": list(on.index[(on["gap"] < ON_THE_FRONTIER)]),
        "num_runs": points["run"].nunique(),
        "num_prompts": policies["prompt"].nunique(),
        "num_responses": policies["response"].nunique(),
        "reference_reward": float(curve["reward"].iloc[0]),
        "best_reward": float(curve["reward"].max()),
        "at_rest": AT_REST,
    }
    figures = {"exact": exact_frontier(points, curve), "gaps": gaps(points)}
    return figures, {"points": points, "policies": policies, "frontier": curve}, content


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the page's table; what is no number is None."""
    known = {key: None if pd.isna(value) else value for key, value in row.items()}
    state = "no minimum" if known["gradient"] is None else "" if known["gradient"] <= AT_REST else "kink"
    return {**known, "state": state}
