"""Intervals in figures are over prompts: nine copies of every row change none of them."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prefdag.reporting.figures import distributions, reliability, texts
from prefdag.seeds import generator
from prefdag.stages.classifier import evaluation


def table_of(copies: int) -> pd.DataFrame:
    random = generator(0, "figure intervals")
    columns = {"length": random.integers(20, 60, 60), "trained": random.normal(size=60)}
    table = pd.DataFrame({"prompt_id": range(60), **columns})
    return table.loc[np.tile(np.arange(60), copies)].reset_index(drop=True)


def titles(figure: Any) -> str:
    return "".join(axes.get_title(loc="left") for axes in figure.axes)


def bars(table: pd.DataFrame) -> str:
    """What the panel of a reward's means by length draws."""
    panels: list[str] = []
    axes = SimpleNamespace(errorbar=lambda x, y, bar, **style: panels.append(f"{x:.6f} {y:.6f} {np.round(bar, 2)}"))
    reliability._binned_means(axes, table, "trained")
    return " ".join(panels)


def accuracy(table: pd.DataFrame) -> str:
    labels = (table["length"] > 40).astype(int).to_numpy()
    predicted = 1 / (1 + np.exp(-table["trained"].to_numpy() - labels))
    facts = evaluation(predicted, labels, table["prompt_id"].to_numpy(), "test")["accuracy"]
    return f"{facts['low']:.6f} {facts['high']:.6f}"


def lengths(table: pd.DataFrame) -> str:
    return titles(distributions.lengths({"sft": (table["length"].to_numpy(), table["prompt_id"].to_numpy())}, 1))


FIGURES: dict[str, Callable[[pd.DataFrame], str]] = {
    "lengths": lengths,
    "scores": lambda table: titles(distributions.reward_histograms({"sft": table}, {"trained": "after training"})),
    "means by length": bars,
    "a classifier's accuracy": accuracy,
}


@pytest.mark.parametrize("name", FIGURES)
def test_copies_of_every_row_do_not_shrink_an_interval(name: str):
    once = FIGURES[name](table_of(1))
    assert len(set(re.findall(r"-?\d+\.\d+", once))) > 1  # the two ends of an interval at least
    assert FIGURES[name](table_of(9)) == once


def test_the_map_of_texts_resamples_prompts(monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    right = texts.bootstrap_interval
    monkeypatch.setattr(
        texts,
        "bootstrap_interval",
        lambda values, prompts, **rest: seen.append(prompts) or right(values, prompts, **rest),
    )
    prompts = np.repeat(np.arange(4), 2)
    chosen = [f"sea ship {tail}" for tail in ("sail", "wind", "salt", "wave", "deck", "mast", "port", "reef")]
    rejected = [f"moon star {tail}" for tail in ("sky", "night", "orbit", "dust", "mars", "sun", "dark", "glow")]
    assert texts.text_map_figure(chosen, rejected, prompts) is not None
    assert len(seen) == 4 and all(each is prompts for each in seen)
