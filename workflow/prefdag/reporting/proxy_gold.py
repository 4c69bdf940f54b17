"""The reward model that policies are trained on, the proxy, against a held-out one, the gold, over KL."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from prefdag.evaluation.bootstrap import bootstrap_interval
from prefdag.reporting.league import league
from prefdag.reporting.tables import BEFORE_ALIGNMENT

GOLD_AT = "gold_at_"


def gold_column(gold: str) -> str:
    """Return the column of scores.csv that holds a further reward model's scores."""
    return f"trained_{gold}"


def proxy_gold_table(answers: pd.DataFrame, scores: Sequence[Path], gold: str) -> pd.DataFrame:
    """Return the gains over SFT of both reward models, a row for each policy and checkpoint.

    A gain is the mean over prompts of the difference to SFT's answers to the same prompt, divided by the standard
    deviation of that reward model's scores of SFT's answers: two reward models have no common unit.

    Args:
        answers: `tables.answers_table`.
        scores: manifests of every set of answers.
        gold: name of the held-out reward model.

    Returns:
        Columns answers, run, method, display, step, kl, kl_se, proxy, proxy_low, proxy_high, gold, gold_low, gold_high;
        intervals resample prompts.

    Reference: Gao et al. 2023, figure 1.
    """
    folders = {path.parent.name: path.parent for path in scores}
    columns = {"proxy": "trained", "gold": gold_column(gold)}
    start = pd.read_csv(folders["sft"] / "scores.csv")
    origin = start.groupby("prompt_id")[list(columns.values())].mean()
    rows = []
    for row in answers.to_dict("records"):
        is_further = row["run"] in BEFORE_ALIGNMENT or row["prompts"] != "test" or pd.isna(row["step"])
        if is_further or row["answers"] not in folders or pd.isna(row["kl"]):
            continue
        means = pd.read_csv(folders[row["answers"]] / "scores.csv").groupby("prompt_id")[list(columns.values())].mean()
        line = {key: row[key] for key in ("answers", "run", "method", "display", "step", "kl", "kl_se")}
        for side, column in columns.items():
            gain = (means[column] - origin[column]).dropna() / start[column].std(ddof=0)
            name = f"proxy and gold/{row['answers']}/{side}"
            low, high = bootstrap_interval(gain, np.asarray(gain.index), seed=name, bootstrap=1000)
            line |= {side: float(gain.mean()), f"{side}_low": low, f"{side}_high": high}
        rows.append(line)
    return pd.DataFrame(rows)


def with_gold(
    ranking: pd.DataFrame,
    runs: pd.DataFrame,
    tables: Mapping[str, pd.DataFrame],
    curves: Mapping[str, pd.DataFrame],
    matched: Sequence[float],
    gold: str,
    checkpoints: Mapping[str, Mapping[int, pd.DataFrame]],
) -> pd.DataFrame:
    """Return the league with the held-out reward model's reward at the same KLs as last columns.

    Args:
        ranking: `league.league` of the headline reward.
        runs, tables, curves, matched, checkpoints: what `league.league` takes.
        gold: name of the held-out reward model.
    """

    def golden(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(reward=table[gold_column(gold)])

    finals = {name: golden(table) for name, table in tables.items()}
    saved = {run: {step: golden(table) for step, table in steps.items()} for run, steps in checkpoints.items()}
    other = league(runs, finals, curves, matched, checkpoints=saved)
    names = {
        f"reward_at_{target:g}{end}": f"{GOLD_AT}{target:g}{end}" for target in matched for end in ("", "_low", "_high")
    }
    other = other[["method", "form", *names]].rename(columns=names)
    return ranking.merge(other, on=["method", "form"], how="left")
