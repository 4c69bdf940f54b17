"""What the report reads of the other stages, once, as its figures and tables need it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from prefdag.config.answer_sets import CHOSEN
from prefdag.reporting.rows import accuracies_of
from prefdag.reporting.seeds import GAIN, by_prompt, gains
from prefdag.reporting.tables import BEFORE_ALIGNMENT, answers_table, runs_table


@dataclass(frozen=True)
class SuiteResults:
    """One suite's results.

    runs: a row a policy (`tables.runs_table`, and its gain on SFT); answers: a row every scored set of answers
    (`answers_table`). By policy: tables (scores.csv), means (by prompt), curves; scores: the manifests of the policies'
    own. By answers: wins (judge/summary.json), verdicts (paths). accuracies: held-out evaluations of rewards by name.
    pool: best_of_n.csv.
    """

    runs: pd.DataFrame
    answers: pd.DataFrame
    scores: list[Path]
    tables: dict[str, pd.DataFrame]
    means: dict[str, pd.DataFrame]
    curves: dict[str, pd.DataFrame]
    wins: dict[str, dict[str, Any]]
    verdicts: dict[str, Path]
    accuracies: dict[str, Any]
    pool: pd.DataFrame | None

    @property
    def further_answers(self) -> pd.DataFrame:
        """The rows of `answers` that `runs` does not have: of variants and checkpoints, and the chosen responses."""
        return self.answers[(self.answers["variant"] != "") | (self.answers["run"] == CHOSEN)]

    @property
    def judging(self) -> Mapping[str, Any]:
        """Any summary of the stage `judge`: all name the same headline judge and the same other side."""
        return next(iter(self.wins.values()), {})


def load_results(
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    *,
    scores: Sequence[Path],
    judges: Sequence[Path],
    preferences: Sequence[Path],
    reward: Path | None,
    best_of_n: Path | None,
) -> SuiteResults:
    """Read everything. rows, answers: as the config has them; the rest are manifests."""
    summaries, wins = _summaries(scores), _summaries(judges)
    own = [path for path in scores if path.parent.name in (*BEFORE_ALIGNMENT, *(row["name"] for row in rows))]
    tables = {path.parent.name: pd.read_csv(path.parent / "scores.csv") for path in own}
    sizes = {name: (table["prompt_id"].nunique(), len(table)) for name, table in tables.items()}
    verdicts = {path.parent.name: path.parent / "verdicts.csv" for path in judges}
    means = {name: by_prompt(table, verdicts.get(name)) for name, table in tables.items()}
    runs = runs_table(rows, summaries, wins, sizes)
    runs = runs.join(pd.DataFrame.from_dict(gains(means), "index", columns=GAIN), on="run")
    curves = {path.parent.name: pd.read_csv(path.parent / "curves.csv") for path in preferences}
    steps = {name: int(curve["step"].iloc[-1]) for name, curve in curves.items()}
    return SuiteResults(
        runs=runs,
        answers=answers_table(answers, runs, summaries, wins, steps),
        scores=own,
        tables=tables,
        means=means,
        curves=curves,
        wins=wins,
        verdicts=verdicts,
        accuracies=accuracies_of(reward, own, runs),
        pool=pd.read_csv(best_of_n.parent / "best_of_n.csv") if best_of_n else None,
    )


def _summaries(manifests: Sequence[Path]) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads((path.parent / "summary.json").read_text()) for path in manifests}
