"""Rows of the report's tables as the page shows them: every mean with its interval, None for what was not measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from prefdag.config.answer_sets import AnswerSet
from prefdag.provenance.manifest import read_training
from prefdag.reporting.league import DISPLACEMENT
from prefdag.reporting.tables import title

METRICS = ("reward", "kl", "length", "distinct2", "trained")


def run_row(row: Mapping[str, Any], further_metrics: Sequence[str] = ()) -> dict[str, Any]:
    """Return a line of the page's table of runs. further_metrics: columns that not every suite has."""
    known = {str(key): None if pd.isna(value) else value for key, value in row.items()}
    further = {name: _mean(known, name) for name in further_metrics}
    about = {"run": row["run"], "method": f"{title(row['method'])} {row['label']}".strip(), "seed": known["seed"]}
    gain = {key: known[f"reward_gain{end}"] for key, end in (("mean", ""), ("low", "_low"), ("high", "_high"))}
    if row["run"] == "sft":
        gain["mean"] = 0.0  # against itself, so without interval
    return {**about, **_measures(known), "gain": gain, "further": further}


def answers_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the table of further sets of answers."""
    known = {str(key): None if pd.isna(value) else value for key, value in row.items()}
    about = {key: known[key] for key in ("answers", "display", "temperature", "step")}
    return {**about, **_measures(known)}


def ood_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of the table of prompts of another distribution: win rates in percent, None if not measured."""
    known = {str(key): None if pd.isna(value) else value for key, value in row.items()}
    sides = {
        side: percent({end: known[f"{side}_{end}"] for end in ("mean", "low", "high")}) for side in ("test", "ood")
    }
    return {**known, **sides}


def _measures(known: Mapping[str, Any]) -> dict[str, Any]:
    entries = {metric: _mean(known, metric) for metric in METRICS}
    wins = percent({"mean": known["win_rate"], "low": known["win_low"], "high": known["win_high"]})
    return {**entries, "win_rate": wins}


def _mean(known: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"mean": known[name], "low": known[f"{name}_low"], "high": known[f"{name}_high"]}


def best_of_n_rows(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Best-of-N as the page shows it, a line a selector, a measure and an N."""
    rows = []
    for row in table.to_dict("records") if table is not None else ():
        known = {str(key): None if pd.isna(value) else value for key, value in row.items()}
        names = {"reward": ("mean", "low", "high"), "kl": ("kl", "kl_low", "kl_high")}
        cells = {
            name: dict(zip(("mean", "low", "high"), map(known.get, ends), strict=True)) for name, ends in names.items()
        }
        wins = percent({"mean": known["win_rate"], "low": known["win_low"], "high": known["win_high"]})
        rows.append({**known, **cells, "win_rate": wins})
    return rows


def configs_of(manifests: Sequence[Path]) -> dict[str, str]:
    """The config of each training as its manifest has it: run -> JSON; all rounds of a run have the same."""
    contents = {AnswerSet.parse(path.parent.name).policy: read_training(path).content for path in manifests}
    return {name: json.dumps(content.get("config", {}), indent=1, sort_keys=True) for name, content in contents.items()}


def stages_of(manifests: Sequence[Path]) -> dict[str, str]:
    """Return the stage that trained each run: `preference`, `policy` or `online`."""
    return {AnswerSet.parse(path.parent.name).policy: path.parent.parent.name for path in manifests}


def rounds_of(manifests: Sequence[Path]) -> dict[str, list[int]]:
    """Return the numbers of the rounds of each run that has some."""
    rounds: dict[str, list[int]] = {}
    for one in (AnswerSet.parse(path.parent.name) for path in manifests):
        if one.round is not None:
            rounds.setdefault(one.policy, []).append(one.round)
    return rounds


def percent(entry: dict[str, float | None]) -> dict[str, float | None]:
    return {key: None if value is None else 100 * value for key, value in entry.items()}


def reward_names(reward: Path | None) -> dict[str, str]:
    """Return what the page calls the columns of held_out.csv; a fetched reward model has no training.

    Args:
        reward: manifest of the reward model, if the suite has one.
    """
    if reward is not None and (reward.parent / "source.json").is_file():
        return {"after": "as fetched"}
    return {when: f"{when} training" for when in ("before", "after")}


def accuracies_of(reward: Path | None, scores: list[Path], runs: pd.DataFrame) -> dict[str, Any]:
    """Held-out evaluations by what the page calls them: the reward model's, its heads', and the implicit rewards'."""
    evaluations = json.loads((reward.parent / "evaluation.json").read_text()) if reward else {}
    names = reward_names(reward)
    named = {names.get(name, f"{name} alone"): evaluations[name] for name in evaluations}
    display = dict(zip(runs["run"], runs["display"], strict=True))
    for path in scores:
        if (path.parent / "evaluation.json").exists():
            evaluation = json.loads((path.parent / "evaluation.json").read_text())
            named[f"implicit, {display[path.parent.name]}"] = evaluation["implicit"]
    return named


def accuracies_of_variants(variants: Sequence[Path]) -> dict[str, Any]:
    """Held-out evaluations of further reward models, before and after their training."""
    named: dict[str, Any] = {}
    for path in variants:
        evaluations = json.loads((path.parent / "evaluation.json").read_text())
        named |= {f"{path.parent.name}, {when} training": evaluations[when] for when in ("before", "after")}
    return named


def evaluation_rows(accuracies: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for which, entry in accuracies.items():
        low, high = entry["accuracy_low"], entry["accuracy_high"]
        accuracy = percent({"mean": entry["accuracy"], "low": low, "high": high})
        rows.append({**entry, "which": which, "accuracy": accuracy})
    return rows


def league_rows(table: pd.DataFrame | None, matched: tuple[float, ...]) -> list[dict[str, Any]]:
    """The league as the page shows it: every mean with its interval, None for what no setting reached."""
    rows = []
    for row in table.to_dict("records") if table is not None else ():
        known = {key: None if pd.isna(value) else value for key, value in row.items()}
        names = [*(f"reward_at_{target:g}" for target in matched), "best_reward", "best_kl", "length_drift"]
        cells = {name: _mean(known, name) for name in (*names, *DISPLACEMENT)}
        fewest, most = row["fewest_seeds"], row["most_seeds"]
        seeds = f"{fewest} to {most} seeds" if fewest != most else f"{fewest} seed{'s' if fewest > 1 else ''}"
        rows.append({**known, **cells, "method": title(row["method"], row["form"]), "seeds": seeds})
    return rows


def win_label(summary: Mapping[str, Any]) -> str:
    """Return the label of a win rate's axis. summary: any judge/summary.json of the suite."""
    held = "the chosen responses" if summary.get("held_against") == "chosen" else "SFT"
    return f"win rate against {held}, judged by {summary.get('judge', 'reward')}"
