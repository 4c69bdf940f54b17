"""Reward at a matched KL along the path of a training, against numbers that a reader can redo."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_league import ROWS, TABLES, runs, scores

from prefdag.config.sections.report import Report
from prefdag.errors import UserError
from prefdag.reporting.league import league
from prefdag.reporting.load import Inputs, load_results
from prefdag.reporting.matched_kl import read_checkpoints
from prefdag.reporting.proxy_gold import with_gold
from prefdag.seeds import generator
from synthetic_results import RUNS, score_table, write_results, write_scores

SFT = ("sft", "sft", "sft")
ONE = runs(SFT, ("rloo", "rloo", "a"))


def along(target: float, final: pd.DataFrame, **saved: pd.DataFrame) -> pd.Series:
    """The league's row of one training, its checkpoints named by their steps: s5=, s10=."""
    steps = {int(name[1:]): table for name, table in saved.items()}
    tables = {"sft": scores(0.0, 0.0), "rloo": final}
    return league(ONE, tables, {}, (target,), bootstrap=20, checkpoints={"rloo": steps}).iloc[0]


@pytest.mark.parametrize(("target", "reward"), [(0.9, 0.5), (1.8, 1.0), (2.0, 1.0 + 0.25 * 0.2 / 1.5), (3.3, 1.25)])
def test_a_concave_path_is_read_between_its_checkpoints(target: float, reward: float) -> None:
    """(0, 0), (1.8, 1), (3.3, 1.25): at 2 nats 1.033, where a mixture of the final policy and SFT has 0.758."""
    row = along(target, scores(1.25, 3.3), s6=scores(1.0, 1.8))
    assert row[f"reward_at_{target:g}"] == pytest.approx(reward)
    assert (row["best_reward"], row["best_kl"]) == pytest.approx((1.25, 3.3)), "of final policies alone"


def test_the_first_crossing_in_the_order_of_training_counts() -> None:
    """(0, 0), (3, 0.9), (1, 0.8), (4, 1.7): 0.6 at 2 nats, where the second crossing has 0.8 and the third 1.1.

    Steps are ordered by number, whatever their order in the mapping.
    """
    row = along(2.0, scores(1.7, 4.0), s10=scores(0.8, 1.0), s9=scores(0.9, 3.0))
    assert row["reward_at_2"] == pytest.approx(0.6)


def test_a_path_that_ends_nearer_than_it_went_has_a_reward_there() -> None:
    """(0, 0), (3, 0.9), (1, 0.8): 0.6 at 2 nats though the final policy is at 1, and none at 3.5."""
    row = along(2.0, scores(0.8, 1.0), s5=scores(0.9, 3.0))
    assert (row["reward_at_2"], row["max_kl"]) == pytest.approx((0.6, 3.0))
    assert np.isnan(along(3.5, scores(0.8, 1.0), s5=scores(0.9, 3.0))["reward_at_3.5"])


def test_of_several_settings_the_one_least_far_beyond_counts() -> None:
    """Settings end at (1, 0.2) and (5, 0.6); with a checkpoint of the second at (2.5, 0.5) it has 0.4 at 2 nats alone.

    A checkpoint of the first changes nothing at 2 nats, where the line between the two ends has 0.3.
    """
    row = league(ROWS, TABLES, {}, (2.0,), bootstrap=20, checkpoints={"strong": {5: scores(0.5, 2.5)}})
    assert row.set_index("method").loc["dpo", "reward_at_2"] == pytest.approx(0.4)
    saved = {"weak": {5: scores(0.4, 0.5)}}
    row = league(ROWS, TABLES, {}, (0.5, 2.0), bootstrap=20, checkpoints=saved).set_index("method").loc["dpo"]
    assert (row["reward_at_0.5"], row["reward_at_2"]) == pytest.approx((0.4, 0.3))


def test_seeds_are_averaged_at_each_step_and_widen_the_interval() -> None:
    """Rewards 0.2, 0.4 and 0.6 at step 5, all at 2 nats, and 1 at the end: 0.2 -+ 4.303 x 0.1 / sqrt(3) at 1 nat.

    Step 7, which one seed alone saved, is on no path.
    """
    names = [f"s{seed}" for seed in range(3)]
    tables = {"sft": scores(0.0, 0.0), **dict.fromkeys(names, scores(1.0, 4.0))}
    saved = {name: {5: scores(0.2 * (seed + 1), 2.0)} for seed, name in enumerate(names)}
    saved["s0"][7] = scores(-9.0, 2.5)
    rows = runs(SFT, *((name, "dpo", "a") for name in names))
    row = league(rows, tables, {}, (1.0, 3.0), bootstrap=20, checkpoints=saved).iloc[0]
    assert (row["reward_at_1"], row["reward_at_3"]) == pytest.approx((0.2, 0.7))
    assert row["reward_at_1_high"] - row["reward_at_1"] == pytest.approx(0.2484, rel=1e-3)


def random_scores(name: str, reward: float, kl: float, num_prompts: int = 12) -> pd.DataFrame:
    rng = generator(0, name)
    prompts = np.repeat(np.arange(num_prompts), 2)
    noise, far = rng.normal(0, 1, len(prompts)), rng.gamma(2, 0.5, len(prompts))
    return pd.DataFrame({"prompt_id": prompts, "reward": reward + noise, "kl": kl * far, "length": 10.0 + noise})


def weights(num_prompts: int, bootstrap: int) -> np.ndarray:
    even = np.full(num_prompts, 1 / num_prompts)
    draws = generator(0, "bootstrap", "league").multinomial(num_prompts, even, bootstrap)
    return np.vstack([np.full(num_prompts, 1.0), draws]) / num_prompts


def means(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby("prompt_id")[["reward", "kl"]].mean()


def test_the_crossing_is_computed_again_in_each_resample() -> None:
    """A checkpoint that is beyond 2 nats in some resamples and not in others, walked along here step by step."""
    path = [random_scores("sft", 0.0, 0.0), random_scores("five", 1.0, 2.0), random_scores("end", 1.2, 6.0)]
    tables, saved = {"sft": path[0], "rloo": path[2]}, {"rloo": {5: path[1]}}
    row = league(ONE, tables, {}, (2.0,), bootstrap=300, checkpoints=saved).iloc[0]
    values, first = [], []
    for weight in weights(12, 300):
        points = [(weight @ means(table)["kl"], weight @ means(table)["reward"]) for table in path]
        at = 1 if points[1][0] >= 2 else 2
        (near, low), (far, high) = points[at - 1], points[at]
        values.append(low + (2 - near) / (far - near) * (high - low))
        first.append(at)
    assert {1, 2} == set(first)
    expected = [values[0], *np.quantile(values[1:], [0.025, 0.975])]
    assert row[["reward_at_2", "reward_at_2_low", "reward_at_2_high"]].tolist() == pytest.approx(expected)


def test_without_checkpoints_no_bit_differs_from_the_line_through_the_settings() -> None:
    """Four settings in the order of their KL, joined by np.interp, in every resample; one is beyond reach in some."""
    settings = {"a": (0.4, 1.0), "b": (0.9, 3.0), "c": (0.3, 2.0), "d": (1.0, 8.0)}
    tables = {name: random_scores(name, *about) for name, about in {"sft": (0.0, 0.0), **settings}.items()}
    rows = runs(SFT, *((name, "dpo", name) for name in settings))
    targets = (0.7, 2.5, 5.0)
    table = league(rows, tables, {}, targets, bootstrap=200, checkpoints={"sft": {}})
    draws = weights(12, 200)
    start = draws @ means(tables["sft"])["reward"].to_numpy()
    sides = {
        side: np.stack([draws @ means(tables[name])[side].to_numpy() for name in settings], 1)
        for side in means(tables["a"])
    }
    for target in targets:
        values = []
        for origin, kl, reward in zip(start, sides["kl"], sides["reward"], strict=True):
            order = np.argsort(kl)
            values.append(np.interp(target, [0.0, *kl[order]], [origin, *reward[order]]))
        assert table.loc[0, f"reward_at_{target:g}"] == values[0]
        ends = table.loc[0, [f"reward_at_{target:g}_low", f"reward_at_{target:g}_high"]].tolist()
        assert ends == np.quantile(values[1:], [0.025, 0.975]).tolist()


def test_a_checkpoint_that_answered_other_prompts_is_refused_in_a_sentence() -> None:
    fewer = scores(1.0, 2.0).iloc[:3]
    with pytest.raises(UserError, match="rloo at step 6 has scores for 3 of the 4 prompts that SFT answered and for 0"):
        along(1.0, scores(1.0, 3.0), s6=fewer)


def test_the_gold_reward_is_read_along_the_same_path() -> None:
    """Gold is 1 at SFT, 2 at the checkpoint (2 nats) and 0 at the end (4 nats): 1.5 at 1 nat and 1 at 3 nats."""
    tables = {"sft": scores(0.0, 0.0).assign(trained_gold=1.0), "rloo": scores(1.0, 4.0).assign(trained_gold=0.0)}
    saved = {"rloo": {6: scores(0.9, 2.0).assign(trained_gold=2.0)}}
    ranking = league(ONE, tables, {}, (1.0, 3.0), bootstrap=20, checkpoints=saved)
    row = with_gold(ranking, ONE, tables, {}, (1.0, 3.0), "gold", saved).iloc[0]
    assert (row["gold_at_1"], row["gold_at_3"]) == pytest.approx((1.5, 1.0))
    assert (row["reward_at_1"], row["reward_at_3"]) == pytest.approx((0.45, 0.95))


def test_checkpoints_and_ends_of_rounds_are_read_by_their_steps(tmp_path: Path) -> None:
    """A checkpoint after the end, at which early stopping chose to stop, is no part of the path."""
    names = {"dpo": 40, "dpo@step30": 30, "dpo@round1": 20, "dpo@cold": None, "sft@pool": None, "dpo@step50": 50}
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        scores(float(number), 1.0).to_csv(tmp_path / name / "scores.csv", index=False)
    rows = [{"answers": name, "run": name.partition("@")[0], "step": step} for name, step in names.items()]
    answers = pd.DataFrame(rows).astype({"step": "Int64"})
    saved = read_checkpoints(answers, [tmp_path / name / "manifest.json" for name in names])
    rewards = {run: {step: table["reward"].mean() for step, table in steps.items()} for run, steps in saved.items()}
    assert rewards == {"dpo": {30: 1.0, 20: 2.0}}


def test_the_results_of_a_suite_have_the_league_along_its_checkpoints(tmp_path: Path) -> None:
    """The checkpoint at step 30 is beyond 10 nats, so the league reads between SFT and it."""
    name = RUNS[0]["name"]
    inputs = write_results(tmp_path, RUNS[:1], num_prompts=6, num_steps=40)
    half_way = score_table(f"{name}@step30", 6)
    inputs["scores"].append(write_scores(tmp_path / "score" / f"{name}@step30", half_way, "half way", True))
    answers = [{"name": path.parent.name} for path in inputs["scores"]]
    results = load_results(Report(matched_kl=(10.0,), gold=None), RUNS[:1], answers, Inputs(**inputs))
    start, (kl, reward) = score_table("sft", 6)["reward"].mean(), half_way[["kl", "reward"]].mean()
    assert results.league is not None and kl > 10
    assert results.league.loc[0, "reward_at_10"] == pytest.approx(start + 10 / kl * (reward - start))
