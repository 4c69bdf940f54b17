"""Cells times arms, interleaved round by round, and what they come to."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.arms import Arm, Cell, run

# Steps may differ by this much: losses at most, and on average with sign; gradient norms as a share. The second is of
# bf16, whose rounding of log-ratios alone moves a mean of some pairs in the third digit.
ALLOWED = {"cpu": (1e-4, 1e-6, 1e-3), "cuda": (2e-2, 2e-3, 5e-2)}
OURS = "prefdag"


@dataclass(frozen=True)
class Length:
    """How long a measurement is: rounds of every arm, optimizer steps of a run, pairs of a step."""

    rounds: int
    steps: int
    pairs_per_step: int
    threads: int


def interleaved(cell: Cell, arms: Sequence[Arm], length: Length) -> Iterator[dict[str, Any]]:
    """One record for each run of an arm, A B C A B C, its losses among them."""
    for turn in range(length.rounds):
        for arm in arms:
            result = run(arm, cell, length.pairs_per_step, length.steps, length.threads)
            yield {
                "shape": cell.shape,
                "profile": cell.profile,
                "task": cell.task,
                "arm": arm.name,
                "round": turn,
                "per_device": arm.per_device or None,
                "keeping": arm.keeping,
                "pairs_per_s": result["pairs_per_s"],
                "device": result["device"].partition(":")[0],
                "precision": result.get("precision", "float32"),
                "memory_added_mb": result["peak_cuda_mb"] or result["peak_rss_mb"] - result["start_rss_mb"],
                "gemm_gflops": result["gemm_gflops"],
                "stolen": result["stolen"],
                "losses": result["losses"],
                "grad_norms": result["grad_norms"],
            }


def best(cell: Cell, arm: str, candidates: Sequence[tuple[int, bool]], length: Length) -> Arm:
    """TRL's fastest setting (pairs per device, keeping freed pages) by one short run of each."""
    short = Length(1, 3, length.pairs_per_step, length.threads)
    arms = [Arm(arm, per_device=size, keeping=keeping) for size, keeping in candidates]
    if len(arms) == 1:
        return arms[0]
    speeds = {arm: next(interleaved(cell, [arm], short))["pairs_per_s"] for arm in arms}
    return max(speeds, key=lambda arm: speeds[arm])


def disagreement(runs: pd.DataFrame) -> pd.DataFrame:
    """Of every arm's first run against prefdag's, step by step: the losses' largest and mean signed difference, and the
    largest of the gradient norms', as a share of them."""
    first = runs[runs["round"] == 0].set_index("arm")
    ours = first.loc[OURS]
    rows = []
    for arm, row in first.iterrows():
        differences = [a - b for a, b in zip(row["losses"], ours["losses"], strict=False)]
        norms = [abs(a / b - 1) for a, b in zip(row["grad_norms"], ours["grad_norms"], strict=False)]
        if differences:
            rows.append((arm, max(map(abs, differences)), statistics.fmean(differences), max(norms, default=0.0)))
    columns = ["arm", "largest_difference", "signed_difference", "norm_difference"]
    return pd.DataFrame(rows, columns=columns).set_index("arm")


def ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """prefdag's pairs per second over each arm's, round by round: median, lowest and highest; and memory's ratio.

    `agrees` is whether losses and gradient norms do; a speed-up over an arm that computes something else is void.
    """
    rows = []
    for (shape, profile, task), cell in runs.groupby(["shape", "profile", "task"], sort=False):
        off = disagreement(cell)
        in_half = "precision" in cell and cell["precision"].eq("bfloat16").all()
        largest, signed, norm = ALLOWED["cuda" if in_half else cell["device"].iloc[0]]
        speed = cell.pivot(index="round", columns="arm", values="pairs_per_s")
        memory = cell.groupby("arm")["memory_added_mb"].median()
        for arm in [name for name in cell["arm"].unique() if name != OURS]:
            quotient = speed[OURS] / speed[arm]
            agrees = arm not in off.index or bool(
                off.loc[arm, "largest_difference"] <= largest
                and abs(off.loc[arm, "signed_difference"]) <= signed
                and off.loc[arm, "norm_difference"] <= norm
            )
            rows.append(
                {
                    "shape": shape,
                    "profile": profile,
                    "task": task,
                    "arm": arm,
                    "speedup": quotient.median(),
                    "lowest": quotient.min(),
                    "highest": quotient.max(),
                    "memory": memory[OURS] / memory[arm],
                    "agrees": agrees,
                    **(off.loc[arm].to_dict() if arm in off.index else {}),
                }
            )
    columns = ["shape", "profile", "task", "arm", "speedup", "lowest", "highest", "memory", "agrees"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
