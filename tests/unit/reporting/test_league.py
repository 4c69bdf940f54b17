"""The league of methods, against numbers that a reader can redo."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefdag.reporting.league import league, seconds_per_step
from prefdag.reporting.rows import league_rows
from synthetic_results import DRIFT, RUNS, made, spec, write_results


def scores(reward: float, kl: float, length: float = 10.0, spread: float = 0.0) -> pd.DataFrame:
    """Four prompts around a mean reward; every other number is the same for each."""
    rewards = reward + spread * np.array([-1.0, -1.0, 1.0, 1.0])
    return pd.DataFrame({"prompt_id": range(4), "reward": rewards, "kl": kl, "length": length})


def runs(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame([{"run": run, "method": method, "form": "", "group": group} for run, method, group in rows])


TABLES = {
    "sft": scores(0.0, 0.0),
    "weak": scores(0.2, 1.0),
    "strong": scores(0.6, 5.0, length=14.0),
    "near": scores(0.3, 1.5, spread=0.1),
}
ROWS = runs(("sft", "sft", "sft"), ("strong", "dpo", "a"), ("weak", "dpo", "b"), ("near", "simpo", "c"))


def test_reward_at_a_matched_kl_is_on_the_line_between_two_settings():
    """DPO goes through (0, 0), (1, 0.2), (5, 0.6): at 0.5 nats 0.1, at 3 nats 0.4. SimPO never went to 3 nats."""
    table = league(ROWS, TABLES, {}, (0.5, 3.0), bootstrap=50).set_index("method")
    assert table.loc["dpo", "reward_at_0.5"] == pytest.approx(0.1)
    assert table.loc["dpo", "reward_at_3"] == pytest.approx(0.4)
    assert table.loc["simpo", "reward_at_0.5"] == pytest.approx(0.1)
    assert np.isnan(table.loc["simpo", "reward_at_3"])
    assert list(table["max_kl"]) == [5.0, 1.5]
    assert table.loc["dpo", "length_drift"] == 4.0


def test_intervals_come_from_the_prompts():
    """DPO's rewards are equal over prompts, so no draw differs; SimPO's differ by prompt."""
    table = league(ROWS, TABLES, {}, (0.5,), bootstrap=400).set_index("method")
    assert table.loc["dpo", "reward_at_0.5_low"] == pytest.approx(table.loc["dpo", "reward_at_0.5_high"])
    row = table.loc["simpo"]
    assert row["best_reward_low"] == pytest.approx(0.2) and row["best_reward_high"] == pytest.approx(0.4)


def test_seeds_of_a_setting_are_one_point():
    tables = {"sft": scores(0.0, 0.0), "one": scores(0.2, 2.0), "two": scores(0.4, 4.0)}
    rows = runs(("sft", "sft", "sft"), ("one", "dpo", "a"), ("two", "dpo", "a"))
    table = league(rows, tables, {}, (1.5,), bootstrap=20)
    assert table.loc[0, "reward_at_1.5"] == pytest.approx(0.15)  # on the line from (0, 0) to (3, 0.3)
    assert (table.loc[0, "settings"], table.loc[0, "runs"]) == (1, 2)


def test_the_largest_reward_at_the_first_matched_kl_is_first():
    assert list(league(ROWS, TABLES, {}, (1.4,), bootstrap=20)["method"]) == ["simpo", "dpo"]  # 0.28 against 0.24


def test_displacement_is_that_of_the_last_measurement_of_the_best_setting():
    curve = pd.DataFrame(
        {"held_out_chosen_logratio": [0.0, -3.0, np.nan], "held_out_rejected_logratio": [0.0, -9.0, np.nan]}
    )
    table = league(ROWS, TABLES, {"strong": curve, "weak": curve + 1}, (1.0,), bootstrap=20).set_index("method")
    assert tuple(table.loc["dpo", ["chosen_logratio", "rejected_logratio"]]) == (-3.0, -9.0)
    assert pd.isna(table.loc["simpo", "chosen_logratio"])


def test_two_forms_of_a_loss_are_two_methods():
    """IPO of sums at 1 nat and of averages at 5: no line joins them, so the first has no reward at 3 nats."""
    rows = runs(("sft", "sft", "sft"), ("weak", "ipo", "a"), ("strong", "ipo", "b"))
    rows["form"] = ["", "summed", "averaged"]
    table = league(rows, TABLES, {}, (3.0,), bootstrap=20).set_index("form")
    assert np.isnan(table.loc["summed", "reward_at_3"]) and table.loc["averaged", "reward_at_3"] == pytest.approx(0.36)
    (named,) = [row for row in league_rows(table.reset_index(), (3.0,)) if row["form"] == "summed"]
    assert named["method"] == "IPO summed" and named["seeds"] == "1 seed"


def test_intervals_of_several_seeds_hold_the_seeds():
    """Seeds of rewards 0.2, 0.4 and 0.6 at every prompt, all at 2 nats: 0.4 -+ 4.303 x 0.2 / sqrt(3) = 0.497.

    At 1 nat the line from SFT has half of that; the rows of one seed have intervals over prompts, of no length here.
    """
    tables = {"sft": scores(0.0, 0.0), **{f"s{seed}": scores(0.2 * (seed + 1), 2.0) for seed in range(3)}}
    rows = runs(("sft", "sft", "sft"), *((f"s{seed}", "dpo", "a") for seed in range(3)))
    row = league(rows, tables, {}, (1.0,), bootstrap=20).iloc[0]
    assert (row["fewest_seeds"], row["most_seeds"], row["best_seeds"]) == (3, 3, 3)
    assert row["best_reward_high"] - row["best_reward"] == pytest.approx(0.4968, rel=1e-3)
    assert row["reward_at_1_high"] - row["reward_at_1"] == pytest.approx(0.2484, rel=1e-3)
    assert league(ROWS, TABLES, {}, (0.5,), bootstrap=20)["fewest_seeds"].tolist() == [1, 1]


def test_fallen_chosen_responses_have_intervals_over_prompts():
    """Four prompts of two pairs, of which two fell: a half, whose interval is that of four draws, not eight."""
    curve = pd.DataFrame({"held_out_chosen_logratio": [-1.0], "held_out_chosen_fell": [0.5]})
    pairs = pd.DataFrame({"prompt": np.repeat(range(4), 2), "chosen_logratio": [-5.0] * 4 + [3.0] * 4})
    pairs["rejected_logratio"] = -9.0
    displaced = {"strong": pairs}
    row = league(ROWS, TABLES, {"strong": curve}, (1.0,), displaced=displaced).set_index("method").loc["dpo"]
    assert (row["chosen_fell"], row["chosen_fell_low"], row["chosen_fell_high"]) == (0.5, 0.0, 1.0)
    assert row["chosen_logratio_low"] == pytest.approx(-5) and row["chosen_logratio_high"] == pytest.approx(3)
    all_fell = {"strong": pairs.assign(chosen_logratio=-5.0)}
    sure = league(ROWS, TABLES, {"strong": curve.assign(held_out_chosen_fell=1.0)}, (1.0,), displaced=all_fell)
    assert sure.set_index("method").loc["dpo", "chosen_fell_low"] == pytest.approx(4 / (4 + 1.959964**2)), "Wilson's"
    assert row["rejected_logratio"] is None or pd.isna(row["rejected_logratio"])


def test_time_per_step_is_the_median_between_two_steps_of_the_last_attempt(tmp_path: Path):
    def journal(name: str, *times: float) -> None:
        events = [{"event": "start", "name": "dpo", "time": 0.0}]
        events += [{"event": "metrics", "step": step, "time": time} for step, time in enumerate(times)]
        (tmp_path / name).write_text(
            "\n".join(map(json.dumps, [*events, {"event": "metrics", "step": None, "time": 99}]))
        )

    journal("preference-dpo-1.jsonl", 1.0, 11.0, 21.0)
    journal("preference-dpo-2.jsonl", 1.0, 1.5, 2.0, 7.0)
    assert seconds_per_step(tmp_path) == {"dpo": 0.5}


def test_a_suite_that_asks_has_the_league_on_its_page_and_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    many = [spec(f"m{number}-seed0", f"method{number}") for number in range(14)]
    chosen = [*RUNS[:2], *many]
    for number, run in enumerate(many):
        monkeypatch.setitem(DRIFT, run["name"], (1.0 + number, 0.3))
    inputs = write_results(tmp_path, chosen, num_prompts=6, num_steps=3)
    workspace = made(tmp_path / "report", inputs, chosen, matched_kl=[2, 5])
    table = pd.read_csv(workspace.output / "league.csv")
    assert len(table) == 15 and table["reward_at_2"].notna().sum() > table["reward_at_5"].notna().sum() > 0
    page = (workspace.output / "index.html").read_text()
    assert page.count("League of methods") == 1 and "time of an optimizer step" not in page
    assert (workspace.output / "figures/league.png").stat().st_size > 10_000


def test_without_matched_kls_there_is_no_league(tmp_path: Path):
    inputs = write_results(tmp_path, RUNS[:1], num_prompts=6, num_steps=3)
    workspace = made(tmp_path / "report", inputs, RUNS[:1])
    assert (
        not (workspace.output / "league.csv").exists() and "League" not in (workspace.output / "index.html").read_text()
    )
