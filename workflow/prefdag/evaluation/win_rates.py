"""Win rates with length control, position bias, and the agreement of judges.

A verdict is 1 where ours wins, 0 where theirs wins, 0.5 for a tie, or between. Shapes: N rows, G prompts, B resamples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prefdag.evaluation.bootstrap import FEWEST_PROMPTS, share_interval, standard_error, win_rate
from prefdag.seeds import generator

BIASED_BELOW = 0.01  # the p value below which a judge counts as biased by order
NEARLY_EQUAL = 0.1  # the largest difference of matched lengths, as a share of the longer
RIDGE = 1e-4  # keeps separable resamples finite (no loss, or wins by length alone); negligible elsewhere
WEIGHTS_AT_ONCE = 2_000_000  # row weights in memory at a time: 16 MB, several copies
MAX_STEPS, MAX_STEP = 60, 4.0  # of Newton's method: number and size


@dataclass(frozen=True)
class JudgedPairs:
    """One judge's verdicts on N pairs of answers.

    Attributes:
        judge: Name of the judge.
        keys: Identifies each pair across judges.
        verdicts: [N], nan for a pair without a verdict.
        prompts: The prompt of each pair [N].
        lengths: Lengths of ours and of theirs, [N] each.
        first: Whether ours was shown first [N], for pairs shown in one order.
        orders: The verdicts with ours shown first and with ours shown second, for pairs shown in both orders.
        model: Who wrote ours, where a file names it.
        against: Who wrote theirs, where a file names it.
    """

    judge: str
    keys: list[tuple[Any, ...]]
    verdicts: np.ndarray
    prompts: np.ndarray
    lengths: tuple[np.ndarray, np.ndarray] | None = None
    first: np.ndarray | None = None
    orders: tuple[np.ndarray, np.ndarray] | None = None
    model: str | None = None
    against: str | None = None

    @property
    def has_verdict(self) -> np.ndarray:
        return ~np.isnan(self.verdicts)


def summarise_verdicts(judged: JudgedPairs, *, seed: str, bootstrap: int) -> dict[str, Any]:
    """Return a judge's win rate with standard error and interval, length-controlled and by order where known.

    Pairs without a verdict are counted and left out. With verdicts on fewer than two prompts every rate is None.

    Args:
        judged: The verdicts.
        seed: Name of the random stream.
        bootstrap: Number of resamples.
    """
    rows = judged.has_verdict
    verdicts, prompts = judged.verdicts[rows], judged.prompts[rows]
    left_out = {"without_verdict": int((~rows).sum())}
    if len(np.unique(prompts)) < 2:
        return {"win_rate": None, "low": None, "high": None, "standard_error": None, "n": len(verdicts), **left_out}
    summary: dict[str, Any] = win_rate(verdicts, prompts, seed=seed, bootstrap=bootstrap).to_dict() | left_out
    if judged.lengths is not None:
        ours, theirs = (lengths[rows] for lengths in judged.lengths)
        for name, rate in (("length_controlled", length_controlled), ("matched_length", matched_length)):
            summary[name] = rate(verdicts, ours, theirs, prompts, seed=seed, bootstrap=bootstrap)
    if judged.first is not None:
        summary["order"] = order_bias(verdicts, judged.first[rows])
    if judged.orders is not None:
        summary["order"] = order_bias_of_both(judged.orders[0][rows], judged.orders[1][rows])
    return summary


def length_controlled(verdicts, ours, theirs, prompts, *, seed: str, bootstrap: int) -> dict[str, float] | None:
    """Return the length-controlled win rate, by the logistic model of AlpacaEval 2.

    logit P(win) = theta + phi tanh(d / std(d)), where d is the difference of lengths; the rate is sigmoid(theta). The
    paper's term for the difficulty of an instruction is omitted, since it needs other models' verdicts on the same
    prompts. None where d is constant: length and quality cannot be separated.

    Args:
        verdicts: [N].
        ours: Lengths of our answers [N].
        theirs: Lengths of their answers [N].
        prompts: The prompt of each pair [N].
        seed: Name of the random stream.
        bootstrap: Number of resamples.

    Reference: Dubois et al. 2024, eq. 2.
    """
    gap = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    spread = gap.std(ddof=1) if len(gap) > 1 else 0.0
    if spread == 0:
        return None
    x, y = np.tanh(gap / spread), np.asarray(verdicts, dtype=np.float64)
    theta, phi = logistic(x, y, np.ones((1, len(x))))
    names, where = np.unique(prompts, return_inverse=True)
    random, rates = generator(0, "length", seed), np.empty(bootstrap)
    at_once = max(1, WEIGHTS_AT_ONCE // len(x))
    for start in range(0, bootstrap, at_once):
        samples = random.integers(0, len(names), size=(min(at_once, bootstrap - start), len(names)))
        counts = np.stack([np.bincount(sample, minlength=len(names)) for sample in samples])
        rates[start : start + at_once] = _sigmoid(logistic(x, y, counts[:, where])[0])
    low, high = np.quantile(rates, [0.025, 0.975])
    rate = float(_sigmoid(theta)[0])
    return {"win_rate": rate, "low": float(low), "high": float(high), "phi": float(phi[0])}


def logistic(x, y, weights) -> tuple[np.ndarray, np.ndarray]:
    """Fit B weighted logistic regressions at once by Newton's method, and return theta and phi [B].

    They maximise sum_n w_bn (y_n log P_n + (1 - y_n) log(1 - P_n)) with logit P_n = theta + phi x_n.

    Args:
        x: Covariate [N].
        y: Outcome between 0 and 1 [N].
        weights: [B, N].
    """
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(MAX_STEPS):
        p = _sigmoid(theta[:, None] + phi[:, None] * x)
        residual, curvature = weights * (y - p), weights * p * (1 - p)
        to_theta, to_phi = residual.sum(axis=1) - RIDGE * theta, residual @ x - RIDGE * phi
        a, b, c = curvature.sum(axis=1) + RIDGE, curvature @ x, curvature @ (x * x) + RIDGE
        scale = a * c - b * b
        moved = (c * to_theta - b * to_phi) / scale, (a * to_phi - b * to_theta) / scale
        theta, phi = theta + np.clip(moved[0], -MAX_STEP, MAX_STEP), phi + np.clip(moved[1], -MAX_STEP, MAX_STEP)
        if max(np.abs(moved[0]).max(), np.abs(moved[1]).max()) < 1e-10:
            break
    return theta, phi


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def matched_length(verdicts, ours, theirs, prompts, *, seed: str, bootstrap: int) -> dict[str, float | int | None]:
    """Return the win rate of pairs whose lengths differ by at most a tenth of the longer: a check without a model.

    Args:
        verdicts: [N] from 0 (loss) to 1 (win).
        ours, theirs: [N] lengths in tokens.
        prompts: [N] the prompt of each pair; the interval resamples prompts.
        seed: name of the random stream.
        bootstrap: number of resamples.

    Returns:
        `win_rate` (None without a pair), `n`, and from `FEWEST_PROMPTS` prompts on `low` and `high`.
    """
    longer = np.maximum(ours, theirs)
    near = np.abs(np.asarray(ours) - theirs) <= NEARLY_EQUAL * longer
    matched = np.asarray(verdicts)[near]
    if len(np.unique(np.asarray(prompts)[near])) < FEWEST_PROMPTS:
        return {"win_rate": float(matched.mean()) if len(matched) else None, "n": len(matched)}
    low, high = share_interval(matched, np.asarray(prompts)[near], seed=f"{seed}/matched", bootstrap=bootstrap)
    return {"win_rate": float(matched.mean()), "low": low, "high": high, "n": len(matched)}


def order_bias(verdicts, first) -> dict[str, Any]:
    """Test for position bias where each pair was shown in one order: Fisher's exact test of wins and losses by order.

    Args:
        verdicts: [N].
        first: Whether ours was shown first [N].

    Returns:
        The win rates by order, the share of verdicts for the answer shown first, and the two-sided p value.
    """
    from scipy.stats import fisher_exact

    verdicts, first = np.asarray(verdicts, dtype=np.float64), np.asarray(first, dtype=bool)
    table = [[int((verdicts[side] > 0.5).sum()), int((verdicts[side] < 0.5).sum())] for side in (first, ~first)]
    return _order(verdicts[first], verdicts[~first], float(fisher_exact(table).pvalue))


def order_bias_of_both(shown_first, shown_second) -> dict[str, Any]:
    """Test for position bias where each pair was shown in both orders: McNemar's exact test, two-sided.

    Args:
        shown_first: Verdicts with ours shown first [N].
        shown_second: Verdicts with ours shown second [N].
    """
    from scipy.stats import binomtest

    shown_first, shown_second = (np.asarray(side, dtype=np.float64) for side in (shown_first, shown_second))
    to_first, to_second = int((shown_first > shown_second).sum()), int((shown_first < shown_second).sum())
    p_value = float(binomtest(to_first, to_first + to_second).pvalue) if to_first + to_second else 1.0
    moved = {"first_in_both": to_first, "second_in_both": to_second}
    return {**_order(shown_first, shown_second, p_value), **moved}


def _order(shown_first: np.ndarray, shown_second: np.ndarray, p_value: float) -> dict[str, Any]:
    sides = {"ours_first": shown_first, "ours_second": shown_second}
    rates = {
        name: {"win_rate": float(side.mean()) if len(side) else None, "n": len(side)} for name, side in sides.items()
    }
    to_first = np.concatenate([shown_first, 1 - shown_second])  # the verdict for the answer shown first
    share = float(to_first.mean()) if len(to_first) else None
    judge = "biased" if p_value < BIASED_BELOW else "no bias shown"
    return {**rates, "prefers_first": share, "p_value": p_value, "judge": judge}


def agreement(one: JudgedPairs, other: JudgedPairs, *, seed: str, bootstrap: int) -> dict[str, Any]:
    """Measure the agreement of two judges, or of a judge and people, on the pairs that both have judged.

    `agreement` is the share of equal verdicts among the pairs that neither calls a tie (table 2 of the DPO paper);
    `ties` counts the other pairs. `kappa` is Cohen's kappa of win, tie and loss over all pairs.

    Args:
        one: Verdicts of the first judge.
        other: Verdicts of the second judge.
        seed: Name of the random stream.
        bootstrap: Number of resamples of prompts for the intervals.

    Returns:
        The numbers by name; None, or absent, where there are too few pairs.
    """
    verdicts = {key: value for key, value in zip(other.keys, other.verdicts, strict=True) if not np.isnan(value)}
    rows = [index for index in np.flatnonzero(one.has_verdict) if one.keys[index] in verdicts]
    ours = np.sign(one.verdicts[rows] - 0.5).astype(int)
    theirs = np.sign(np.array([verdicts[one.keys[index]] for index in rows]) - 0.5).astype(int)
    decided = (ours != 0) & (theirs != 0)
    prompts = one.prompts[rows]
    result: dict[str, Any] = {"judges": [one.judge, other.judge], "n": len(rows), "ties": int((~decided).sum())}
    same = (ours == theirs)[decided].astype(np.float64)
    result["agreement"] = float(same.mean()) if len(same) else None
    if len(np.unique(prompts[decided])) > 1:
        low, high = share_interval(same, prompts[decided], seed=f"{seed}/agreement", bootstrap=bootstrap)
        error = standard_error(same, prompts[decided])
        result |= {"agreement_low": low, "agreement_high": high, "agreement_standard_error": error}
    return {**result, **_kappa(ours, theirs, prompts, seed, bootstrap)}


def _kappa(ours: np.ndarray, theirs: np.ndarray, prompts: np.ndarray, seed: str, bootstrap: int) -> dict[str, Any]:
    names, where = np.unique(prompts, return_inverse=True)
    cells = np.zeros((len(names), 3, 3))
    np.add.at(cells, (where, ours + 1, theirs + 1), 1)
    kappa = cohen(cells.sum(axis=0))
    if len(names) < 2:
        return {"kappa": kappa}
    random = generator(0, "kappa", seed)
    samples = [cohen(cells[random.integers(0, len(names), len(names))].sum(axis=0)) for _ in range(bootstrap)]
    known = [value for value in samples if value is not None]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (None, None)
    return {"kappa": kappa, "kappa_low": low and float(low), "kappa_high": high and float(high)}


def cohen(confusion: np.ndarray) -> float | None:
    """Return Cohen's kappa, (p_o - p_e) / (1 - p_e), of a confusion matrix [3, 3]; None without pairs or if p_e = 1."""
    total = confusion.sum()
    if total == 0:
        return None
    observed = np.trace(confusion) / total
    by_chance = (confusion.sum(axis=0) * confusion.sum(axis=1)).sum() / total**2
    return None if by_chance == 1 else float((observed - by_chance) / (1 - by_chance))
