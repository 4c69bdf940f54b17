"""Read what the other stages of a suite wrote, once, for every figure, table and section of the report."""

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from prefdag.config.answer_sets import CHOSEN, AnswerSet
from prefdag.config.sections.report import Report
from prefdag.data.detokenize import decode_response
from prefdag.data.token_store import Store
from prefdag.data.tokenization import load_tokenizer
from prefdag.evaluation.calibration import Calibration, calibration, pairs_of
from prefdag.reporting.attainable import POOL_NAME, PoolFrontier, add_shares, not_comparable
from prefdag.reporting.candidates import candidates_table
from prefdag.reporting.league import league, seconds_per_step
from prefdag.reporting.lost import losses_of_runs
from prefdag.reporting.matched_kl import read_checkpoints
from prefdag.reporting.proxy_gold import proxy_gold_table, with_gold
from prefdag.reporting.rows import accuracies_of, accuracies_of_variants, reward_names
from prefdag.reporting.seeds import GAIN, gains, means_by_prompt
from prefdag.reporting.tables import BEFORE_ALIGNMENT, answers_table, compared, runs_table

MAX_TEXTS = 1000  # training comparisons whose texts are mapped and counted
MANY_METHODS = 12  # more do not fit in one panel


@dataclass(frozen=True)
class Inputs:
    """Manifests of the jobs that the report reads. `policy` is SFT's, whose tokenizer decodes the comparisons."""

    scores: Sequence[Path]
    judges: Sequence[Path]
    generations: Sequence[Path]
    preferences: Sequence[Path]
    comparisons: Path
    reward: Path | None = None
    best_of_n: Path | None = None
    policy: Path | None = None
    choices: Sequence[Path] = ()
    reward_sets: Sequence[Path] = ()
    reward_variants: Sequence[Path] = ()
    hidden_map: Path | None = None


@dataclass(frozen=True)
class SuiteResults:
    """The results of one suite.

    Attributes:
        runs: a row per policy (`tables.runs_table`), with its gain over SFT.
        answers: a row per scored set of answers (`tables.answers_table`).
        shown: the policies that are shown side by side: `sft`, then the compared runs.
        tables: scores.csv of each policy. means: the same by prompt.
        curves: curves.csv of each preference run. online: of each on-policy run.
        wins: judge/summary.json of each set of answers. verdicts: the paths of their verdicts.csv.
        accuracies: held-out evaluation of each reward, by its name on the page.
        league: `league.league`, None unless the suite asks for it.
        pool: best_of_n.csv, None without Best-of-N.
        attainable: the largest reward at each KL (`attainable.PoolFrontier.curve`), None without a pool.
        candidates: `candidates.candidates_table`, None without the section `select`.
    """

    settings: Report
    inputs: Inputs
    runs: pd.DataFrame
    answers: pd.DataFrame
    shown: list[str]
    tables: dict[str, pd.DataFrame]
    means: dict[str, pd.DataFrame]
    curves: dict[str, pd.DataFrame]
    wins: dict[str, dict[str, Any]]
    verdicts: dict[str, Path]
    accuracies: dict[str, Any]
    league: pd.DataFrame | None
    pool: pd.DataFrame | None
    online: dict[str, pd.DataFrame]
    attainable: pd.DataFrame | None = None
    candidates: pd.DataFrame | None = None

    @property
    def display(self) -> dict[str, str]:
        """The name of each policy on figures and in tables."""
        return dict(zip(self.runs["run"], self.runs["display"], strict=True))

    @property
    def further_answers(self) -> pd.DataFrame:
        """The rows of `answers` that `runs` does not have: of variants and checkpoints, and the chosen responses."""
        return self.answers[(self.answers["variant"] != "") | (self.answers["run"] == CHOSEN)]

    @property
    def judging(self) -> Mapping[str, Any]:
        """A summary of the stage `judge`: all name the same headline judge and the same opponent."""
        return next(iter(self.wins.values()), {})

    @property
    def has_many_methods(self) -> bool:
        return bool(self.runs["method"].nunique() > MANY_METHODS)

    @property
    def reward_labels(self) -> dict[str, str]:
        """Label of each reward's column in scores.csv: the headline, and the reward model if that is another one."""
        sft = self.tables["sft"]
        other = "trained" in sft and not sft["trained"].equals(sft["reward"])
        return {"reward": self.settings.reward_label, **({"trained": "reward model"} if other else {})}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return load_tokenizer(self.inputs.policy.parent / "model") if self.inputs.policy is not None else None

    @cached_property
    def held_out_pairs(self) -> dict[str, pd.DataFrame]:
        """Held-out pairs by the name of the reward that scored them: the reward model, then implicit rewards."""
        pairs = {}
        if (table := self.reward_table("held_out.csv")) is not None:
            pairs = {name: pairs_of(table, when) for when, name in reward_names(self.inputs.reward).items()}
        for path in _of_policies(self.inputs.scores, self.tables):
            if (path.parent / "held_out.csv").is_file():
                table = pd.read_csv(path.parent / "held_out.csv")
                pairs[f"implicit, {self.display[path.parent.name]}"] = pairs_of(table, "implicit")
        return {name: table for name, table in pairs.items() if len(table)}

    @cached_property
    def reward_model_scores(self) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
        """The reward model's scores by set of responses, and when it gave those of each column.

        The sets are the held-out responses by their rank, SFT's answers and those of the first compared run.
        """
        names, columns = reward_names(self.inputs.reward), {"before": "untrained", "after": "trained"}
        models = {columns[when]: label for when, label in names.items()}
        held_out = self.reward_table("held_out.csv")
        if held_out is None or not set(models) <= set(self.tables["sft"]):
            return {}, models
        places = [name.removeprefix("after_") for name in held_out if name.startswith("after_")]
        sets = {
            f"held-out {place}": pd.DataFrame(
                {"prompt_id": held_out["prompt"], **{columns[when]: held_out[f"{when}_{place}"] for when in names}}
            )
            for place in places
        }
        generated = {self.display[name]: self.tables[name][["prompt_id", *models]] for name in self.shown[:2]}
        return {**sets, **generated}, models

    @cached_property
    def calibrations(self) -> dict[str, Calibration]:
        return {name: calibration(pairs, seed=name) for name, pairs in self.held_out_pairs.items()}

    @cached_property
    def training_texts(self) -> tuple[list[str], list[str], np.ndarray] | None:
        """Best and last responses of training comparisons, and their prompts' numbers.

        None without a tokenizer, or if responses are single.
        """
        if self.tokenizer is None or (store := self.store("train")).num_responses == 1:
            return None
        rows = evenly_spaced(len(store), MAX_TEXTS)
        responses = [texts for _, texts in self.decode("train", rows)]
        prompts = np.asarray(store.prompts)[rows]
        return [ordered[0] for ordered in responses], [ordered[-1] for ordered in responses], prompts

    @cached_property
    def proxy_gold(self) -> pd.DataFrame | None:
        """`proxy_gold.proxy_gold_table`, None unless the suite names a gold reward model."""
        gold = self.settings.gold
        return proxy_gold_table(self.answers, self.inputs.scores, gold) if gold else None

    @cached_property
    def reward_sets(self) -> dict[str, pd.DataFrame]:
        """subsets.csv of each set that the reward model is measured on."""
        return {path.parent.name: pd.read_csv(path.parent / "subsets.csv") for path in self.inputs.reward_sets}

    def reward_table(self, name: str) -> pd.DataFrame | None:
        """Read a table of the stage `reward`, None if it wrote none of that name."""
        path = self.inputs.reward.parent / name if self.inputs.reward is not None else None
        return pd.read_csv(path) if path is not None and path.is_file() else None

    def store(self, split: str) -> Store:
        return Store.open(self.inputs.comparisons.parent / split)

    def decode(self, split: str, rows: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
        """Yield the prompt and the responses, best first, of some comparisons as text. Needs `tokenizer`."""
        assert self.tokenizer is not None
        store = self.store(split)
        for row in rows:
            one = store[row]
            texts = [decode_response(self.tokenizer, one.prompt.tolist(), ids.tolist()) for ids in one.responses]
            yield texts[0][0], [response for _, response in texts]


def load_results(
    settings: Report,
    runs: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    inputs: Inputs,
    journals: Path | None = None,
) -> SuiteResults:
    """Read the results of a suite.

    Args:
        settings: the suite's section `report`.
        runs: name, method, seed and objective of each run.
        answers: the sets of answers, as `tables.answers_table` takes them.
        inputs: the manifests.
        journals: the folder of journals, for the step times of the league; None leaves them out.
    """
    summaries, wins = _summaries(inputs.scores), _summaries(inputs.judges)
    scores = _of_policies(inputs.scores, (*BEFORE_ALIGNMENT, *(run["name"] for run in runs)))
    tables = {path.parent.name: pd.read_csv(path.parent / "scores.csv") for path in scores}
    sizes = {name: (table["prompt_id"].nunique(), len(table)) for name, table in tables.items()}
    verdicts = {path.parent.name: path.parent / "verdicts.csv" for path in inputs.judges}
    means = {name: means_by_prompt(table, verdicts.get(name)) for name, table in tables.items()}
    table = runs_table(runs, summaries, wins, sizes)
    table = table.join(pd.DataFrame.from_dict(gains(means), "index", columns=GAIN), on="run")
    table = table.join(losses_of_runs(table["run"], summaries, inputs.preferences, inputs.comparisons), on="run")
    every, steps = _curves(inputs.preferences)
    online = {name: curve for name, curve in every.items() if "score" in curve}
    curves = {name: curve for name, curve in every.items() if name not in online}
    answered = answers_table(answers, table, summaries, wins, steps)
    ranking = None
    if settings.matched_kl and curves:
        seconds = seconds_per_step(journals) if journals is not None else None
        displaced = _held_out(inputs.preferences)
        parts = table, tables, curves, settings.matched_kl
        saved = read_checkpoints(answered, inputs.scores)
        ranking = league(*parts, seconds=seconds, displaced=displaced, checkpoints=saved)
        if settings.gold:
            ranking = with_gold(ranking, *parts, settings.gold, saved)
    pool = next((path for path in inputs.scores if path.parent.name == POOL_NAME), None) if inputs.best_of_n else None
    best = PoolFrontier(pd.read_csv(pool.parent / "scores.csv")) if pool else None
    if best:
        table, ranking = add_shares(table, ranking, means, best, not_comparable(answers))
    return SuiteResults(
        settings=settings,
        inputs=inputs,
        runs=table,
        answers=answered,
        shown=["sft", *compared(table, settings.compare)],
        tables=tables,
        means=means,
        curves=curves,
        wins=wins,
        verdicts=verdicts,
        accuracies={**accuracies_of(inputs.reward, scores, table), **accuracies_of_variants(inputs.reward_variants)},
        league=ranking,
        online=online,
        pool=pd.read_csv(inputs.best_of_n.parent / "best_of_n.csv") if inputs.best_of_n else None,
        attainable=best.curve() if best else None,
        candidates=candidates_table(inputs.choices),
    )


def _of_policies(manifests: Sequence[Path], policies: Container[str]) -> list[Path]:
    """Select the jobs of the policies' own answers."""
    return [path for path in manifests if path.parent.name in policies]


def _curves(preferences: Sequence[Path]) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Read curves.csv of each run; the rounds of a run follow one another, their steps numbered consecutively.

    Returns:
        The curves of each run, and the optimizer steps of each run and up to the end of each of its rounds.
    """
    curves: dict[str, pd.DataFrame] = {}
    ends: dict[str, int] = {}
    for path in preferences:
        run, curve = AnswerSet.parse(path.parent.name).policy, pd.read_csv(path.parent / "curves.csv")
        if run in curves:
            curve["step"] += ends[run]
            curve = pd.concat([curves[run], curve], ignore_index=True)
        curves[run] = curve
        ends[run] = ends[path.parent.name] = int(curve["step"].iloc[-1])
    return curves, ends


def _held_out(preferences: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Read held_out.csv of each run, of its last round: log-ratios of held-out comparisons after training."""
    paths = {AnswerSet.parse(path.parent.name).policy: path.parent / "held_out.csv" for path in preferences}
    return {run: pd.read_csv(path) for run, path in paths.items() if path.is_file()}


def _summaries(manifests: Sequence[Path]) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads((path.parent / "summary.json").read_text()) for path in manifests}


def evenly_spaced(num: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0 to `num` - 1, evenly spaced."""
    return np.unique(np.linspace(0, num - 1, min(num, most)).astype(int)).tolist() if num else []
