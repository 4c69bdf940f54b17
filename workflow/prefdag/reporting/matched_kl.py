"""Reward at a matched KL: read along the path of a training, from SFT through its checkpoints to its final policy.

Where a path first crosses k nats, the policies on both sides of the crossing are mixed by a coin per prompt. The
mixture's reward is on the straight line between the two. KL is convex, so the mixture's KL to SFT is at most what the
line says, k: the value is attained within k nats. The first crossing counts, in the order of training; no largest
reward over checkpoints is taken, which would be a choice by test prompts.

Shapes: S settings, P points of a path, G prompts, B bootstrap draws.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from prefdag.errors import UserError
from prefdag.evaluation.over_seeds import Variance
from prefdag.reporting.tables import checkpoints

Line = tuple[np.ndarray, np.ndarray]  # KL and reward of a path's points, [P] or [1 + B, P]


class Point(NamedTuple):
    """The policies of a setting's seeds at one step: KL and reward by prompt [seeds, G]."""

    kl: np.ndarray
    reward: np.ndarray


def read_checkpoints(answers: pd.DataFrame, scores: Iterable[Path]) -> dict[str, dict[int, pd.DataFrame]]:
    """Read the scores of each run's checkpoints up to its end: run -> step -> scores.csv.

    Args:
        answers: `tables.answers_table`.
        scores: manifests of every set of answers.
    """
    folders = {path.parent.name: path.parent for path in scores}
    tables: dict[str, dict[int, pd.DataFrame]] = {}
    saved = checkpoints(answers)
    for row in saved[~saved["is_later"]].to_dict("records"):
        tables.setdefault(row["run"], {})[int(row["step"])] = pd.read_csv(folders[row["answers"]] / "scores.csv")
    return tables


def by_prompt(table: pd.DataFrame, prompts: pd.Index | None = None, name: str = "") -> pd.DataFrame:
    """Return the mean reward, KL and length of each prompt.

    Raises:
        UserError: the policy `name` answered other prompts than `prompts`, those of SFT.
    """
    means = table.groupby("prompt_id")[["reward", "kl", "length"]].mean()
    if prompts is not None and not means.index.equals(prompts):
        both = len(means.index.intersection(prompts))
        raise UserError(
            f"report.matched_kl: {name} has scores for {both} of the {len(prompts)} prompts that SFT answered and for "
            f"{len(means) - both} others, and policies are compared on the same prompts; generate its answers again"
        )
    return means


def path_of(
    runs: Sequence[str], finals: Mapping[str, pd.DataFrame], saved: Mapping[str, Mapping[int, pd.DataFrame]]
) -> list[Point]:
    """Return the path of a setting: a `Point` for each step that all of its seeds saved, and the final policies last.

    Args:
        runs: the setting's seeds.
        finals, saved: `by_prompt` of each run, and of its checkpoints by step.
    """
    steps = set.intersection(*(set(saved.get(run, {})) for run in runs))
    stages = [[saved[run][step] for run in runs] for step in sorted(steps)]
    return [
        Point(*(np.stack([table[column] for table in tables]) for column in Point._fields))
        for tables in (*stages, [finals[run] for run in runs])
    ]


def draws_of(path: Sequence[Point], weights: np.ndarray) -> Line:
    """Return KL and reward of a path's points for each weighting of the prompts, seeds averaged [1 + B, P]."""
    kl, reward = (np.stack([weights @ values.mean(axis=0) for values in side], 1) for side in zip(*path, strict=True))
    return kl, reward


def reward_within(target: float, start: np.ndarray, paths: Sequence[Line]) -> np.ndarray:
    """Return the reward at `target` nats of each draw [1 + B]; NaN if no path goes so far in the first.

    The crossing is computed again in each draw. A draw in which no path goes so far counts with the reward of the one
    that went furthest.

    Args:
        target: nats, above 0.
        start: SFT's reward [1 + B].
        paths: `draws_of` each setting.
    """
    if max(kl[0].max() for kl, _ in paths) < target:
        return np.full(len(start), np.nan)
    return np.array(
        [along(target, origin, [(kl[draw], reward[draw]) for kl, reward in paths]) for draw, origin in enumerate(start)]
    )


def along(target: float, start: float, paths: Sequence[Line]) -> float:
    """Return the reward at `target` nats, of the setting that goes so far and least far beyond.

    With checkpoints it is read along the setting's own path; without them, on the line through SFT and the final
    policies in the order of their KL.

    Args:
        target: nats, above 0.
        start: SFT's reward.
        paths: KL and reward [P] of each setting, in the order of training.
    """
    reach = np.array([kl.max() for kl, _ in paths])
    enough = np.flatnonzero(reach >= target)
    setting = int(enough[np.argmin(reach[enough])]) if enough.size else int(np.argmax(reach))
    if len(paths[setting][0]) > 1:
        return _first_crossing(target, start, *paths[setting])
    before = [path for path, far in zip(paths, reach, strict=True) if len(path[0]) == 1 or far < target]
    kl, reward = (np.array([side[-1] for side in sides]) for sides in zip(*before, strict=True))
    order = np.argsort(kl)
    line = np.concatenate([[0.0], kl[order]]), np.concatenate([[start], reward[order]])
    return float(np.interp(target, *line))


def _first_crossing(target: float, start: float, kl: np.ndarray, reward: np.ndarray) -> float:
    """Return the reward where a path from SFT first reaches `target` nats, or that of its furthest point."""
    kl, reward = np.concatenate([[0.0], kl]), np.concatenate([[start], reward])
    if kl.max() < target:
        return float(reward[np.argmax(kl)])
    after = int(np.argmax(kl >= target))
    return float(np.interp(target, kl[after - 1 : after + 1], reward[after - 1 : after + 1]))


def seed_variances(target: float, start: float, paths: Sequence[Sequence[Point]]) -> list[Variance]:
    """Return what the seeds of each setting add to the variance of the reward at a matched KL.

    By the jackknife: a setting's path without one of its seeds moves the value. Of a mean this is its variance over
    seeds, divided by their number.

    Reference: Efron and Tibshirani 1993, eq. 11.5.
    """
    means = [[Point(*(side.mean(axis=1) for side in point)) for point in path] for path in paths]  # [seeds] each
    everything = [_line(path) for path in means]
    parts = []
    for index, path in enumerate(means):
        number = len(path[-1].kl)
        moved = [
            along(target, start, [*everything[:index], _line(path, left_out), *everything[index + 1 :]])
            for left_out in range(number if number > 1 else 0)
        ]
        if moved and np.ptp(moved) > 0:
            parts.append(Variance((number - 1) * float(np.var(moved)), number - 1))
    return parts


def _line(path: Sequence[Point], left_out: int | None = None) -> Line:
    """Return KL and reward [P] of a path's points, whose sides are [seeds], averaged without one of the seeds."""
    kl, reward = (
        np.array([(side if left_out is None else np.delete(side, left_out)).mean() for side in sides])
        for sides in zip(*path, strict=True)
    )
    return kl, reward
