"""Best-of-N from a pool: against brute force over all subsets, against drawing, and identities."""

import csv
import json
from itertools import combinations
from math import log
from pathlib import Path

import numpy as np
import pytest

from prefdag.config.sections.best_of_n import BestOfN
from prefdag.errors import UserError
from prefdag.evaluation.best_of_n import divergence_bound, divergences, expected_value, sizes, subset_cdf, win_rates
from prefdag.evaluation.bootstrap import summarise
from prefdag.stages import best_of_n
from synthetic_results import touched, workspace

POOLS = {
    "continuous": np.random.default_rng(0).normal(size=(3, 7)),
    "tied": np.random.default_rng(1).integers(0, 3, size=(4, 7)).astype(float),
    "all equal": np.zeros((1, 6)),
}
TRUTH = np.random.default_rng(2).normal(size=(4, 7))


def brute_force(selected_by: np.ndarray, measured: np.ndarray, best_of: int) -> list[float]:
    """Every subset of N of one prompt's samples; where several are best, the mean of what they measure."""
    means = []
    for ratings, values in zip(selected_by, measured, strict=True):
        result = []
        for subset in map(list, combinations(range(len(ratings)), best_of)):
            best = [index for index in subset if ratings[index] == ratings[subset].max()]
            result.append(values[best].mean())
        means.append(np.mean(result))
    return means


@pytest.mark.parametrize("name", POOLS)
def test_the_expectation_is_the_mean_over_all_subsets(name: str) -> None:
    pool = POOLS[name]
    truth = TRUTH[: len(pool), : pool.shape[1]]
    for best_of in range(1, pool.shape[1] + 1):
        assert expected_value(pool, pool, best_of) == pytest.approx(brute_force(pool, pool, best_of), abs=1e-12)
        assert expected_value(pool, truth, best_of) == pytest.approx(brute_force(pool, truth, best_of), abs=1e-12)


def won(ratings: np.ndarray, values: np.ndarray, best_of: int) -> float:
    """Every subset of N of one prompt's samples against every other sample; any of several best is as likely."""
    result = []
    for subset in combinations(range(len(ratings)), best_of):
        best = [index for index in subset if ratings[index] == ratings[list(subset)].max()]
        others = set(range(len(ratings))) - set(subset)
        result += [np.mean(0.5 * (1 + np.sign(values[best] - values[other]))) for other in others]
    return float(np.mean(result))


@pytest.mark.parametrize("name", POOLS)
def test_the_win_rate_is_the_mean_over_all_subsets_and_all_others(name: str) -> None:
    pool = POOLS[name]
    n = pool.shape[1]
    for best_of in range(1, n):
        for truth in (pool, TRUTH[: len(pool), :n]):
            wins = [won(*row, best_of) for row in zip(pool, truth, strict=True)]
            assert win_rates(pool, truth, best_of) == pytest.approx(wins, abs=1e-12)


def test_by_hand() -> None:
    """Of 1, 2, 3 the pairs have the best 2, 3, 3: 8/3. Two of three beat the third twice of three times."""
    pool = np.array([[3.0, 1.0, 2.0]])
    assert np.diff(subset_cdf(3, 2)) == pytest.approx([0, 1 / 3, 2 / 3])
    assert expected_value(pool, pool, 2) == pytest.approx([8 / 3]) and win_rates(pool, pool, 2) == pytest.approx(
        [2 / 3]
    )
    assert expected_value(pool, np.array([[10.0, 20.0, 30.0]]), 3) == pytest.approx([10.0]), "what the first measures"


def test_identities() -> None:
    """N = 1 is a sample: the mean, a draw, no divergence. N = n is the best of all. Without ties, N / (N + 1)."""
    for pool in POOLS.values():
        n = pool.shape[1]
        assert expected_value(pool, pool, 1) == pytest.approx(pool.mean(axis=1))
        assert win_rates(pool, pool, 1) == pytest.approx(0.5)
        assert divergences(pool, 1) == pytest.approx(0, abs=1e-12)
        assert expected_value(pool, pool, n) == pytest.approx(pool.max(axis=1))
    for best_of in range(1, 7):
        assert win_rates(*[POOLS["continuous"]] * 2, best_of) == pytest.approx(best_of / (best_of + 1))
        assert divergences(POOLS["continuous"], best_of) == pytest.approx(divergence_bound(best_of))
        assert win_rates(*[POOLS["all equal"]] * 2, min(best_of, 5)) == pytest.approx(0.5)
        assert divergences(POOLS["all equal"], best_of) == pytest.approx(0, abs=1e-12)


def test_pools_of_a_thousand_samples_have_weights() -> None:
    """C(1000, 500) is no float; the weights are ratios, and sum to 1."""
    for best_of in (1, 2, 500, 999, 1000):
        share = subset_cdf(1000, best_of)
        assert share[0] == 0 and share[-1] == 1 and (np.diff(share) >= 0).all()
    assert subset_cdf(1000, 500)[999] == 0.5, "C(999, 500) / C(1000, 500) = (1000 - 500) / 1000"


def test_against_drawing() -> None:
    """20,000 draws of four fresh standard normals: the expected maximum is 1.02938, measured through a noisy proxy too.

    The estimate over 4,000 pools of 8 and the draws agree within 4 standard errors of their difference.
    """
    random = np.random.default_rng(3)
    truth = random.normal(size=(4000, 8))
    proxy = truth + random.normal(size=truth.shape)
    fresh = random.normal(size=(20_000, 4))
    seen = fresh + random.normal(size=fresh.shape)
    sampled = np.take_along_axis(fresh, seen.argmax(axis=1)[:, None], axis=1).ravel()
    estimates = expected_value(truth, truth, 4), expected_value(proxy, truth, 4)
    for estimate, other in zip(estimates, (fresh.max(axis=1), sampled), strict=True):
        error = np.hypot(estimate.std() / np.sqrt(len(estimate)), other.std() / np.sqrt(len(other)))
        assert abs(estimate.mean() - other.mean()) < 4 * error
    assert expected_value(truth, truth, 4).mean() == pytest.approx(1.02938, abs=0.03)


def test_the_divergence_of_levels_is_the_divergence_of_the_law() -> None:
    """A reward of three levels with probabilities 1/2, 3/10, 1/5: Best-of-4 hits them with 1/2^4, 0.8^4 - 1/2^4, rest.

    In a pool in which every level shows with its own share the estimate is exact. The bound is not reached.
    """
    base = np.array([0.5, 0.3, 0.2])
    hit = np.diff(np.concatenate([[0], np.cumsum(base) ** 4]))
    law = (hit * np.log(hit / base)).sum()
    pool = np.repeat([0.0, 1.0, 2.0], [10, 6, 4])[None]
    assert divergences(pool, 4) == pytest.approx([law])
    assert law < divergence_bound(4) - 0.05


def test_the_divergence_of_a_mixture_is_reached_as_the_pool_grows() -> None:
    """Half of the mass at 0, half continuous above: (1/2)^N log((1/2)^(N-1)) + the integral from 1/2 to 1.

    The integral by 100,000 midpoints. Pools of 2,000 are within 0.002 nats of it; the bound is not.
    """
    best_of = 8
    u = 0.5 + (np.arange(100_000) + 0.5) / 200_000
    density = best_of * u ** (best_of - 1)
    law = 0.5**best_of * log(0.5 ** (best_of - 1)) + (density * np.log(density)).mean() / 2
    pool = np.maximum(np.random.default_rng(4).uniform(-1, 1, size=(20, 2000)), 0)
    assert divergences(pool, best_of).mean() == pytest.approx(law, abs=0.002)
    assert law < divergence_bound(best_of)


def test_ties_lower_the_divergence_and_never_below_zero() -> None:
    pool = np.random.default_rng(5).normal(size=(50, 16))
    for best_of in sizes(16):
        coarser = [divergences(np.round(pool * scale), best_of) for scale in (1, 0.5, 0.2)]
        for result in coarser:
            assert (result >= -1e-12).all() and (result <= divergence_bound(best_of) + 1e-12).all()


def test_sizes() -> None:
    assert sizes(1) == [1] and sizes(8) == [1, 2, 4, 8] and sizes(12) == [1, 2, 4, 8, 12]


def pool_of(folder: Path, columns: dict[str, np.ndarray]) -> Path:
    """scores.csv of a pool; each column [G, n]. Rows are in no order."""
    folder.mkdir()
    num, n = next(iter(columns.values())).shape
    rows = [[7 + g, k, *(values[g, k] for values in columns.values())] for g in range(num) for k in range(n)]
    np.random.default_rng(0).shuffle(rows)
    with (folder / "scores.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["prompt_id", "sample", *columns], *([int(row[0]), int(row[1]), *row[2:]] for row in rows)]
        )
    return touched(folder)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "best_of_n.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def run_stage(tmp_path: Path, columns: dict[str, np.ndarray], **settings: object) -> tuple[Path, dict]:
    job_workspace = workspace(tmp_path / "out")
    job = best_of_n.Job(best_of_n=BestOfN(**{"selected_by": "vader", "bootstrap": 50, **settings}))
    return job_workspace.output, best_of_n.run(job, job_workspace, scores=pool_of(tmp_path / "pool", columns))


def test_the_stage_writes_a_row_for_every_n_and_selector(tmp_path: Path) -> None:
    truth = np.random.default_rng(6).normal(size=(5, 6)).round(1)
    proxy = truth + np.random.default_rng(7).normal(size=truth.shape)
    output, facts = run_stage(tmp_path, {"reward": truth, "vader": truth, "trained": proxy})
    rows = table(output)
    keys = [(row["selected_by"], row["measured_by"], int(row["n"])) for row in rows]
    kinds = [("vader", "vader"), ("trained", "trained"), ("trained", "vader")]
    assert keys == [(*kind, n) for kind in kinds for n in (1, 2, 4, 6)]
    assert facts == {"prompts": 5, "samples": 6}
    for row in rows:
        selector, measure = ({"vader": truth, "trained": proxy}[row[key]] for key in ("selected_by", "measured_by"))
        best_of = int(row["n"])
        mean = expected_value(selector, measure, best_of)
        result = summarise(
            mean, np.arange(5), seed=f"0/{row['selected_by']}/{row['measured_by']}/{best_of}", bootstrap=50
        )
        assert [float(row[key]) for key in ("mean", "low", "high", "se")] == [
            result.mean, result.low, result.high, result.se,
        ]  # fmt: skip
        assert float(row["kl"]) == pytest.approx(divergences(selector, best_of).mean())
        assert float(row["kl_bound"]) == divergence_bound(best_of)
        assert (row["win_rate"] == "") == (best_of == 6)


def test_a_win_rate_is_by_what_measures(tmp_path: Path) -> None:
    """Selected by a proxy that is the truth turned round, the best of many loses by the truth: 1 / (N + 1)."""
    truth = np.random.default_rng(8).normal(size=(4, 6))
    output, _ = run_stage(tmp_path, {"reward": truth, "vader": truth, "trained": -truth})
    result = {(row["selected_by"], row["measured_by"], row["n"]): row["win_rate"] for row in table(output)}
    assert float(result["trained", "trained", "4"]) == pytest.approx(4 / 5)
    assert float(result["trained", "vader", "4"]) == pytest.approx(1 / 5)


def test_a_pool_without_ground_truth_is_selected_by_the_reward_model(tmp_path: Path) -> None:
    trained = np.random.default_rng(9).normal(size=(3, 4))
    output, _ = run_stage(tmp_path, {"reward": trained, "trained": trained}, selected_by="trained")
    assert {(row["selected_by"], row["measured_by"]) for row in table(output)} == {("trained", "trained")}


def test_a_pool_with_a_missing_sample_is_refused(tmp_path: Path) -> None:
    manifest = pool_of(tmp_path / "pool", {"vader": np.zeros((2, 3))})
    lines = (tmp_path / "pool/scores.csv").read_text().splitlines()
    (tmp_path / "pool/scores.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="has 2 samples and another 3"):
        best_of_n.run(best_of_n.Job(best_of_n=BestOfN(selected_by="vader")), workspace(tmp_path / "o"), scores=manifest)


def test_the_journal_has_the_best_of_all(tmp_path: Path) -> None:
    job_workspace = workspace(tmp_path / "out")
    truth = np.arange(6.0).reshape(2, 3)
    job = best_of_n.Job(best_of_n=BestOfN(selected_by="vader", bootstrap=50))
    best_of_n.run(job, job_workspace, scores=pool_of(tmp_path / "pool", {"vader": truth}))
    assert job_workspace.journal.values["reward_best_of_3"] == pytest.approx((2 + 5) / 2)
    assert json.dumps(job_workspace.journal.values)
