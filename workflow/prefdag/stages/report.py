"""Draw every figure, write the tables, and one page that shows them.

INPUTS   scores and judgements of every set of answers, generations and curves of every policy, the comparisons, the SFT
         policy's tokenizer, the reward model and Best-of-N if there are such; of an exact suite the minima of every
         loss, and nothing else
OUTPUTS  index.html (opens by itself), runs.csv, answers.csv where there are more sets of answers than policies,
         calibration.csv, attainable.csv with a pool, candidates.csv with `select`,
         reward_sets.csv with `evaluate_reward`, proxy_gold.csv with `report.gold`, figures/<name>.png and .svg
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from prefdag.config.answer_sets import AnswerSet
from prefdag.config.sections.report import Expected, Report
from prefdag.errors import UserError
from prefdag.provenance.manifest import Manifest, read_manifest, read_training
from prefdag.reporting.figures.reward_models import FIGURES
from prefdag.reporting.figures.style import save_figure
from prefdag.reporting.load import Inputs, SuiteResults, load_results
from prefdag.reporting.page import render_page
from prefdag.reporting.sections.exact import EXACT_FIGURES, TEMPLATE, exact_content, load_exact
from prefdag.reporting.sections.overview import answers_content, overview
from prefdag.reporting.sections.reward_sets import reward_content
from prefdag.reporting.sections.summary import origin, summary
from prefdag.reporting.tables import calibration_csv, runs_csv
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section


class Run(Section):
    """One preference run, as the report names it."""

    name: str
    method: str
    seed: int
    objective: dict[str, Any]
    preference: dict[str, Any] = Field({}, description="settings that its training must have had")
    optimum: str | None = Field(None, description="what it converges to, if it is trained on its own samples")
    labelled_by: tuple[str, ...] = Field((), description="further stages that label the samples of its rounds")


class Answers(Section):
    """One set of answers, with its sampling settings unless it is the chosen responses."""

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
    choices: list[Path],
    reward_sets: list[Path],
    reward_variants: list[Path] | None = None,
    hidden_map: Path | None = None,
) -> dict:
    """Draw the figures, write the tables and the page. Equal inputs give equal bytes at one commit.

    Args:
        scores, judges: manifests of every set of answers.
        generations, preferences: manifests of every policy, and of every run.
        comparisons: manifest of the comparisons.
        reward, best_of_n, reward_variants, hidden_map: manifests, if the suite has these stages.
        policy: manifest of SFT, whose tokenizer decodes the comparisons.
        choices: manifests of the rows that `select` chose; empty without the section.
        reward_sets: manifests of `evaluate_reward`, one for each set; empty without the section.
        exact: manifests of the stage `exact`; given for an exact suite, and then nothing else.
    """
    if exact:
        return _run_exact(job, workspace, exact)
    if comparisons is None:
        raise UserError(
            "report --comparisons: give the manifest of the comparisons, or --exact those of an exact suite"
        )
    if not job.answers:
        raise UserError("report --config: 'answers' is empty; name the sets of answers that --scores holds")
    _check_runs(job.runs, {path: read_training(path) for path in preferences})
    _check_lineage(scores, judges, preferences, policy)
    inputs = Inputs(scores, judges, generations, preferences, comparisons, reward, best_of_n, policy, choices)
    results = load_results(
        job.report,
        [row.model_dump(exclude={"preference", "optimum", "labelled_by"}) for row in job.runs],
        [row.model_dump() for row in job.answers],
        replace(inputs, reward_sets=reward_sets, reward_variants=reward_variants or (), hidden_map=hidden_map),
        workspace.journal.path.parent if job.report.step_times else None,
    )
    images = _write_figures(workspace, FIGURES.draw(results))
    _write_tables(workspace, _tables(results))
    content = {**overview(results, job.expected), **answers_content(results), **reward_content(results)}
    content["optima"] = _optima(job.runs)
    content["labelled_by"] = {row.name: row.labelled_by for row in job.runs}
    content |= {"summary": summary(results), "origin": origin(workspace.journal.path)}
    content |= {"doubts": _doubts(preferences)}
    _write(workspace, "index.html", render_page(FIGURES, images, suite=job.suite, **content))
    return {"policies": len(results.runs), "figures": sorted(images)}


def _check_runs(runs: Sequence[Run], trained: Mapping[Path, Manifest]) -> None:
    """Raise `UserError` if a run was trained with other settings than the suite's.

    By hand, a report may be made of some runs only.
    """
    rows = {row.name: row for row in runs}
    for path, manifest in trained.items():
        row = rows.get(AnswerSet.parse(path.parent.name).policy)
        if row is None:
            raise UserError(f"report --preferences: {path}: no run of this suite; leave it out")
        expected = {"preference": row.preference, "objective": row.objective}
        for section, values in expected.items():
            config = manifest.content.get("config", {})
            made = config.get(section) or config.get("online", {})  # the settings of an on-policy run
            for key, value in values.items():
                if made.get(key, value) != value:
                    raise UserError(
                        f"{path}: trained with {section}.{key} {made[key]}, where the suite states {value}; "
                        "run `snakemake` to train it again"
                    )


def _optima(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the names of the runs that converge to the same."""
    names: dict[str, list[str]] = {}
    for run in runs:
        if run.optimum is not None:
            names.setdefault(run.optimum, []).append(run.name)
    return names


def _doubts(trained: Sequence[Path]) -> dict[str, list[str]]:
    """Return what each on-policy training says of itself that makes it doubtful, by its name."""
    facts = {path.parent.name: read_training(path).content.get("facts") or {} for path in trained}
    return {name: values["doubts"] for name, values in facts.items() if values.get("doubts")}


def _check_lineage(
    scores: Sequence[Path], judges: Sequence[Path], preferences: Sequence[Path], policy: Path | None
) -> None:
    """Raise `UserError` if a result was made from other results than those that the report reads."""
    sft = [policy] if policy else []
    trained = {path.parent.name: path for path in [*preferences, *sft]}
    expected = [
        *((path, "policy", [*sft, *_round_before(path, trained)]) for path in preferences if sft),
        *((path, "start", _round_before(path, trained)) for path in preferences),
        *((path, "reference", sft) for path in scores),
        *((path, option, scores) for path in judges for option in ("scores", "against")),
        *((path, "policy", _trainings_of(path, trained)) for path in scores),
    ]
    digests = {path: read_manifest(path).sha256 for path in {*scores, *trained.values()}}
    for path, option, allowed in expected:
        made_from = read_manifest(path).content.get("inputs", {}).get(option)
        if allowed and made_from is not None and made_from not in [digests[one] for one in allowed]:
            where = allowed[0] if len(allowed) == 1 or option == "policy" else "the report's --scores"
            raise UserError(f"{path}: its {option} was not {where}, as it is now; run `snakemake` to make it again")


def _round_before(training: Path, trained: Mapping[str, Path]) -> list[Path]:
    """Return the training of the round before that of a run with rounds."""
    one = AnswerSet.parse(training.parent.name)
    name = str(AnswerSet(one.policy, round=(one.round or 0) - 1))
    return [trained[name]] if name in trained else []


def _trainings_of(answers: Path, trained: Mapping[str, Path]) -> list[Path]:
    """Return the training that made the answering policy; of a checkpoint in a run with rounds, all of them."""
    one = AnswerSet.parse(answers.parent.name)
    exact = str(AnswerSet(one.policy, round=one.round))
    rounds = [path for name, path in trained.items() if AnswerSet.parse(name).policy == one.policy]
    return [trained[exact]] if exact in trained else rounds[-1:] if one.step is None else rounds


def _run_exact(job: Job, workspace: Workspace, manifests: list[Path]) -> dict:
    results = load_exact(manifests)
    images = _write_figures(workspace, EXACT_FIGURES.draw(results))
    _write_tables(workspace, vars(results))
    content = {"suite": job.suite, "left_out": job.left_out, **exact_content(results)}
    content["origin"] = origin(workspace.journal.path)
    _write(workspace, "index.html", render_page(EXACT_FIGURES, images, TEMPLATE, **content))
    return {"settings": len(results.points), "figures": sorted(images)}


def _tables(results: SuiteResults) -> dict[str, pd.DataFrame]:
    """Return the tables by file name; those of what a suite does not have are left out."""
    tables = {"runs": runs_csv(results.runs)}
    if results.calibrations:
        tables["calibration"] = calibration_csv(results.calibrations)
    if results.league is not None:
        tables["league"] = results.league
    if results.candidates is not None:
        tables["candidates"] = results.candidates
    if results.proxy_gold is not None:
        tables["proxy_gold"] = results.proxy_gold
    if results.reward_sets:
        tables["reward_sets"] = pd.concat(results.reward_sets.values(), ignore_index=True)
    if results.attainable is not None:
        tables["attainable"] = results.attainable
    if len(results.further_answers):
        tables["answers"] = results.answers.drop(columns="group")
    return tables


def _write_figures(workspace: Workspace, figures: dict[str, Figure]) -> dict[str, bytes]:
    """Write figures/<name>.png and .svg; return the PNGs."""
    (workspace.output / "figures").mkdir()
    images = {}
    for name, figure in figures.items():
        png, svg = save_figure(figure)
        for kind, content in (("png", png), ("svg", svg)):
            path = workspace.output / f"figures/{name}.{kind}"
            path.write_bytes(content)
            workspace.journal.artifact(path, f"figures/{name}.{kind}")
        images[name] = png
    return images


def _write_tables(workspace: Workspace, tables: dict[str, pd.DataFrame]) -> None:
    for name, table in tables.items():
        _write(workspace, f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))


def _write(workspace: Workspace, name: str, text: str) -> None:
    path = workspace.output / name
    path.write_text(text, encoding="utf-8", newline="\n")
    workspace.journal.artifact(path, name)
