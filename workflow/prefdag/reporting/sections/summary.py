"""The first lines of the page: what was measured, what came out, and what made it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from prefdag.evaluation.over_seeds import ONE_SEED
from prefdag.reporting.load import SuiteResults
from prefdag.reporting.lost import leaked
from prefdag.reporting.tables import BEFORE_ALIGNMENT, title

MANY = 0.2  # share of rows lost from which the first sentence says so


def summary(results: SuiteResults) -> list[str]:
    """Return sentences on the comparison, what leaked, SFT, the largest reward and the reward model."""
    runs = results.runs
    trained = runs[~runs["run"].isin(BEFORE_ALIGNMENT)]
    methods = len(trained[["method", "form"]].drop_duplicates())
    sentences = [
        f"{len(trained)} runs of {methods} {'method' if methods == 1 else 'methods'} from one SFT policy, compared by "
        f"the {results.settings.reward_label} of their answers and by how far they moved from SFT.{_lost(runs)}",
        *leaked(results.inputs.comparisons),
    ]
    start = runs[runs["run"] == "sft"].to_dict("records")
    if start:
        sentences.append(f"SFT, where every run starts, has reward {_interval(start[0], 'reward')}.")
    if len(trained):
        sentences.append(_best(trained))
    if "after training" in results.accuracies:
        after, before = (results.accuracies[f"{when} training"] for when in ("after", "before"))
        sentences.append(
            f"The reward model ranks {_interval(after, 'accuracy')} of held-out pairs right, "
            f"{before['accuracy']:.2f} before its training."
        )
    return sentences


def _lost(runs: pd.DataFrame) -> str:
    """Say how many rows were dropped before training, if these are many."""
    known = runs.dropna(subset=["rows_used", "rows_dropped"]) if "rows_used" in runs else runs.iloc[:0]
    if known.empty:
        return ""
    used, dropped = (int(known[name].iloc[0]) for name in ("rows_used", "rows_dropped"))
    share = dropped / max(used + dropped, 1)
    return f" {share:.0%} of the rows for training were dropped, for the reasons below." if share >= MANY else ""


def _best(trained: pd.DataFrame) -> str:
    """Say which setting has the largest mean reward over its seeds."""
    group = trained.groupby("group", sort=False)["reward"].mean().idxmax()
    seeds = trained[trained["group"] == group]
    first = seeds.to_dict("records")[0]
    name = " ".join(filter(None, [title(first["method"]), first["label"]]))
    if len(seeds) == 1:
        return (
            f"The largest reward is that of {name}: {_interval(first, 'reward')} at {first['kl']:.1f} nats from SFT "
            f"({ONE_SEED}). It was picked among the settings by this number."
        )
    return (
        f"The largest mean reward is that of {name}: {seeds['reward'].mean():.2f} over {len(seeds)} seeds, which range "
        f"from {seeds['reward'].min():.2f} to {seeds['reward'].max():.2f}, at {seeds['kl'].mean():.1f} nats from SFT. "
        "It was picked among the settings by this number."
    )


def _interval(values: Mapping[str, Any], name: str) -> str:
    mean = values[name]
    low, high = values[f"{name}_low"], values[f"{name}_high"]
    return f"{mean:.2f}" if pd.isna(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def origin(journal: Path) -> str:
    """Say which command and commit made the page, as far as they are known.

    Args:
        journal: the report job's journal, in the folder `.journal` of the suite's results.
    """
    files = _json(journal.parent.parent / ".suite.json")
    with journal.open(encoding="utf-8") as stream:
        commit = json.loads(stream.readline()).get("git")
    by = f"Made by `snakemake --configfile {' '.join(files)}`" if files else "Made"
    if not commit:
        return f"{by}, outside a git repository, so no commit is known."
    digits, _, changed = re.fullmatch(r"(\w+?)(-(dirty))?", commit).groups()  # type: ignore[union-attr]
    return f"{by} at commit {digits[:12]}{', with changes that are not committed' if changed else ''}."


def _json(path: Path) -> Sequence[str]:
    try:
        values: Sequence[str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return values
