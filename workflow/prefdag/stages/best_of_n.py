"""Measure what the best of N samples of the SFT policy is worth, for every N up to the size of the pool.

INPUTS   scores of the pool `sft@pool`
OUTPUTS  best_of_n.csv: a row for each selector, measure and N
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from prefdag.config.sections.best_of_n import BestOfN
from prefdag.errors import UserError
from prefdag.evaluation.best_of_n import Values, divergence_bound, divergences, expected_value, sizes, win_rates
from prefdag.evaluation.bootstrap import summarise
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section

PROXY = "trained"  # the column of the trained reward model


class Job(Section):
    """The keys of `--config`."""

    best_of_n: BestOfN


def run(job: Job, workspace: Workspace, *, scores: Path) -> dict[str, Any]:
    """Expected reward, win rate against one sample, and KL to SFT, with intervals over prompts.

    Selected by the headline reward; if a reward model was trained, by that as well, measured by itself and
    by the headline reward: how far the two part is over-optimisation (Gao et al. 2023, arXiv 2210.10760).
    """
    headline = job.best_of_n.selected_by
    pools = _pools(scores.parent / "scores.csv", [headline, PROXY])
    curves = [(headline, headline)]
    if PROXY in pools and headline != PROXY:
        curves += [(PROXY, PROXY), (PROXY, headline)]
    num, n = pools[headline].shape
    rows: list[dict[str, Any]] = [
        {"selected_by": selector, "measured_by": measure, "n": best_of}
        | _row(job.best_of_n, pools[selector], pools[measure], best_of, f"{selector}/{measure}/{best_of}")
        for selector, measure in curves
        for best_of in sizes(n)
    ]
    path = workspace.output / "best_of_n.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    workspace.journal.artifact(path, path.name)
    workspace.journal.metrics(None, {f"reward_best_of_{row['n']}": row["mean"] for row in rows[: len(sizes(n))]})
    return {"prompts": num, "samples": n}


def _row(settings: BestOfN, selected_by: Values, measured: Values, best_of: int, name: str) -> dict[str, Any]:
    """One N. The largest has no win rate: no sample of the pool is left to be held against."""

    def mean(values: Values, *parts: str) -> dict[str, float]:
        prompts = np.arange(len(values))
        summary = summarise(values, prompts, seed=f"{settings.seed}/{name}", bootstrap=settings.bootstrap)
        return dict(zip(parts, (summary.mean, summary.low, summary.high, summary.se), strict=False))

    row: dict[str, Any] = mean(expected_value(selected_by, measured, best_of), "mean", "low", "high", "se")
    lonely = best_of == measured.shape[1]
    won = {} if lonely else mean(win_rates(selected_by, measured, best_of), "win_rate", "win_low", "win_high")
    row |= {"win_rate": None, "win_low": None, "win_high": None, **won}
    row |= mean(divergences(selected_by, best_of), "kl", "kl_low", "kl_high")
    return {**row, "kl_bound": divergence_bound(best_of)}


def _pools(path: Path, wanted: list[str]) -> dict[str, Values]:
    """The wanted columns that are there, each [prompts, samples]. Raises `UserError` for a pool with gaps."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    rows.sort(key=lambda row: (int(row["prompt_id"]), int(row["sample"])))
    counts = np.unique([int(row["prompt_id"]) for row in rows], return_counts=True)[1]
    if counts.min() < counts.max():
        raise UserError(
            f"{path}: a prompt has {counts.min()} samples and another {counts.max()}; rerun the stage score"
        )
    return {
        name: np.array([float(row[name]) for row in rows]).reshape(len(counts), -1)
        for name in dict.fromkeys(wanted)
        if name in rows[0]
    }
