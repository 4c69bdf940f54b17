"""report: every figure, the table of runs and one page that shows them.

INPUTS   scores and judgements of every set of answers, generations and curves of every policy, the comparisons, the SFT
         policy's tokenizer, the reward model and Best-of-N if there are such; of an exact suite the minima of every
         loss, and nothing else
OUTPUTS  index.html (opens by itself), runs.csv, answers.csv where there are more sets of answers than policies,
         calibration.csv, figures/<name>.png and .svg
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from prefdag.config.report import Expected, Report
from prefdag.data.token_store import Store
from prefdag.errors import UserError
from prefdag.reporting.figures.distributions import lengths, reward_accuracy, reward_boxes, reward_histograms
from prefdag.reporting.figures.frontier import frontier
from prefdag.reporting.figures.league import frontiers, league_figure
from prefdag.reporting.figures.style import save_figure
from prefdag.reporting.figures.training import displacement, logratios, training
from prefdag.reporting.league import league, seconds_per_step
from prefdag.reporting.load import SuiteResults, load_results
from prefdag.reporting.page import render_page
from prefdag.reporting.rows import configs_of, evaluation_rows, league_rows, percent, run_row
from prefdag.reporting.sections.answers import answers_report
from prefdag.reporting.sections.exact import TEMPLATE, exact_report
from prefdag.reporting.sections.rewards import SECTION, Results, calibration_table, reward_report
from prefdag.reporting.seeds import published_rows, seeds_table
from prefdag.reporting.tables import checkpoints, compared, runs_csv
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section

MANY = 12  # methods that one figure can hold


class Run(Section):
    """One preference run, as the report names it."""

    name: str
    method: str
    seed: int
    objective: dict[str, Any]


class Answers(Section):
    """One set of answers, and how it was drawn if anybody drew it."""

    name: str
    prompts: str = "test"
    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None


class Job(Section):
    """The keys of `--config`."""

    report: Report
    suite: str
    runs: tuple[Run, ...]
    answers: tuple[Answers, ...] = ()
    left_out: dict[str, str] = Field({}, description="losses that an exact suite cannot hold, and why")
    expected: tuple[Expected, ...] = ()


def run(
    job: Job,
    workspace: Workspace,
    *,
    scores: list[Path],
    judges: list[Path],
    generations: list[Path],
    preferences: list[Path],
    comparisons: Path | None = None,
    reward: Path | None = None,
    best_of_n: Path | None = None,
    policy: Path | None = None,
    exact: list[Path],
) -> dict:
    """Read what the other stages wrote, draw it, and write the page. Equal inputs give equal bytes.

    policy: SFT's manifest; by its tokenizer the comparisons are shown as text.
    """
    if exact:
        return _of_exact(job, workspace, exact)
    if comparisons is None:
        raise UserError(
            "report --comparisons: give the manifest of the comparisons, or --exact those of an exact suite"
        )
    if not job.answers:
        raise UserError("report --config: 'answers' is empty; name the sets of answers that --scores holds")
    found = load_results(
        [row.model_dump() for row in job.runs],
        [told.model_dump() for told in job.answers],
        scores=scores,
        judges=judges,
        preferences=preferences,
        reward=reward,
        best_of_n=best_of_n,
    )
    runs, tables, curves, accuracies = found.runs, found.tables, found.curves, found.accuracies
    shown = ["sft", *compared(runs, job.report.compare)]
    drawn = {"frontier": _frontier(job, found)} | _figures(runs, tables, curves, shown, comparisons, accuracies)
    ranks = _league(job, workspace, runs, tables, curves)
    if ranks is not None:
        sft = runs["reward"][runs["run"] == "sft"].iloc[0]
        drawn["league"] = league_figure(ranks, job.report.matched_kl, sft, job.report.reward_label)
    label = job.report.reward_label
    results = Results(runs, tables, curves, shown, found.scores, comparisons, reward, policy, label)
    of_rewards, told = reward_report(results, job.report.samples)
    if told["calibrations"]:
        _write(workspace, "calibration.csv", calibration_table(told).to_csv(index=False, lineterminator="\n"))
    of_answers, about_answers = answers_report(found)
    images = _write_figures(workspace, drawn | of_rewards | of_answers)
    _write(workspace, "runs.csv", runs_csv(runs).to_csv(index=False, lineterminator="\n"))
    if len(found.further_answers):
        _write(workspace, "answers.csv", found.answers.drop(columns="group").to_csv(index=False, lineterminator="\n"))
    more = {"sections": [SECTION], **told, **about_answers}
    samples = _samples(generations, tables, runs, ["base", *shown], job.report.samples)
    content = _content(job, found, images, ranks, preferences, reward is not None, {"samples": samples, **more})
    _write(workspace, "index.html", content)
    return {"policies": len(runs), "figures": sorted(images)}


def _content(
    job: Job,
    found: SuiteResults,
    images: dict[str, bytes],
    ranks: pd.DataFrame | None,
    preferences: list[Path],
    reward_model: bool,
    more: dict[str, Any],
) -> str:
    """The page: tables of runs, seeds, published numbers, league and reward model, and what further sections need."""
    runs = found.runs
    return render_page(
        images,
        suite=job.suite,
        rows=[run_row(row) for row in runs.to_dict("records")],
        configs=configs_of(preferences),
        seeds=[{**row, "win_rate": percent(row["win_rate"])} for row in seeds_table(runs, found.means)],
        published=published_rows(job.expected, runs, found.means, found.accuracies),
        curves=bool(found.curves),
        league=league_rows(ranks, job.report.matched_kl),
        matched_kl=job.report.matched_kl,
        evaluation=evaluation_rows(found.accuracies),
        reward_model=reward_model,
        num_prompts=_range(runs["num_prompts"]),
        num_generations=_range(runs["num_generations"]),
        **more,
    )


def _of_exact(job: Job, workspace: Workspace, exact: list[Path]) -> dict:
    figures, tables, content = exact_report(exact)
    images = _write_figures(workspace, figures)
    for name, table in tables.items():
        _write(workspace, f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    _write(workspace, "index.html", render_page(images, TEMPLATE, suite=job.suite, left_out=job.left_out, **content))
    return {"settings": len(tables["points"]), "figures": sorted(images)}


def _frontier(job: Job, found: SuiteResults) -> Figure:
    draw = frontiers if found.runs["method"].nunique() > MANY else frontier
    return draw(found.runs, job.report.reward_label, checkpoints(found.answers), found.pool)


def _figures(
    runs: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    curves: dict[str, pd.DataFrame],
    shown: list[str],
    comparisons: Path,
    accuracies: dict[str, Any],
) -> dict[str, Figure | None]:
    """Figures of lengths, training and rewards by name; None where there is nothing to draw."""
    display = dict(zip(runs["run"], runs["display"], strict=True))
    data = _data_lengths(comparisons)
    generated = {
        f"generated by {display[name]}": (tables[name]["length"].to_numpy(), tables[name]["prompt_id"].to_numpy())
        for name in shown
    }
    many = runs["method"].nunique() > MANY
    figures: dict[str, Figure | None] = {"lengths": lengths({**data, **generated}, len(data))}
    if curves:
        held_out = comparisons.parent / "validation"
        number = len(Store.open(held_out)) if held_out.is_dir() else 0
        figures |= {"logratios": logratios(curves, runs), "displacement": displacement(curves, runs, number)}
    if many:
        runs = runs[runs["method"].isin(set(runs["method"][runs["run"].isin(shown)]))]
        curves = {name: curve for name, curve in curves.items() if name in set(runs["run"])}
    if curves:
        figures["training"] = training(curves, runs)
    if accuracies:
        figures["reward_accuracy"] = reward_accuracy(accuracies)
    if "trained" in tables["sft"]:
        two = {display[name]: tables[name][["prompt_id", "untrained", "trained"]] for name in shown[:2]}
        figures |= {"reward_histograms": reward_histograms(two), "reward_boxes": reward_boxes(two)}
    return figures


def _league(
    job: Job, workspace: Workspace, runs: pd.DataFrame, tables: dict[str, pd.DataFrame], curves: dict[str, pd.DataFrame]
) -> pd.DataFrame | None:
    """The league's table, written as league.csv, where the suite asks for one."""
    if not job.report.matched_kl or not curves:
        return None
    seconds = seconds_per_step(workspace.journal.path.parent) if job.report.step_times else None
    table = league(runs, tables, curves, job.report.matched_kl, seconds=seconds)
    _write(workspace, "league.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


def _data_lengths(comparisons: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Counted tokens of the training split's responses, best first: name -> lengths [N], prompts [N]."""
    store = Store.open(comparisons.parent / "train")
    tokens = np.diff(np.asarray(store.offsets), axis=1)[:, 1:]
    names = (
        ["chosen", "rejected"] if store.num_responses == 2 else [f"rank {k + 1}" for k in range(store.num_responses)]
    )
    return {f"{name}, training data": (tokens[:, k], np.asarray(store.prompts)) for k, name in enumerate(names)}


def _write_figures(workspace: Workspace, figures: Mapping[str, Figure | None]) -> dict[str, bytes]:
    """figures/<name>.png and .svg of what was drawn; returns the PNGs."""
    (workspace.output / "figures").mkdir()
    images = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        made = save_figure(figure)
        for kind, content in zip(("png", "svg"), made, strict=True):
            path = workspace.output / f"figures/{name}.{kind}"
            path.write_bytes(content)
            workspace.journal.artifact(path, f"figures/{name}.{kind}")
        images[name] = made[0]
    return images


def _write(workspace: Workspace, name: str, text: str) -> None:
    path = workspace.output / name
    path.write_text(text, encoding="utf-8", newline="\n")
    workspace.journal.artifact(path, name)


def _range(counts: pd.Series) -> str:
    return str(counts.min()) if counts.nunique() == 1 else f"{counts.min()} to {counts.max()}"


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
