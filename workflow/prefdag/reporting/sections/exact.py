"""The report of an exact suite: its figures, its tables and the content of its page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from prefdag.reporting.figures.catalogue import Catalogue
from prefdag.reporting.figures.exact import AT_REST, exact_frontier
from prefdag.reporting.figures.exact import gaps as gaps_figure

TEMPLATE = "exact.html.jinja"
ON_THE_FRONTIER = 1e-8  # reward


EXACT_FIGURES = Catalogue()


@dataclass(frozen=True)
class ExactResults:
    """The tables of the stage `exact`: settings of every loss, their policies' responses, and the exact frontier."""

    points: pd.DataFrame
    policies: pd.DataFrame
    frontier: pd.DataFrame


def load_exact(manifests: list[Path]) -> ExactResults:
    """Read the jobs of the stage `exact`."""
    folders = [path.parent for path in manifests]
    points, policies = (
        pd.concat([pd.read_csv(folder / f"{name}.csv") for folder in folders], ignore_index=True)
        for name in ("points", "policies")
    )
    points["setting"] = points["setting"].fillna("")
    return ExactResults(points, policies, pd.read_csv(folders[0] / "frontier.csv"))


@EXACT_FIGURES.add(
    "Every loss's minima on the exact frontier of reward and KL",
    "The line is the largest expected reward that any policy has at its KL: that of the optima pi_ref exp(r / beta) / "
    "Z (Rafailov et al. 2023, eq. 4). A marker is where one setting of a loss has its minimum; hollow, where the "
    "minimisation did not come to rest.",
    section="exact",
)
def exact(results: ExactResults) -> Figure:
    return exact_frontier(results.points, results.frontier)


@EXACT_FIGURES.add(
    "The gap of each loss to the frontier",
    "Left, the reward that a setting misses to the frontier at its own KL; the grey band holds what float64 and the "
    "minimiser leave. Right, that KL: a loss that hardly moves misses little. Rows are ordered by their largest gap. "
    "Hollow: a kink, or no minimum.",
    section="gaps",
)
def gaps(results: ExactResults) -> Figure:
    return gaps_figure(results.points)


def exact_content(results: ExactResults) -> dict[str, Any]:
    """Return what the page shows."""
    points, policies, curve = results.points, results.policies, results.frontier
    on = points.groupby("run", sort=False)[["gap", "gradient"]].max()
    return {
        "rows": [_row(row) for row in points.sort_values("gap", kind="stable").to_dict("records")],
        "exact_runs": list(on.index[(on["gap"] < ON_THE_FRONTIER)]),
        "num_runs": points["run"].nunique(),
        "num_prompts": policies["prompt"].nunique(),
        "num_responses": policies["response"].nunique(),
        "reference_reward": float(curve["reward"].iloc[0]),
        "best_reward": float(curve["reward"].max()),
        "at_rest": AT_REST,
    }


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the page's table; what is no number is None."""
    known = {key: None if pd.isna(value) else value for key, value in row.items()}
    state = "no minimum" if known["gradient"] is None else "" if known["gradient"] <= AT_REST else "kink"
    return {**known, "state": state}
