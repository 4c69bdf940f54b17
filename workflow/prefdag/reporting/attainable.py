"""What the pool of Best-of-N says is attainable at each KL, and the share of it that each run reaches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prefdag.config.answer_sets import POOL, AnswerSet
from prefdag.evaluation.attainable import (
    LEAST_SAMPLES,
    Frontier,
    frontier,
    interval,
    prompt_weights,
    share_of_attainable,
)
from prefdag.reporting.tables import BEFORE_ALIGNMENT

BOOTSTRAP = 1000
POINTS = 40
POOL_NAME = str(AnswerSet("sft", POOL))
COLUMNS = [f"attainable_{what}{end}" for what in ("gain", "share") for end in ("", "_low", "_high")]
NOTE = "attainable_note"


class PoolFrontier:
    """The frontier of a pool's prompts. table: scores.csv of the pool, whose prompts all have as many samples."""

    def __init__(self, table: pd.DataFrame) -> None:
        rewards = table.pivot(index="prompt_id", columns="sample", values="reward")
        self.prompts = rewards.index
        self.samples = rewards.shape[1]
        self.frontier: Frontier = frontier(rewards.to_numpy())
        self.weights = prompt_weights(len(rewards), BOOTSTRAP, "attainable")

    def curve(self) -> pd.DataFrame:
        """Return attainable.csv: the largest reward at KLs from 0 on, and how far it can be trusted.

        Columns: kl; reward and gain over SFT, each with _low and _high; beta; effective_samples of a prompt; bias, the
        first-order bias of both; trusted.
        """
        front = self.frontier
        mean_kl, rows = front.kl.mean(axis=0), []
        for kl in mean_kl[-1] * np.linspace(0, 1, POINTS) ** 2:
            gains = front.gain_at(np.full(len(self.weights), kl), self.weights)
            gain, low, high = interval(gains)
            reward = interval(self.weights @ front.reward[:, 0] + gains)
            at = {
                name: float(np.interp(kl, mean_kl, values))
                for name, values in (("effective_samples", front.effective_samples), ("bias", front.bias))
            }
            beta = float(np.interp(kl, mean_kl[1:], front.betas[1:])) if kl > 0 else np.inf
            rows.append(
                {"kl": kl, "reward": reward[0], "reward_low": reward[1], "reward_high": reward[2]}
                | {"gain": gain, "gain_low": low, "gain_high": high, "beta": beta, **at}
                | {"trusted": bool(kl <= front.trusted_kl)}
            )
        return pd.DataFrame(rows)

    def share(self, runs: Sequence[str], means: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
        """Return `COLUMNS` and the note of a setting, NaN with a reason where the pool does not say.

        Args:
            runs: the setting's runs, one a seed, which are averaged.
            means: `seeds.means_by_prompt` by run, `sft` among them.
        """
        nothing: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
        if any("kl" not in means[run] for run in runs):
            return {**nothing, NOTE: "the answers have no KL"}
        tables = [means[run].reindex(self.prompts)[["reward", "kl"]] for run in runs]
        both = pd.concat([*tables, means["sft"]["reward"].reindex(self.prompts)], axis=1)
        if both.isna().any(axis=None):
            return {**nothing, NOTE: "some prompts of the pool have no answer of this run"}
        reward, kl = (np.mean([table[column].to_numpy() for table in tables], axis=0) for column in ("reward", "kl"))
        if kl.mean() > self.frontier.trusted_kl:
            seen = f"KL {self.frontier.trusted_kl:.2f}, up to which {LEAST_SAMPLES:g} of {self.samples} samples count"
            return {**nothing, NOTE: f"its KL of {kl.mean():.2f} is beyond {seen}"}
        gain = reward - means["sft"]["reward"].reindex(self.prompts).to_numpy()
        attainable, share = share_of_attainable(self.frontier, gain, kl, self.weights)
        if not np.isfinite(share).all():
            return {**nothing, NOTE: "nothing is attainable at its KL"}
        return {**dict(zip(COLUMNS, (*interval(attainable), *interval(share)), strict=True)), NOTE: ""}


def not_comparable(answers: Sequence[Mapping[str, Any]]) -> str:
    """Return why the KL of the answers is not that of their distribution, or nothing: it is measured at temperature 1.

    answers: the sets of answers, as `tables.answers_table` takes them.
    """
    for entry in answers:
        one = AnswerSet.parse(entry["name"])
        stated = entry.get("temperature"), entry.get("top_p")
        is_read = str(one) == POOL_NAME or not one.suffix
        if is_read and not one.is_chosen and (stated[0] not in (None, 1) or stated[1] not in (None, 1)):
            return f"{one} is sampled at temperature {stated[0]:g} and top_p {stated[1]:g}, and KL is that of 1 and 1"
    return ""


def add_shares(
    runs: pd.DataFrame, league: pd.DataFrame | None, means: Mapping[str, pd.DataFrame], pool: PoolFrontier, why_not: str
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Add `COLUMNS` and the note to the tables of runs and of the league, there of the setting of largest reward.

    why_not: a reason that holds for every run, or nothing.
    """

    def share(names: Sequence[str]) -> dict[str, Any]:
        return {**dict.fromkeys(COLUMNS, np.nan), NOTE: why_not} if why_not else pool.share(names, means)

    aligned = runs[~runs["run"].isin(BEFORE_ALIGNMENT)]
    rows = {run: share([run]) for run in aligned["run"]}
    table = runs.join(pd.DataFrame.from_dict(rows, "index", columns=[*COLUMNS, NOTE]), on="run")
    if league is None:
        return table, None
    best = {
        loss: max(members.groupby("group", sort=False), key=lambda one: one[1]["reward"].mean())[1]["run"]
        for loss, members in aligned.groupby(["method", "form"], sort=False)
    }
    shares = pd.DataFrame([share(list(names)) for names in best.values()], columns=[*COLUMNS, NOTE])
    shares.index = pd.MultiIndex.from_tuples(best, names=["method", "form"])
    return table, league.join(shares, on=["method", "form"])
