"""What a win rate hides: the length of what won, the order in which it was shown, and who else would agree.

A verdict is 1 where ours wins, 0 where theirs does, 0.5 for a tie, or between. Shapes: N rows, G prompts, B resamples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from prefdag.evaluation.bootstrap import bootstrap_interval, standard_error, win_rate
from prefdag.seeds import generator

BIASED_BELOW = 0.01  # p value at which a judge is called biased by order
NEARLY_EQUAL = 0.1  # two lengths match when they differ by no more than this share of the longer
RIDGE = 1e-4  # keeps a resample without a loss, or with wins by length alone, finite; moves nothing else
WEIGHED_AT_ONCE = 2_000_000  # weights of rows held in memory together: 16 MB, several times over
STEPS, STEP = 60, 4.0  # of Newton's method: how many at most, and how far one may go


@dataclass(frozen=True)
class JudgedPairs:
    """One judge's verdicts on N pairs of answers, nan where it gave none.

    prompts: what each pair answers. lengths: of ours and of theirs. first: whether ours was shown first, where each
    pair was shown in one order; orders: the verdicts with ours shown first and shown second, where in both.
    """

    judge: str
    keys: list[tuple[Any, ...]]
    verdicts: np.ndarray
    prompts: np.ndarray
    lengths: tuple[np.ndarray, np.ndarray] | None = None
    first: np.ndarray | None = None
    orders: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def given(self) -> np.ndarray:
        return ~np.isnan(self.verdicts)


def described(judged: JudgedPairs, *, seed: str, bootstrap: int) -> dict[str, Any]:
    """Win rate with standard error and interval; at equal length where lengths are known, by order where it is known.

    Pairs without a verdict are left out and counted. With verdicts on fewer than two prompts every rate is None.
    """
    given = judged.given
    verdicts, prompts = judged.verdicts[given], judged.prompts[given]
    left_out = {"without_verdict": int((~given).sum())}
    if len(np.unique(prompts)) < 2:
        return {"win_rate": None, "low": None, "high": None, "standard_error": None, "n": len(verdicts), **left_out}
    found: dict[str, Any] = win_rate(verdicts, prompts, seed=seed, bootstrap=bootstrap).to_dict() | left_out
    if judged.lengths is not None:
        ours, theirs = (lengths[given] for lengths in judged.lengths)
        for name, rate in (("length_controlled", length_controlled), ("matched_length", matched_length)):
            found[name] = rate(verdicts, ours, theirs, prompts, seed=seed, bootstrap=bootstrap)
    if judged.first is not None:
        found["order"] = order_bias(verdicts, judged.first[given])
    if judged.orders is not None:
        found["order"] = order_bias_of_both(judged.orders[0][given], judged.orders[1][given])
    return found


def length_controlled(verdicts, ours, theirs, prompts, *, seed: str, bootstrap: int) -> dict[str, float] | None:
    """Win rate at equal lengths, by the logistic model of AlpacaEval 2 (Dubois et al. 2024, equation 2).

    logit P(win) = theta + phi tanh(d / std(d)), d = `ours` - `theirs` [N] the difference of lengths; the rate is
    s(theta). The paper's term for an instruction's difficulty is left out, as it takes other models' verdicts on the
    same prompts. None where every pair differs by the same length: nothing then tells length from quality.
    """
    gap = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    spread = gap.std(ddof=1) if len(gap) > 1 else 0.0
    if spread == 0:
        return None
    x, y = np.tanh(gap / spread), np.asarray(verdicts, dtype=np.float64)
    theta, phi = logistic(x, y, np.ones((1, len(x))))
    names, where = np.unique(prompts, return_inverse=True)
    draws, rates = generator(0, "length", seed), np.empty(bootstrap)
    at_once = max(1, WEIGHED_AT_ONCE // len(x))
    for start in range(0, bootstrap, at_once):
        drawn = draws.integers(0, len(names), size=(min(at_once, bootstrap - start), len(names)))
        counts = np.stack([np.bincount(one, minlength=len(names)) for one in drawn])
        rates[start : start + at_once] = _sigmoid(logistic(x, y, counts[:, where])[0])
    low, high = np.quantile(rates, [0.025, 0.975])
    rate = float(_sigmoid(theta)[0])
    return {"win_rate": rate, "low": float(low), "high": float(high), "phi": float(phi[0])}


def logistic(x, y, weights) -> tuple[np.ndarray, np.ndarray]:
    """theta, phi [B] that maximise sum_n w_bn (y_n log P_n + (1 - y_n) log(1 - P_n)), logit P_n = theta + phi x_n.

    x, y [N], y between 0 and 1; weights [B, N]. Newton's method, all B at once.
    """
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(STEPS):
        p = _sigmoid(theta[:, None] + phi[:, None] * x)
        residual, curvature = weights * (y - p), weights * p * (1 - p)
        to_theta, to_phi = residual.sum(axis=1) - RIDGE * theta, residual @ x - RIDGE * phi
        a, b, c = curvature.sum(axis=1) + RIDGE, curvature @ x, curvature @ (x * x) + RIDGE
        scale = a * c - b * b
        moved = (c * to_theta - b * to_phi) / scale, (a * to_phi - b * to_theta) / scale
        theta, phi = theta + np.clip(moved[0], -STEP, STEP), phi + np.clip(moved[1], -STEP, STEP)
        if max(np.abs(moved[0]).max(), np.abs(moved[1]).max()) < 1e-10:
            break
    return theta, phi


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def matched_length(verdicts, ours, theirs, prompts, *, seed: str, bootstrap: int) -> dict[str, float | int | None]:
    """Win rate among the pairs whose lengths differ by at most a tenth of the longer: a check that no model is in."""
    longer = np.maximum(ours, theirs)
    near = np.abs(np.asarray(ours) - theirs) <= NEARLY_EQUAL * longer
    matched = np.asarray(verdicts)[near]
    if len(np.unique(np.asarray(prompts)[near])) < 2:
        return {"win_rate": float(matched.mean()) if len(matched) else None, "n": len(matched)}
    low, high = bootstrap_interval(matched, np.asarray(prompts)[near], seed=f"{seed}/matched", bootstrap=bootstrap)
    return {"win_rate": float(matched.mean()), "low": low, "high": high, "n": len(matched)}


def order_bias(verdicts, first) -> dict[str, Any]:
    """Ours' win rate when shown first and when shown second, each pair shown once; `first` [N] says which.

    A fair judge's rates are equal but for chance. Two-sided: Fisher's exact test of wins and losses by order.
    """
    from scipy.stats import fisher_exact

    verdicts, first = np.asarray(verdicts, dtype=np.float64), np.asarray(first, dtype=bool)
    table = [[int((verdicts[side] > 0.5).sum()), int((verdicts[side] < 0.5).sum())] for side in (first, ~first)]
    return _order(verdicts[first], verdicts[~first], float(fisher_exact(table).pvalue))


def order_bias_of_both(shown_first, shown_second) -> dict[str, Any]:
    """The same where each pair was shown in both orders: ours' verdicts [N] shown first and shown second.

    Two-sided: of the pairs whose verdict moves with the order, as many should move either way (McNemar's exact test).
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
    to_first = np.concatenate([shown_first, 1 - shown_second])  # the verdict for whatever stood first
    share = float(to_first.mean()) if len(to_first) else None
    judge = "biased" if p_value < BIASED_BELOW else "no bias shown"
    return {**rates, "prefers_first": share, "p_value": p_value, "judge": judge}


def agreement(one: JudgedPairs, other: JudgedPairs, *, seed: str, bootstrap: int) -> dict[str, Any]:
    """How often two judges, or a judge and people, say the same of the pairs that both have judged.

    `agreement` is the share of equal verdicts among pairs that neither calls a tie, as where a judge must choose (the
    DPO paper's table 2); `ties` counts the pairs left out for it. `kappa` is Cohen's, of win, tie and loss, over all
    pairs: (p_o - p_e) / (1 - p_e). Intervals are bootstraps over prompts; None where there is too little to tell.
    """
    verdicts = {key: value for key, value in zip(other.keys, other.verdicts, strict=True) if not np.isnan(value)}
    rows = [index for index in np.flatnonzero(one.given) if one.keys[index] in verdicts]
    ours = np.sign(one.verdicts[rows] - 0.5).astype(int)
    theirs = np.sign(np.array([verdicts[one.keys[index]] for index in rows]) - 0.5).astype(int)
    decided = (ours != 0) & (theirs != 0)
    prompts = one.prompts[rows]
    found: dict[str, Any] = {"judges": [one.judge, other.judge], "n": len(rows), "ties": int((~decided).sum())}
    same = (ours == theirs)[decided].astype(np.float64)
    found["agreement"] = float(same.mean()) if len(same) else None
    if len(np.unique(prompts[decided])) > 1:
        low, high = bootstrap_interval(same, prompts[decided], seed=f"{seed}/agreement", bootstrap=bootstrap)
        error = standard_error(same, prompts[decided])
        found |= {"agreement_low": low, "agreement_high": high, "agreement_standard_error": error}
    return {**found, **_kappa(ours, theirs, prompts, seed, bootstrap)}


def _kappa(ours: np.ndarray, theirs: np.ndarray, prompts: np.ndarray, seed: str, bootstrap: int) -> dict[str, Any]:
    names, where = np.unique(prompts, return_inverse=True)
    cells = np.zeros((len(names), 3, 3))
    np.add.at(cells, (where, ours + 1, theirs + 1), 1)
    kappa = cohen(cells.sum(axis=0))
    if len(names) < 2:
        return {"kappa": kappa}
    draws = generator(0, "kappa", seed)
    drawn = [cohen(cells[draws.integers(0, len(names), len(names))].sum(axis=0)) for _ in range(bootstrap)]
    known = [value for value in drawn if value is not None]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (None, None)
    return {"kappa": kappa, "kappa_low": low and float(low), "kappa_high": high and float(high)}


def cohen(confusion: np.ndarray) -> float | None:
    """Cohen's kappa of a confusion matrix [3, 3] of counts; None without a pair, or where chance explains all."""
    total = confusion.sum()
    if total == 0:
        return None
    observed = np.trace(confusion) / total
    by_chance = (confusion.sum(axis=0) * confusion.sum(axis=1)).sum() / total**2
    return None if by_chance == 1 else float((observed - by_chance) / (1 - by_chance))
