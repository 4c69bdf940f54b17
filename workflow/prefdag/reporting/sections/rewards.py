"""What the report says of rewards and of the responses that were compared: figures and what their sections show."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase

from prefdag.data.detokenize import prompt_and_response
from prefdag.data.token_store import Store
from prefdag.data.tokenization import load_tokenizer
from prefdag.evaluation.calibration import accuracy_by_length, calibration, pairs_of
from prefdag.reporting.figures.calibration import (
    calibration_figure,
    differences_figure,
    length_gap_figure,
    reward_length_figure,
)
from prefdag.reporting.figures.rewards import implicit_rewards, reward_training
from prefdag.reporting.figures.texts import text_map_figure, words_figure

SECTION = "rewards.html.jinja"
MOST_TEXTS = 1000  # comparisons whose texts are mapped and counted, evenly spaced
REWARD_MODEL = "reward model"


@dataclass(frozen=True)
class Results:
    """What the report has read. tables: policy -> scores.csv, curves: run -> curves.csv, shown: sft and runs beside it.

    reward, policy: manifests of the reward model and of the SFT policy, whose tokenizer puts comparisons into text.
    """

    runs: pd.DataFrame
    tables: Mapping[str, pd.DataFrame]
    curves: Mapping[str, pd.DataFrame]
    shown: list[str]
    scores: list[Path]
    comparisons: Path
    reward: Path | None
    policy: Path | None
    reward_label: str

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None where nothing says how to put tokens into text."""
        return load_tokenizer(self.policy.parent / "model") if self.policy is not None else None

    @property
    def display(self) -> dict[str, str]:
        return dict(zip(self.runs["run"], self.runs["display"], strict=True))


def reward_report(results: Results, samples: int) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Every figure that these results allow, by name, and the content of the template `SECTION`."""
    pairs = _held_out_pairs(results)
    calibrated = {name: calibration(found, seed=name) for name, found in pairs.items()}
    by_length = {name: accuracy_by_length(found, seed=name) for name, found in pairs.items()}
    drawn = {
        "calibration": calibration_figure(calibrated),
        "length_gap": length_gap_figure(by_length),
        "length_correlation": reward_length_figure(*_scored(results)),
        "gains": differences_figure(_gains(results)),
        "implicit_rewards": implicit_rewards(*_implicit(results)),
        **_texts(results),
    }
    if results.reward is not None and (results.reward.parent / "curves.csv").is_file():
        drawn["reward_training"] = reward_training(pd.read_csv(results.reward.parent / "curves.csv"))
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    return figures, {"calibrations": calibrated, "pairs": _sample_pairs(results, samples)}


def calibration_table(content: Mapping[str, Any]) -> pd.DataFrame:
    """calibration.csv: a row for each bin of each reward."""
    parts = [one.bins.assign(reward=name) for name, one in content["calibrations"].items()]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _held_out_pairs(results: Results) -> dict[str, pd.DataFrame]:
    """Pairs of the held-out comparisons by what the page calls the reward: the reward model's, then implicit ones."""
    found = {}
    if results.reward is not None and (results.reward.parent / "held_out.csv").is_file():
        table = pd.read_csv(results.reward.parent / "held_out.csv")
        found = {f"{when} training": pairs_of(table, when) for when in ("before", "after")}
    for path in results.scores:
        if (path.parent / "held_out.csv").is_file():
            table = pd.read_csv(path.parent / "held_out.csv")
            found[f"implicit, {results.display[path.parent.name]}"] = pairs_of(table, "implicit")
    return {name: pairs for name, pairs in found.items() if len(pairs)}


def _rewards(results: Results) -> dict[str, str]:
    """Columns of scores.csv and their labels: the headline and, where it is another, the trained reward model."""
    sft = results.tables["sft"]
    own = "trained" in sft and not sft["trained"].equals(sft["reward"])
    return {"reward": results.reward_label, **({"trained": REWARD_MODEL} if own else {})}


def _scored(results: Results) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    return {results.display[name]: results.tables[name] for name in results.shown}, _rewards(results)


def _gains(results: Results) -> dict[str, dict[str, pd.Series]]:
    """Differences of prompt means to SFT's, by reward and run; prompts that only one of the two has are left out."""
    return {
        label: {results.display[run]: _prompt_means(results, run, column) for run in results.shown[1:]}
        for column, label in _rewards(results).items()
    }


def _prompt_means(results: Results, run: str, column: str) -> pd.Series:
    ours, sft = (results.tables[name].groupby("prompt_id")[column].mean() for name in (run, "sft"))
    return (ours - sft).dropna()


def _implicit(results: Results) -> tuple[dict[str, pd.DataFrame], dict[str, float]]:
    objectives = dict(zip(results.runs["run"], map(json.loads, results.runs["objective"]), strict=True))
    named = {results.display[run]: run for run in results.shown[1:] if run in results.curves}
    betas = {name: float(objectives[run]["beta"]) for name, run in named.items() if "beta" in objectives[run]}
    return {name: results.curves[run] for name, run in named.items()}, betas


def _texts(results: Results) -> dict[str, Figure | None]:
    """Figures of the training split's texts, best against last response."""
    if results.tokenizer is None:
        return {}
    store = Store.open(results.comparisons.parent / "train")
    rows = spaced(len(store), MOST_TEXTS)
    found = [responses for _, responses in _decoded(results.tokenizer, store, rows)]
    chosen, rejected = [responses[0] for responses in found], [responses[-1] for responses in found]
    prompts = np.asarray(store.prompts)[rows]
    return {"words": words_figure(chosen, rejected, prompts), "text_map": text_map_figure(chosen, rejected, prompts)}


def spaced(num: int, most: int) -> list[int]:
    """At most `most` of the numbers below `num`, evenly spaced."""
    return np.unique(np.linspace(0, num - 1, min(num, most)).astype(int)).tolist() if num else []


def _sample_pairs(results: Results, number: int) -> list[dict[str, Any]]:
    """Evenly spaced held-out comparisons, best and last response, each with its reward before and after training."""
    if results.tokenizer is None or results.reward is None or not (results.reward.parent / "held_out.csv").is_file():
        return []
    table = pd.read_csv(results.reward.parent / "held_out.csv")
    store = Store.open(results.comparisons.parent / "test")
    assert len(table) == len(store), "held_out.csv has a line for every held-out comparison"
    scores = {when: table.filter(regex=f"^{when}_").to_numpy() for when in ("before", "after")}
    rows, found = spaced(len(store), number), []
    for index, (prompt, responses) in zip(rows, _decoded(results.tokenizer, store, rows), strict=True):
        sides = [
            {"who": who, "text": responses[place], **{when: float(scores[when][index, place]) for when in scores}}
            for who, place in (("chosen", 0), ("rejected", -1))
        ]
        found.append({"row": int(store.rows[index]), "prompt": prompt, "sides": sides})
    return found


def _decoded(tokenizer: PreTrainedTokenizerBase, store: Store, rows: list[int]) -> list[tuple[str, list[str]]]:
    """The prompt and the responses, best first, of some comparisons as text."""
    found = []
    for one in map(store.__getitem__, rows):
        texts = [prompt_and_response(tokenizer, one.prompt.tolist(), ids.tolist()) for ids in one.responses]
        found.append((texts[0][0], [response for _, response in texts]))
    return found
