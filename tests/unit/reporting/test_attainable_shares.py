"""The share of the attainable reward in the tables of the report, and its reasons where there is none."""

import numpy as np
import pandas as pd
import pytest

from prefdag.reporting.attainable import PoolFrontier, add_shares, not_comparable
from prefdag.reporting.sections.overview import _last_trusted
from synthetic_results import SOME, made, write_further, write_results

PROMPTS, SAMPLES = 6, 40


def pool_table() -> pd.DataFrame:
    rewards = np.random.default_rng(0).normal(size=PROMPTS * SAMPLES)
    prompts, samples = np.repeat(np.arange(PROMPTS), SAMPLES), np.tile(np.arange(SAMPLES), PROMPTS)
    return pd.DataFrame({"prompt_id": prompts, "sample": samples, "reward": rewards})


def by_prompt(reward: object, kl: object, prompts: int = PROMPTS) -> pd.DataFrame:
    index = pd.RangeIndex(prompts, name="prompt_id")
    return pd.DataFrame({"reward": reward, "kl": kl}, index=index)


def test_shares_of_policies_on_below_and_beyond_the_frontier() -> None:
    """One has the frontier's own gain and KL, one half of that gain; two are further than the pool is trusted."""
    pool = PoolFrontier(pool_table())
    at = int(np.argmin(abs(pool.frontier.kl.mean(0) - 0.5)))
    gain, kl = pool.frontier.reward[:, at] - pool.frontier.reward[:, 0], pool.frontier.kl[:, at]
    between = (pool.frontier.trusted_kl + np.log(SAMPLES)) / 2
    means = {
        "sft": by_prompt(1.0, 0.0),
        "best": by_prompt(1.0 + gain, kl),
        "half": by_prompt(1.0 + gain / 2, kl),
        "far": by_prompt(4.0, 9.0),
        "between": by_prompt(2.0, between),
        "few": by_prompt(1.0, 0.5, prompts=3),
    }
    runs = pd.DataFrame(
        [
            {"run": n, "method": m, "group": n, "reward": t["reward"].mean()}
            for (n, t), m in zip(means.items(), "sddeff")
        ]
    ).assign(method=["sft", "dpo", "dpo", "ipo", "ipo", "kto"], form="")
    league = pd.DataFrame({"method": ["dpo", "ipo", "kto"], "form": ""})
    table, ranking = add_shares(runs, league, means, pool, "")
    table = table.set_index("run")
    assert table.loc["best", "attainable_share"] == pytest.approx(1)
    assert table.loc["half", ["attainable_share", "attainable_share_low"]].tolist() == pytest.approx([0.5, 0.5])
    assert table.loc["best", "attainable_gain"] == pytest.approx(gain.mean())
    assert table.loc["best", "attainable_gain_low"] < gain.mean() < table.loc["best", "attainable_gain_high"]
    assert table.loc[["far", "between"], "attainable_share"].isna().all()
    assert table.loc["far", "attainable_note"].startswith("its KL of 9.00 is beyond KL ")
    assert table.loc["few", "attainable_note"] == "some prompts of the pool have no answer of this run"
    assert ranking is not None
    assert ranking.set_index("method")["attainable_share"].to_numpy() == pytest.approx([1, np.nan, np.nan], nan_ok=True)
    curve = pool.curve()
    assert curve["trusted"].iloc[0] and not curve["trusted"].iloc[-1]
    assert (curve["bias"] <= 0).all() and curve["gain"].is_monotonic_increasing
    assert curve["kl"].iloc[-1] == pytest.approx(np.log(SAMPLES), abs=1e-3)


def test_tempered_answers_have_no_share() -> None:
    """The KL of a tempered policy is not measured."""
    plain = {"temperature": 1.0, "top_p": 1.0}
    assert not not_comparable([{"name": "sft", **plain}, {"name": "dpo@t0", "temperature": 0.0}, {"name": "chosen"}])
    reason = not_comparable([{"name": "sft", **plain}, {"name": "sft@pool", **plain, "temperature": 0.7}])
    assert reason == "sft@pool is sampled at temperature 0.7 and top_p 1, and KL is that of 1 and 1"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("results")
    inputs, answers = write_further(root, write_results(root, SOME[:2], 8, 60), SOME[:2], num_prompts=8)
    answers = [entry | {"temperature": 1.0} for entry in answers if "@t" not in entry["name"]]
    inputs["scores"] = [path for path in inputs["scores"] if "@t" not in path.parent.name]
    return made(root / "report", inputs, SOME[:2], answers, matched_kl=[5]).output


def test_the_report_has_the_columns_the_curve_and_the_sentence(output) -> None:
    runs, league = pd.read_csv(output / "runs.csv"), pd.read_csv(output / "league.csv")
    for table in (runs, league):
        assert list(table.columns[-7:]) == [
            *(f"attainable_{what}{end}" for what in ("gain", "share") for end in ("", "_low", "_high")),
            "attainable_note",
        ]
    aligned = runs[runs["run"].str.startswith("dpo")]
    assert aligned["attainable_note"].str.contains("is beyond KL").all()  # 16 nats from a pool of 16 samples
    assert len(pd.read_csv(output / "attainable.csv")) == 40
    page = (output / "index.html").read_text()
    assert "attainable.csv" in page
    assert "share of the attainable gain" not in page  # a column without a number says nothing
    assert "attainable" in (output / "figures/frontier.svg").read_text()


def test_the_page_says_nothing_of_a_curve_that_is_not_drawn() -> None:
    """A pool of eight samples is trusted at SFT alone."""
    curve = pd.DataFrame({"kl": [0.0, 0.1, 0.2], "trusted": [True, False, False]})
    assert _last_trusted(curve) is None and _last_trusted(None) is None
    assert _last_trusted(curve.assign(trusted=[True, True, False])) == {"kl": 0.1, "trusted": True}
