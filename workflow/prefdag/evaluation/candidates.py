"""What candidates of a search reach on validation prompts. Shapes: C candidates, S seeds, G prompts, D resamples."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefdag.errors import UserError
from prefdag.evaluation.scores import Scores
from prefdag.provenance.manifest import read_manifest
from prefdag.seeds import generator

Values = NDArray[np.float64]
BOOTSTRAP = 1000
LEAST_PROMPTS = 2


def by_prompt(scores: Scores) -> Values:
    """Return the mean reward and KL of each prompt, in the order of their numbers [2, G]."""
    prompts, where = np.unique([prompt for prompt, _ in scores.keys], return_inverse=True)
    if len(prompts) < LEAST_PROMPTS:
        raise UserError(
            f"{scores.folder}: {len(prompts)} validation prompts, and `select` needs at least {LEAST_PROMPTS}; hold "
            "more out (prepare.validation_fraction, data.validation or data.world.validation_prompts)"
        )
    sums = [np.bincount(where, weights=scores.column(name)) for name in ("reward", "kl")]
    return np.array(sums) / np.bincount(where)


def reward_within(kl: float, tables: Values, start: Values, seed: int) -> Values:
    """Return the reward that each candidate reaches within `kl` nats of SFT, and its 95% interval [C, 3].

    A candidate further away counts as its mixture with SFT, answering by SFT with the probability that brings it to
    `kl`: the mixture's reward is on the straight line between the two, and as KL is convex, its KL is at most `kl`.
    One with less reward than SFT counts with its own: its mixtures would gain by being nearer to SFT.

    Args:
        kl: nats.
        tables: reward and KL by prompt of each candidate and seed [C, S, 2, G].
        start: SFT's reward and KL by prompt [2, G].
        seed: of the bootstrap over prompts, the same resamples for all.
    """
    num_prompts = start.shape[1]
    even = np.full(num_prompts, 1 / num_prompts)
    draws = generator(seed, "bootstrap", "select").multinomial(num_prompts, even, BOOTSTRAP)
    weights = np.vstack([np.ones(num_prompts), draws]) / num_prompts
    reward, distance = (tables[:, :, row] @ weights.T for row in (0, 1))  # [C, S, 1 + D]
    share = np.minimum(1.0, kl / np.maximum(distance, 1e-12))
    origin = weights @ start[0]
    values = np.where(reward > origin, origin + share * (reward - origin), reward).mean(axis=1)
    return np.column_stack([values[:, 0], *np.quantile(values[:, 1:], [0.025, 0.975], axis=1)])


def win_rates(judges: Sequence[Path], num_seeds: int, seed: int) -> Values:
    """Return the win rate of each candidate by the headline judge, with its 95% interval over prompts [C, 3]."""
    rates = np.array([_verdicts(path.parent / "verdicts.csv") for path in judges])
    rates = rates.reshape(-1, num_seeds, rates.shape[1]).mean(axis=1)  # [C, G]
    num_prompts = rates.shape[1]
    draws = generator(seed, "bootstrap", "select").multinomial(
        num_prompts, np.full(num_prompts, 1 / num_prompts), BOOTSTRAP
    )
    return np.column_stack([rates.mean(axis=1), *np.quantile(rates @ draws.T / num_prompts, [0.025, 0.975], axis=1)])


def _verdicts(path: Path) -> Values:
    """Return each prompt's mean verdict by the headline judge, the first [G]."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    rows = [row for row in rows if row.get("judge") == rows[0].get("judge")]
    _, where = np.unique([int(row["prompt_id"]) for row in rows], return_inverse=True)
    return np.bincount(where, weights=[float(row["verdict"]) for row in rows]) / np.bincount(where)


def held_out_accuracy(trainings: Sequence[Path], num_seeds: int) -> Values:
    """Return the share of validation pairs that each candidate orders as labelled, without an interval [C, 3]."""
    values = []
    for path in trainings:
        accuracy = (read_manifest(path).content.get("facts") or {}).get("validation_accuracy")
        if accuracy is None:
            raise UserError(
                f"{path}: no accuracy on validation pairs, which select.criterion held_out_accuracy reads; hold "
                "validation comparisons out, or choose reward_at_kl"
            )
        values.append(float(accuracy))
    means = np.array(values).reshape(-1, num_seeds).mean(axis=1)
    return np.column_stack([means, np.full((len(means), 2), np.nan)])


def measured(table: Values) -> dict[str, Any]:
    """Return a candidate's mean reward and KL on validation prompts, over its seeds. table: [S, 2, G]."""
    reward, kl = table.mean(axis=(0, 2))
    return {"reward": float(reward), "kl": float(kl)}
