"""Further sets of answers, judges, seeds and gains in the report, against numbers that a reader can redo."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prefdag.config.sections.report import Expected
from prefdag.evaluation.bootstrap import wilson
from prefdag.reporting.figures.answers import by_temperature, on_other_prompts, over_training
from prefdag.reporting.figures.curves import PROBED, displacement
from prefdag.reporting.sections.judges import agreements, rates
from prefdag.reporting.seeds import average_seeds, gains, means_by_prompt, published_rows, seeds_table
from prefdag.reporting.tables import answers_table, checkpoints, ood_win_rates, runs_table, temperature_variants
from prefdag.training import preference_metrics
from synthetic_results import METRICS, SOME, made, write_further, write_results

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}
NAMES = [
    "base",
    "sft",
    "dpo",
    "dpo@cold",
    "dpo@cut",
    "dpo@step4",
    "dpo@far",
    "dpo@far-cold",
    "sft@cold",
    "sft@pool",
    "chosen",
]


@pytest.fixture
def answers() -> pd.DataFrame:
    """DPO at two temperatures, under another top_p, and half-way through its eight steps."""
    one = {metric: {"mean": 1.0, "low": 0.9, "high": 1.1, "se": 0.05, "n": 4} for metric in METRICS}
    wins = {name: {"win_rate": 0.75, "low": 0.6, "high": 0.9} for name in NAMES if name.startswith("dpo")}
    wins["dpo@far-cold"] = {"win_rate": 0.25, "low": 0.1, "high": 0.4}
    runs = [{"name": "dpo", "method": "dpo", "seed": 0, "objective": {"beta": 0.1}}]
    policies = runs_table(runs, dict.fromkeys(NAMES, one), wins, dict.fromkeys(NAMES, (2, 4)))
    expected = [{"name": name, **SAMPLING} for name in NAMES[:-1]] + [{"name": "chosen"}, {"name": "not-scored-yet"}]
    for entry in expected:
        entry |= {"temperature": 0.0} if "cold" in entry["name"] else {"top_p": 0.9} if "cut" in entry["name"] else {}
        entry["prompts"] = "ood" if "far" in entry["name"] else "test"
    return answers_table(expected, policies, dict.fromkeys(NAMES, one), wins, {"dpo": 8})


def test_every_scored_set_of_answers_has_a_row(answers: pd.DataFrame):
    table = answers.set_index("answers")
    assert list(table.index) == NAMES
    assert table.loc["dpo@step4", "step"] == 4 and table.loc["dpo", "step"] == 8 and table.loc["sft", "step"] == 0
    assert pd.isna(table.loc["dpo@cold", "step"]) and pd.isna(table.loc["chosen", "temperature"])
    assert table.loc["sft@cold", "win_rate"] == 0.5, "against itself"
    assert table.loc[["sft@pool", "chosen"], "win_rate"].isna().all(), "not judged"
    assert (table.loc["dpo@cold", "display"], table.loc["chosen", "display"]) == ("DPO", "chosen responses")


def test_temperatures_are_compared_where_nothing_else_differs(answers: pd.DataFrame):
    assert list(temperature_variants(answers)["answers"]) == ["base", "sft", "dpo", "dpo@cold", "sft@cold"]
    assert list(checkpoints(answers)["answers"]) == ["dpo@step4"]
    figure = by_temperature(answers, "win rate")
    assert figure is not None
    (line,) = [one for one in figure.axes[0].lines if one.get_marker() == "o"]
    assert list(line.get_xdata()) == [0.0, 1.0] and list(line.get_ydata()) == [75.0, 75.0]


def test_other_prompts_are_compared_with_the_suites_own(answers: pd.DataFrame):
    table = ood_win_rates(answers)
    assert list(table["temperature"]) == [1.0, 0.0], "what was cut at another top_p, and a checkpoint, are not alike"
    assert list(table["ood_mean"]) == [0.75, 0.25] and list(table["test_mean"]) == [0.75, 0.75]
    figure = on_other_prompts(answers, "win rate")
    assert figure is not None
    (other,) = [line for line in figure.axes[0].lines if line.get_marker() == "^"]
    assert list(other.get_xdata()) == [75.0, 25.0]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["DPO, T = 1", "DPO, T = 0"]
    assert on_other_prompts(answers[answers["prompts"] == "test"], "win rate") is None


def test_a_win_rate_over_training_goes_from_sft_to_the_run(answers: pd.DataFrame):
    figure = over_training(answers, "win rate")
    assert figure is not None
    (line,) = [one for one in figure.axes[0].lines if one.get_marker() == "o"]
    assert list(line.get_xdata()) == [0, 4, 8] and list(line.get_ydata()) == [50.0, 75.0, 75.0]


def test_many_runs_over_training_have_a_panel_for_each_method():
    betas = (0.05, 0.1, 0.3, 1.0, 5.0)
    runs = [
        {"name": f"{method}{beta}", "method": method, "seed": 0, "objective": {"beta": beta}}
        for method in ("dpo", "ipo")
        for beta in betas
    ]
    names = ["base", "sft", *(run["name"] for run in runs), *(f"{run['name']}@step4" for run in runs)]
    one = {metric: {"mean": 1.0, "low": 0.9, "high": 1.1, "se": 0.05, "n": 4} for metric in METRICS}
    wins = {name: {"win_rate": 0.75, "low": 0.6, "high": 0.9} for name in names[2:]}
    policies = runs_table(runs, dict.fromkeys(names, one), wins, dict.fromkeys(names, (2, 4)))
    expected = [{"name": name, **SAMPLING} for name in names]
    steps = {run["name"]: 8 for run in runs}
    figure = over_training(answers_table(expected, policies, dict.fromkeys(names, one), wins, steps), "win rate")
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == ["DPO", "IPO"]


def test_nothing_is_drawn_of_what_a_suite_does_not_have(answers: pd.DataFrame):
    of_policy = answers[answers["variant"] == ""]
    assert by_temperature(of_policy, "win rate") is None and over_training(of_policy, "win rate") is None
    assert displacement({"dpo": pd.DataFrame({"step": [1]})}, answers, [*range(40)]) is None
    assert displacement({"dpo": pd.DataFrame({"step": [1], "held_out_chosen_fell": [0.5]})}, answers, []) is None


def test_wilsons_interval_and_the_number_of_watched_pairs():
    """Of 10 none: (0, z^2 / (10 + z^2)); of 100 half: 0.5 -+ z / (2 sqrt(100 + z^2))."""
    z = 1.959964
    low, high = wilson(np.array([0.0]), 10)
    assert low[0] == pytest.approx(0, abs=1e-12) and high[0] == pytest.approx(z * z / (10 + z * z))
    low, high = wilson(np.array([0.5]), 100)
    assert high[0] - low[0] == pytest.approx(z / np.sqrt(100 + z * z))
    assert PROBED == preference_metrics.PROBED


def prompts(*rewards: float, win: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame({"reward": rewards, "win_rate": win}, index=range(len(rewards)))


def test_a_gain_is_paired_by_prompt():
    """Prompts differ by 10, policies by 1 at each: the paired interval has no width."""
    result = gains({"sft": prompts(0.0, 10.0, 20.0), "dpo": prompts(1.0, 11.0, 21.0)})
    assert result == {"dpo": {"reward_gain": 1.0, "reward_gain_low": 1.0, "reward_gain_high": 1.0}}


def test_seeds_are_their_mean_with_an_interval_of_seeds_and_prompts():
    """Prompts alike, seeds 0 and 1: the standard error is 1/2, the 97.5 % quantile of t with one freedom 12.706."""
    means = {"a-seed0": prompts(0.0, 0.0), "a-seed1": prompts(1.0, 1.0)}
    averaged = average_seeds(means, list(means), "reward")
    assert (averaged["mean"], averaged["least"], averaged["most"]) == (0.5, 0.0, 1.0)
    assert (averaged["low"], averaged["high"]) == pytest.approx((0.5 - 6.3531, 0.5 + 6.3531), rel=1e-4)
    for table, rate in zip(means.values(), (0.1, 0.9), strict=True):
        table["win_rate"] = rate
    assert average_seeds(means, list(means), "win_rate")["high"] == 1, "no win rate is above 1"
    runs = pd.DataFrame({"run": list(means), "group": "a", "method": "dpo", "label": "", "seed": [0, 1], "reward": 0.5})
    (row,) = seeds_table(runs, means)
    assert row["name"] == "DPO" and row["seeds"] == [0, 1] and row["reward"]["most"] == 1.0
    assert row["kl"]["mean"] is None, "no such column"
    expected = [Expected(run="a", measure="reward", value=2.0, source="a paper", measured="reward")]
    (shown,) = published_rows(expected, runs, means, {})
    assert shown["measured"]["high"] == averaged["high"]


def test_an_expected_run_is_that_run_and_its_seeds_alone():
    """Not those whose names begin with its name: `dpo` is 1 and 3, never the other four."""
    rewards = {"dpo-seed0": 1.0, "dpo-seed1": 3.0, "dpo-strong": 50.0, "dpo-seedless": 60.0, "dpo2": 70.0}
    rewards |= {"cdpo": 80.0, "dpo-seed0-long": 90.0}
    runs = pd.DataFrame([{"run": run, "reward": value} for run, value in rewards.items()])
    means = {run: pd.DataFrame({"reward": [value] * 4}) for run, value in rewards.items()}
    expected = [Expected(run="dpo", measure="m", value=2.0, source="a paper", measured="reward")]
    (row,) = published_rows(expected, runs, means, {})
    assert row["measured"]["mean"] == 2.0
    runs = runs.assign(reward_low=0.0, reward_high=99.0)
    (row,) = published_rows([expected[0].model_copy(update={"run": "dpo-strong"})], runs, means, {})
    assert row["measured"] == {"mean": 50.0, "low": 0.0, "high": 99.0}


def test_published_numbers_are_shown_with_intervals():
    runs = pd.DataFrame([{"run": "dpo", "win_rate": 0.6, "win_low": 0.5, "win_high": 0.7}])
    values = {"measure": "m", "value": 0.61, "source": "a paper"}
    expected = [
        Expected(run="dpo", measured="win_rate", **values),
        Expected(run="reward", measured="accuracy", **values),
        Expected(run="absent", measured="reward", **values),
        Expected(run="dpo", **values),
    ]
    accuracies = {"after training": {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9}}
    rows = [row["measured"] for row in published_rows(expected, runs, {}, accuracies)]
    assert rows == [{"mean": 0.6, "low": 0.5, "high": 0.7}, {"mean": 0.8, "low": 0.7, "high": 0.9}, None, None]


def test_the_headline_judge_is_the_first(tmp_path: Path):
    """Prompt 0 wins by the first judge and loses by the second."""
    rows = [(0, 0, "reward", 1), (1, 0, "reward", 0.5), (0, 0, "length", 0), (1, 0, "length", 0)]
    pd.DataFrame(rows, columns=["prompt_id", "sample", "judge", "verdict"]).to_csv(tmp_path / "verdicts.csv")
    table = pd.DataFrame({"prompt_id": [0, 0, 1], "sample": [0, 1, 0], "reward": [1.0, 2.0, 4.0]})
    means = means_by_prompt(table, tmp_path / "verdicts.csv")
    assert list(means["win_rate"]) == [1.0, 0.5] and list(means["reward"]) == [1.5, 4.0]
    assert "win_rate" not in means_by_prompt(table, None)


def test_judges_agree_over_all_answers(tmp_path: Path):
    """Of four pairs of two policies one is a tie by a judge, and two of the other three verdicts are equal."""
    paths = []
    for policy, ours, theirs in (("dpo", (1, 0), (1, 1)), ("ipo", (1, 0.5), (1, 1))):
        (tmp_path / policy).mkdir()
        rows = [(i, 0, name, side[i]) for name, side in (("a", ours), ("b", theirs)) for i in (0, 1)]
        frame = pd.DataFrame(rows, columns=["prompt_id", "sample", "judge", "verdict"])
        frame.to_csv(tmp_path / policy / "verdicts.csv", index=False)
        paths.append(tmp_path / policy / "verdicts.csv")
    (row,) = agreements(paths)
    assert row["judges"] == ["a", "b"] and (row["n"], row["ties"]) == (4, 1)
    assert row["agreement"]["mean"] == pytest.approx(200 / 3)
    assert agreements([]) == []


def test_rates_are_a_row_a_judge_in_percent():
    one = {"win_rate": 0.5, "low": 0.25, "high": 0.75, "n": 4, "judge": "a"}
    order = {"ours_first": {"win_rate": 0.75}, "ours_second": {"win_rate": 0.25}, "p_value": 0.5}
    wins = {"dpo": {**one, "judges": {"a": one, "b": {**one, "order": order}}}, "ipo": one, "dpo@cold": one}
    rows = rates(wins, {"dpo": "DPO", "ipo": "IPO"})
    assert [(row["answers"], row["judge"]) for row in rows] == [("DPO", "a"), ("DPO", "b"), ("IPO", "a")]
    assert rows[0]["win_rate"] == {"mean": 50.0, "low": 25.0, "high": 75.0}
    assert rows[0]["length_controlled"] is None and rows[0]["order"] is None
    assert rows[1]["order"] == {"rates": [75.0, 25.0], "p_value": 0.5}


def test_the_whole_report_shows_them_and_is_the_same_twice(tmp_path: Path):
    inputs = write_results(tmp_path, SOME[:2], num_prompts=8, num_steps=60)
    inputs, answers = write_further(tmp_path, inputs, SOME[:2], num_prompts=8)
    first, second = (made(tmp_path / name, inputs, SOME[:2], answers).output for name in ("one", "two"))
    for path in sorted(path for path in first.rglob("*") if path.is_file()):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name
    table = pd.read_csv(first / "answers.csv")
    assert len(table) == len(answers) and set(table["step"].dropna()) == {0, 15, 30, 45, 60}
    page = (first / "index.html").read_text()
    for words in (
        "Small marks are checkpoints",
        "for N from 1 to 16",
        "trained</th><td>length</td>",
        "dpo-beta0.1-seed0@t1.0",
    ):
        assert words in page
    names = {path.stem for path in first.glob("figures/*.svg")}
    assert {"temperature", "over_training", "displacement", "frontier"} <= names


def test_checkpoints_after_the_step_that_was_chosen_are_later() -> None:
    """A run that `select` stopped at step 4 of 8: its path goes SFT, step 4, the run itself, and then step 6."""
    names = {"sft": 0, "dpo": 4, "dpo@step4": 4, "dpo@step6": 6, "kto@step6": 6, "kto": 8}
    rows = [{"answers": name, "run": name.partition("@")[0], "step": step} for name, step in names.items()]
    saved = checkpoints(pd.DataFrame(rows).astype({"step": "Int64"}))
    assert saved.set_index("answers")["is_later"].to_dict() == {
        "dpo@step4": False,
        "dpo@step6": True,
        "kto@step6": False,
    }
