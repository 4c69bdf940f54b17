"""Accuracy of a reward on subsets of comparisons: by label, by section of labels, and by which response is longer.

Shapes: N comparisons of two responses, the chosen one first.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prefdag.config.sections.evaluate_reward import UNLABELLED, Sections
from prefdag.evaluation.bootstrap import FEWEST_PROMPTS, RESAMPLED_AT_ONCE, share_interval, wilson
from prefdag.evaluation.calibration import ranked_correctly
from prefdag.seeds import generator

ALIKE = 0.1  # lengths that differ by no more than this share of the longer one
LENGTHS = ("chosen longer", "of like length", "chosen shorter")
OVERALL = "mean of sections"
RESAMPLES = 1000


def length_classes(tokens: NDArray[np.int64]) -> NDArray[np.str_]:
    """Return which of `LENGTHS` each comparison is of. tokens: of chosen and rejected responses, [N, 2]."""
    chosen, rejected = tokens[:, 0], tokens[:, 1]
    like = np.abs(chosen - rejected) <= ALIKE * np.maximum(chosen, rejected)
    return np.where(like, LENGTHS[1], np.where(chosen > rejected, LENGTHS[0], LENGTHS[2]))


def accuracy_by_subset(
    rewards: Mapping[str, NDArray[np.floating]],
    prompts: NDArray[np.int64],
    tokens: NDArray[np.int64],
    labels: Sequence[Sequence[str]],
) -> pd.DataFrame:
    """Return the share of comparisons ranked right: of all, of each label and of each length class.

    Args:
        rewards: name -> rewards of chosen and rejected responses, [N, 2].
        prompts: equal for equal prompts, [N].
        tokens: of chosen and rejected responses, [N, 2].
        labels: the subsets of each comparison, which may be several.

    Returns:
        Columns kind (all, subset, length), subset, reward, accuracy, low, high, pairs, prompts. A tie counts half.
        Subsets come by their number of comparisons. Intervals resample prompts; where every comparison of a subset is
        ranked alike they are Wilson's over prompts, and NaN for fewer than `FEWEST_PROMPTS` prompts.
    """
    number = len(prompts)
    members = {("all", "all"): np.ones(number, bool)}
    if any(labels):
        named = {name: np.array([name in one for one in labels]) for one in labels for name in one}
        named[UNLABELLED] = np.array([not one for one in labels])
        order = sorted(named, key=lambda name: (name == UNLABELLED, -int(named[name].sum()), name))
        members |= {("subset", name): named[name] for name in order}
    classes = length_classes(tokens)
    members |= {("length", name): classes == name for name in LENGTHS}
    rows = []
    for (kind, subset), inside in members.items():
        if not inside.any():
            continue
        for reward, values in rewards.items():
            right = ranked_correctly(values[inside, 0] - values[inside, 1])
            low, high = _interval(right, prompts[inside], f"subset/{kind}/{subset}/{reward}")
            measured = {"accuracy": float(right.mean()), "low": low, "high": high}
            size = {"pairs": int(inside.sum()), "prompts": len(np.unique(prompts[inside]))}
            rows.append({"kind": kind, "subset": subset, "reward": reward, **measured, **size})
    return pd.DataFrame(rows)


def _interval(right: NDArray[np.float64], prompts: NDArray[np.int64], seed: str) -> tuple[float, float]:
    if len(np.unique(prompts)) < FEWEST_PROMPTS:
        return float("nan"), float("nan")
    return share_interval(right, prompts, seed=seed, bootstrap=RESAMPLES)


def accuracy_by_section(
    rewards: Mapping[str, NDArray[np.floating]],
    prompts: NDArray[np.int64],
    labels: Sequence[Sequence[str]],
    sections: Sections,
) -> pd.DataFrame:
    """Return the accuracy of each section of subsets, and the unweighted mean over sections.

    A list of subsets is pooled: each of its comparisons counts once, which is the mean of the subsets' accuracies
    weighted by their numbers of comparisons. Of an object, each subset's accuracy counts with its weight.

    Args:
        rewards: name -> rewards of chosen and rejected responses, [N, 2].
        prompts: equal for equal prompts, [N].
        labels: the subsets of each comparison.
        sections: section -> its subsets, each of which some comparison has.

    Returns:
        The columns of `accuracy_by_subset`, of kind overall (one row for each reward) and section. Intervals resample
        the prompts of all sections together; a resample without any comparison of a section does not count.

    Reference: Lambert et al. 2024 (RewardBench), and `calculate_scores_per_section` of its code.
    """
    weights = np.stack([_weights(subsets, labels) for subsets in sections.values()], axis=1)  # [N, S]
    inside = weights > 0
    sizes = [(int(column.sum()), len(np.unique(prompts[column]))) for column in (inside.any(axis=1), *inside.T)]
    kinds = ["overall", *["section"] * len(sections)]
    rows = []
    for reward, values in rewards.items():
        right = ranked_correctly(values[:, 0] - values[:, 1])
        each = (weights * right[:, None]).sum(axis=0) / weights.sum(axis=0)
        lows, highs = _section_intervals(right, weights, prompts, each, f"section/{reward}")
        measured = zip(kinds, (OVERALL, *sections), (each.mean(), *each), lows, highs, sizes, strict=True)
        for kind, name, accuracy, low, high, (pairs, num_prompts) in measured:
            about = {"kind": kind, "subset": name, "reward": reward, "accuracy": float(accuracy)}
            rows.append({**about, "low": low, "high": high, "pairs": pairs, "prompts": num_prompts})
    table = pd.DataFrame(rows)
    order = {name: place for place, name in enumerate((OVERALL, *sections))}
    return table.sort_values("subset", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _weights(subsets: Sequence[str] | Mapping[str, float], labels: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return the weight of each comparison in a section, 0 outside of it: [N]."""
    members = {name: np.array([name in one for one in labels]) for name in subsets}
    if isinstance(subsets, Mapping):
        return np.sum([subsets[name] / inside.sum() * inside for name, inside in members.items()], axis=0)
    return np.any([*members.values()], axis=0).astype(float)


def _section_intervals(
    right: NDArray[np.float64],
    weights: NDArray[np.float64],
    prompts: NDArray[np.int64],
    each: NDArray[np.float64],
    seed: str,
) -> tuple[list[float], list[float]]:
    """Return the lower and upper ends of the mean of sections and of each section, S + 1 each.

    Args:
        right: 1 where a comparison is ranked right, 0.5 for a tie, else 0, [N].
        weights: of each comparison in each section, [N, S].
        prompts: equal for equal prompts, [N].
        each: accuracy of each section, [S].
        seed: name of the random stream.
    """
    used = (weights > 0).any(axis=1)
    right, weights, prompts = right[used], weights[used], prompts[used]
    inside = weights > 0
    counts = np.array([len(np.unique(prompts[column])) for column in inside.T])
    means = _resampled_means(right, weights, prompts, seed)
    ends = np.quantile(means[~np.isnan(means).any(axis=1)], [0.025, 0.975], axis=0)  # [2, S + 1]
    is_flat = np.array([np.ptp(right[column]) == 0 for column in inside.T])  # a bootstrap would have no width
    by_wilson = np.array([wilson(share, count) for share, count in zip(each, counts, strict=True)]).T  # [2, S]
    ends[:, 1:][:, is_flat] = by_wilson[:, is_flat]
    if is_flat.all():
        ends[:, 0] = by_wilson.mean(axis=1)
    ends[:, 1:][:, counts < FEWEST_PROMPTS] = np.nan
    if counts.min() < FEWEST_PROMPTS:
        ends[:, 0] = np.nan
    return ends[0].tolist(), ends[1].tolist()


def _resampled_means(
    right: NDArray[np.float64], weights: NDArray[np.float64], prompts: NDArray[np.int64], seed: str
) -> NDArray[np.float64]:
    """Return the mean of sections and each section's accuracy in each resample of prompts, [RESAMPLES, S + 1].

    NaN where a resample has no comparison of a section. The arguments are those of `_section_intervals`.
    """
    names, where = np.unique(prompts, return_inverse=True)
    sums, totals = np.zeros((2, len(names), weights.shape[1]))  # by prompt and section
    np.add.at(sums, where, weights * right[:, None])
    np.add.at(totals, where, weights)
    random = generator(0, "bootstrap", seed)
    chunk = max(1, RESAMPLED_AT_ONCE // sums.size)
    means = np.empty((RESAMPLES, weights.shape[1] + 1))
    for start in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - start)
        sample = random.integers(0, len(names), size=(size, len(names)))
        in_resample = totals[sample].sum(axis=1)
        with np.errstate(invalid="ignore"):
            means[start : start + size, 1:] = sums[sample].sum(axis=1) / in_resample
    means[:, 0] = means[:, 1:].mean(axis=1)
    return means
