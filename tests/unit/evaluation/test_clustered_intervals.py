"""Every interval resamples prompts: copies of a prompt's rows say nothing new, and each resample is another one."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from prefdag.evaluation.bootstrap import bootstrap_interval, standard_error, summarise, win_rate
from prefdag.evaluation.calibration import accuracy_by_length, calibration, ranked_correctly, spearman
from prefdag.evaluation.over_seeds import paired_difference
from prefdag.evaluation.text_stats import distinctive_words
from prefdag.evaluation.win_rates import JudgedPairs, agreement, length_controlled, matched_length
from prefdag.rewards.evaluation import evaluation
from prefdag.seeds import generator

PROMPTS = 80
DRAWS = {"seed": "test", "bootstrap": 400}


def table_of(copies: int) -> pd.DataFrame:
    """Return one row per prompt, `copies` times: a reward's gap, lengths, texts, and the verdicts of two judges."""
    random = generator(0, "clustered")
    ours = random.integers(20, 60, PROMPTS)
    gap = random.normal(0.5, 1.0, PROMPTS)
    verdict = (gap + random.normal(0, 0.5, PROMPTS) > 0).astype(float)
    other = np.where(random.random(PROMPTS) < 0.75, verdict, 1 - verdict)
    theirs = ours + random.integers(-3, 4, PROMPTS)
    chosen = np.where(random.random(PROMPTS) < 0.6, "good film", "dull film")
    rejected = np.where(random.random(PROMPTS) < 0.4, "good film", "dull film")
    columns = {"gap": gap, "ours": ours, "theirs": theirs, "tokens": ours - theirs, "verdict": verdict, "other": other}
    table = pd.DataFrame({"prompt": range(PROMPTS), **columns, "chosen": chosen, "rejected": rejected})
    return table.loc[np.tile(np.arange(PROMPTS), copies)].reset_index(drop=True)


def judges(table: pd.DataFrame) -> dict[str, float]:
    keys = [(row,) for row in range(len(table))]
    pairs = [
        JudgedPairs(name, keys, table[name].to_numpy(), table["prompt"].to_numpy()) for name in ("verdict", "other")
    ]
    return agreement(*pairs, **DRAWS)


def ends(result: object, low: str = "low", high: str = "high") -> tuple[float, float]:
    values = result if isinstance(result, dict) else vars(result)
    return float(values[low]), float(values[high])


def largest_bin(rows: pd.DataFrame, size: str = "pairs") -> tuple[float, float]:
    return ends(rows.loc[rows[size].idxmax()].to_dict())


INTERVALS: dict[str, Callable[[pd.DataFrame], tuple[float, float]]] = {
    "mean": lambda t: ends(summarise(t["gap"], t["prompt"], **DRAWS)),
    "win rate": lambda t: ends(win_rate(t["verdict"], t["prompt"], **DRAWS)),
    "reward accuracy": lambda t: ends(
        evaluation(np.stack([t["gap"], 0 * t["gap"]], 1).astype(np.float32), t["prompt"].to_numpy()),
        "accuracy_low",
        "accuracy_high",
    ),
    "calibration error": lambda t: ends(calibration(t, **DRAWS)),
    "calibration bin": lambda t: largest_bin(calibration(t, **DRAWS).bins),
    "accuracy by length": lambda t: largest_bin(accuracy_by_length(t, **DRAWS)),
    "rank correlation": lambda t: spearman(t["gap"], t["verdict"], t["prompt"], **DRAWS)[1:],
    "distinctive words": lambda t: ends(distinctive_words(t["chosen"], t["rejected"], t["prompt"]).iloc[0].to_dict()),
    "length-controlled": lambda t: ends(length_controlled(t["verdict"], t["ours"], t["theirs"], t["prompt"], **DRAWS)),
    "matched length": lambda t: ends(matched_length(t["verdict"], t["ours"], t["theirs"], t["prompt"], **DRAWS)),
    "agreement": lambda t: ends(judges(t), "agreement_low", "agreement_high"),
    "kappa": lambda t: ends(judges(t), "kappa_low", "kappa_high"),
}


GOLDEN = {
    "mean": (0.224, 0.6978),
    "win rate": (0.575, 0.775),
    "reward accuracy": (0.6, 0.7875),
    "calibration error": (0.1024, 0.2409),
    "calibration bin": (0.5, 0.9286),
    "accuracy by length": (0.4615, 0.8462),
    "rank correlation": (0.6127, 0.8091),
    "distinctive words": (0.145, 0.4328),
    "length-controlled": (0.5724, 0.7824),
    "matched length": (0.5556, 0.7639),
    "agreement": (0.575, 0.7875),
    "kappa": (0.1841, 0.5652),
}


@pytest.mark.parametrize("name", INTERVALS)
def test_copies_of_every_row_do_not_shrink_an_interval(name: str):
    """Nine copies taken as nine rows would make it a third as wide. The words' prior counts less against more words."""
    once, many = (np.diff(INTERVALS[name](table_of(copies)))[0] for copies in (1, 9))
    assert once > 0.02 and many > 0.75 * once
    assert many < 1.25 * once or name == "distinctive words"


@pytest.mark.parametrize("name", ["reward accuracy", "calibration bin", "accuracy by length", "matched length"])
def test_an_interval_of_a_mean_is_as_wide_as_its_error_says(name: str):
    """Twice 1.96 standard errors, clustered by prompt, of the same rows."""
    table = table_of(4)
    correct = ranked_correctly(table["gap"])
    rows = {
        "reward accuracy": np.ones(len(table), bool),
        "matched length": (np.abs(table["tokens"]) <= 0.1 * table[["ours", "theirs"]].max(axis=1)).to_numpy(),
    }
    if name == "accuracy by length":
        bins = accuracy_by_length(table, **DRAWS)
        low, high = (int(end.replace("−", "-")) for end in bins.loc[bins["pairs"].idxmax(), "label"].split(" to "))
        rows[name] = table["tokens"].between(low, high).to_numpy()
    if name == "calibration bin":
        bins = calibration(table, **DRAWS).bins
        number = bins.loc[bins["pairs"].idxmax(), "bin"]
        confidence = 1 / (1 + np.exp(-np.abs(table["gap"])))
        rows[name] = ((confidence - 0.5) * 20).astype(int).to_numpy() == number
    values = table["verdict"].to_numpy() if name == "matched length" else correct
    error = standard_error(values[rows[name]], table["prompt"][rows[name]])
    low, high = INTERVALS[name](table)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_the_interval_of_a_calibration_error_is_derived_by_hand():
    """Prompt a: four pairs with gap ln 3 (0.75), all right, excess 4 x 0.25; prompt b: one wrong, excess -0.75.

    Together |1 - 0.75| / 5 = 0.05. A resample holds aa (1 / 4 = 0.25), ab (0.05) or bb (0.75): with chances 1/4, 1/2
    and 1/4 the 95 % interval is [0.05, 0.75]. Five pairs resampled by themselves would nearly never be all wrong.
    """
    gaps = np.log(3) * np.array([1, 1, 1, 1, -1])
    result = calibration(pd.DataFrame({"gap": gaps, "prompt": ["a"] * 4 + ["b"]}), seed="hand", bootstrap=500)
    assert (result.error, result.low, result.high) == pytest.approx((0.05, 0.05, 0.75))


def test_golden_intervals_of_a_fixed_table():
    """Numbers of the table above, computed once: a stream that is renamed or used twice shows."""
    values = {name: interval(table_of(2)) for name, interval in INTERVALS.items()}
    assert {name: tuple(round(end, 4) for end in pair) for name, pair in values.items()} == GOLDEN


def covered(interval: Callable[[np.random.Generator, str], tuple[float, float]], truth: float, trials: int) -> int:
    random, hits = generator(0, "coverage of intervals"), 0
    for trial in range(trials):
        low, high = interval(random, str(trial))
        hits += low <= truth <= high
    return hits


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 200 simulated tables 95 % are 190, give or take 3; four samples of a prompt agree but for a little noise."""
    prompts = np.repeat(np.arange(40), 4)

    def effects(random: np.random.Generator) -> np.ndarray:
        return np.repeat(random.normal(size=40), 4)

    def mean(random: np.random.Generator, seed: str) -> tuple[float, float]:
        return bootstrap_interval(effects(random) + 0.3 * random.normal(size=160), prompts, seed=seed, bootstrap=400)

    def accuracy(random: np.random.Generator, seed: str) -> tuple[float, float]:
        gaps = effects(random) + 0.3 * random.normal(size=160)
        table = pd.DataFrame({"gap": gaps, "tokens": 5, "prompt": prompts})
        return largest_bin(accuracy_by_length(table, seed=seed, bootstrap=400))

    def correlation(random: np.random.Generator, seed: str) -> tuple[float, float]:
        left, right = effects(random), effects(random)
        return spearman(left, right, prompts, seed=seed, bootstrap=200)[1:]

    for interval, truth in ((mean, 0.0), (accuracy, 0.5), (correlation, 0.0)):
        assert 176 <= covered(interval, truth, 200) <= 199, interval.__name__


def test_seeds_that_agree_leave_the_error_over_prompts():
    """Three trainings with equal numbers: nothing varies but the prompts, by s / sqrt(G)."""
    values = generator(0, "values").normal(size=50)
    result = paired_difference(np.stack([values] * 3), np.zeros((2, 50)), seed="equal", bootstrap=3000)
    alone = summarise(values, range(50), seed="alone")
    assert result.se == pytest.approx(alone.se, rel=0.06)
    assert result.high - result.low == pytest.approx(2 * 1.96 * alone.se, rel=0.1)
