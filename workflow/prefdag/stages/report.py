"""report: every figure, the table of runs and one page that shows them.

INPUTS   scores, judges, generations and curves of every policy, the comparisons, the SFT policy's tokenizer,
         the reward model if there is one; of an exact suite the minima of every loss, and nothing else
OUTPUTS  index.html (opens by itself), runs.csv, calibration.csv, figures/<name>.png and .svg
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from prefdag.config.expected import Expected
from prefdag.config.report import Report
from prefdag.config.section import Section
from prefdag.errors import UserError
from prefdag.exact_report import TEMPLATE, exact_report
from prefdag.figures import rendered
from prefdag.figures_distributions import lengths, reward_accuracy, reward_boxes, reward_histograms
from prefdag.figures_frontier import frontier
from prefdag.figures_league import frontiers, league_figure
from prefdag.figures_training import logratios, training
from prefdag.league import league, seconds_per_step
from prefdag.page import page
from prefdag.published import published_rows
from prefdag.reward_report import SECTION, Results, calibration_table, reward_report
from prefdag.stage import Workspace
from prefdag.store import Store
from prefdag.tables import compared, runs_csv, runs_table, seeds_table, title

MANY = 12  # methods that one figure can hold


class Run(Section):
    """One preference run, as the report names it."""

    name: str
    method: str
    seed: int
    objective: dict[str, Any]


class Job(Section):
    """The keys of `--config`."""

    report: Report
    suite: str
    runs: tuple[Run, ...]
    left_out: dict[str, str] = Field({}, description="losses that an exact suite cannot hold, and why")
    expected: tuple[Expected, ...] = ()


def run(
    job: Job,
    here: Workspace,
    *,
    scores: list[Path],
    judges: list[Path],
    generations: list[Path],
    preferences: list[Path],
    comparisons: Path | None = None,
    reward: Path | None = None,
    policy: Path | None = None,
    exact: list[Path],
) -> dict:
    """Read what the other stages wrote, draw it, and write the page. Equal inputs give equal bytes.

    policy: SFT's manifest; by its tokenizer the comparisons are shown as text.
    """
    if exact:
        return _of_exact(job, here, exact)
    if comparisons is None:
        raise UserError(
            "report --comparisons: give the manifest of the comparisons, or --exact those of an exact suite"
        )
    tables = {path.parent.name: pd.read_csv(path.parent / "scores.csv") for path in scores}
    sizes = {name: (table["prompt_id"].nunique(), len(table)) for name, table in tables.items()}
    runs = runs_table([row.model_dump() for row in job.runs], _summaries(scores), _summaries(judges), sizes)
    curves = {path.parent.name: pd.read_csv(path.parent / "curves.csv") for path in preferences}
    shown = ["sft", *compared(runs, job.report.compare)]
    accuracies = _accuracies(reward, scores, runs)
    drawn = _figures(job, runs, tables, curves, shown, comparisons, accuracies)
    ranks = _league(job, here, runs, tables, curves)
    if ranks is not None:
        sft = runs["reward"][runs["run"] == "sft"].iloc[0]
        drawn["league"] = league_figure(ranks, job.report.matched_kl, sft, job.report.reward_label)
    label = job.report.reward_label
    results = Results(runs, tables, curves, shown, scores, comparisons, reward, policy, label)
    further, told = reward_report(results, job.report.samples)
    if told["calibrations"]:
        _write(here, "calibration.csv", calibration_table(told).to_csv(index=False, lineterminator="\n"))
    images = _write_figures(here, drawn | further)
    _write(here, "runs.csv", runs_csv(runs).to_csv(index=False, lineterminator="\n"))
    content = page(
        images,
        suite=job.suite,
        rows=[_row(row) for row in runs.to_dict("records")],
        seeds=[{**row, "win_rate": _percent(row["win_rate"])} for row in seeds_table(runs)],
        published=published_rows(job.expected, runs, accuracies),
        curves=bool(curves),
        league=_league_rows(ranks, job.report.matched_kl),
        matched_kl=job.report.matched_kl,
        evaluation=_evaluation_rows(accuracies),
        reward_model=reward is not None,
        samples=_samples(generations, tables, runs, ["base", *shown], job.report.samples),
        num_prompts=_range(runs["num_prompts"]),
        num_generations=_range(runs["num_generations"]),
        sections=[SECTION],
        **told,
    )
    _write(here, "index.html", content)
    return {"policies": len(runs), "figures": sorted(images)}


def _of_exact(job: Job, here: Workspace, exact: list[Path]) -> dict:
    figures, tables, content = exact_report(exact)
    images = _write_figures(here, figures)
    for name, table in tables.items():
        _write(here, f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    _write(here, "index.html", page(images, TEMPLATE, suite=job.suite, left_out=job.left_out, **content))
    return {"settings": len(tables["points"]), "figures": sorted(images)}


def _summaries(manifests: list[Path]) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads((path.parent / "summary.json").read_text()) for path in manifests}


def _figures(
    job: Job,
    runs: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    curves: dict[str, pd.DataFrame],
    shown: list[str],
    comparisons: Path,
    accuracies: dict[str, Any],
) -> dict[str, Figure]:
    """Every figure that these inputs allow, by name."""
    display = dict(zip(runs["run"], runs["display"], strict=True))
    data = _data_lengths(comparisons)
    generated = {
        f"generated by {display[name]}": (tables[name]["length"].to_numpy(), tables[name]["prompt_id"].to_numpy())
        for name in shown
    }
    many = runs["method"].nunique() > MANY
    figures = {
        "frontier": (frontiers if many else frontier)(runs, job.report.reward_label),
        "lengths": lengths({**data, **generated}, len(data)),
    }
    if many:
        runs = runs[runs["method"].isin(set(runs["method"][runs["run"].isin(shown)]))]
        curves = {name: curve for name, curve in curves.items() if name in set(runs["run"])}
    if curves:
        figures |= {"logratios": logratios(curves, runs), "training": training(curves, runs)}
    if accuracies:
        figures["reward_accuracy"] = reward_accuracy(accuracies)
    if "trained" in tables["sft"]:
        two = {display[name]: tables[name][["prompt_id", "untrained", "trained"]] for name in shown[:2]}
        figures |= {"reward_histograms": reward_histograms(two), "reward_boxes": reward_boxes(two)}
    return figures


def _league(
    job: Job, here: Workspace, runs: pd.DataFrame, tables: dict[str, pd.DataFrame], curves: dict[str, pd.DataFrame]
) -> pd.DataFrame | None:
    """The league's table, written as league.csv, where the suite asks for one."""
    if not job.report.matched_kl or not curves:
        return None
    seconds = seconds_per_step(here.journal.path.parent) if job.report.step_times else None
    table = league(runs, tables, curves, job.report.matched_kl, seconds=seconds)
    _write(here, "league.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


def _league_rows(table: pd.DataFrame | None, matched: tuple[float, ...]) -> list[dict[str, Any]]:
    """The league as the page shows it: every mean with its interval, None for what no setting reached."""
    rows = []
    for row in table.to_dict("records") if table is not None else ():
        known = {key: None if pd.isna(value) else value for key, value in row.items()}
        names = [*(f"reward_at_{target:g}" for target in matched), "best_reward", "length_drift"]
        cells = {
            name: {"mean": known[name], "low": known[f"{name}_low"], "high": known[f"{name}_high"]} for name in names
        }
        rows.append({**known, **cells, "method": title(row["method"])})
    return rows


def _data_lengths(comparisons: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Counted tokens of the training split's responses, best first: name -> lengths [N], prompts [N]."""
    store = Store.open(comparisons.parent / "train")
    tokens = np.diff(np.asarray(store.offsets), axis=1)[:, 1:]
    names = (
        ["chosen", "rejected"] if store.num_responses == 2 else [f"rank {k + 1}" for k in range(store.num_responses)]
    )
    return {f"{name}, training data": (tokens[:, k], np.asarray(store.prompts)) for k, name in enumerate(names)}


def _write_figures(here: Workspace, figures: dict[str, Figure]) -> dict[str, bytes]:
    """figures/<name>.png and .svg; returns the PNGs."""
    (here.output / "figures").mkdir()
    images = {}
    for name, figure in figures.items():
        images[name], vectors = rendered(figure)
        (here.output / f"figures/{name}.svg").write_bytes(vectors)
        path = here.output / f"figures/{name}.png"
        path.write_bytes(images[name])
        here.journal.artifact(path, f"figures/{name}.png")
    return images


def _write(here: Workspace, name: str, text: str) -> None:
    path = here.output / name
    path.write_text(text, encoding="utf-8", newline="\n")
    here.journal.artifact(path, name)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """One line of the page's table of runs; what was not measured is None."""
    known = {key: None if pd.isna(value) else value for key, value in row.items()}
    entries = {
        metric: {"mean": known[metric], "low": known[f"{metric}_low"], "high": known[f"{metric}_high"]}
        for metric in ("reward", "kl", "length", "distinct2", "trained")
    }
    wins = _percent({"mean": known["win_rate"], "low": known["win_low"], "high": known["win_high"]})
    about = {"run": row["run"], "method": f"{title(row['method'])} {row['label']}".strip(), "seed": known["seed"]}
    return {**about, **entries, "win_rate": wins}


def _percent(entry: dict[str, float | None]) -> dict[str, float | None]:
    return {key: None if value is None else 100 * value for key, value in entry.items()}


def _range(counts: pd.Series) -> str:
    return str(counts.min()) if counts.nunique() == 1 else f"{counts.min()} to {counts.max()}"


def _accuracies(reward: Path | None, scores: list[Path], runs: pd.DataFrame) -> dict[str, Any]:
    """Held-out evaluations by what the page calls them: the reward model's, its heads', and the implicit rewards'."""
    found = json.loads((reward.parent / "evaluation.json").read_text()) if reward else {}
    named = {f"{name} training" if name in ("before", "after") else f"{name} alone": found[name] for name in found}
    display = dict(zip(runs["run"], runs["display"], strict=True))
    for path in scores:
        if (path.parent / "evaluation.json").exists():
            evaluation = json.loads((path.parent / "evaluation.json").read_text())
            named[f"implicit, {display[path.parent.name]}"] = evaluation["implicit"]
    return named


def _evaluation_rows(accuracies: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for which, entry in accuracies.items():
        low, high = entry["accuracy_low"], entry["accuracy_high"]
        accuracy = _percent({"mean": entry["accuracy"], "low": low, "high": high})
        rows.append({**entry, "which": which, "accuracy": accuracy})
    return rows


def _samples(
    generations: list[Path], tables: dict[str, pd.DataFrame], runs: pd.DataFrame, policies: list[str], number: int
) -> list[dict[str, Any]]:
    """The first sample of `number` evenly spaced prompts by every policy that has it, with its reward."""
    display = dict(zip(runs["run"], runs["display"], strict=True))
    folders = {path.parent.name: path.parent for path in generations}
    prompts = np.unique(tables["sft"]["prompt_id"])
    chosen = prompts[np.unique(np.linspace(0, len(prompts) - 1, min(number, len(prompts))).astype(int))]
    samples: dict[int, dict[str, Any]] = {
        prompt: {"prompt_id": int(prompt), "prompt": "", "answers": []} for prompt in chosen.tolist()
    }
    for policy in policies:
        if policy not in folders:
            continue
        rewards = tables[policy].set_index(["prompt_id", "sample"])["reward"]
        with (folders[policy] / "generations.jsonl").open(encoding="utf-8") as stream:
            for row in map(json.loads, stream):
                if row["sample"] == 0 and row["prompt_id"] in samples:
                    sample = samples[row["prompt_id"]]
                    sample["prompt"] = row["prompt"]
                    reward = float(rewards[row["prompt_id"], 0])
                    answer = {"policy": display[policy], "response": row["response"], "ended": row["ended"]}
                    sample["answers"].append({**answer, "reward": reward})
    return list(samples.values())
