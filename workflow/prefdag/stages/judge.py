"""Judge which of two sets of answers is better, row by row, by rewards, by a language model or by people.

INPUTS   scores of a policy and of the answers it is held against; where models or people judge, the answers of both
OUTPUTS  verdicts.csv (one row a judge and a generation), summary.json (win rates with their intervals, what length and
         order do to them, agreement between judges), answers.jsonl (replies of models)
"""

import csv
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefdag.config.sections.judge import LLM, Judge, People, name_of
from prefdag.errors import UserError
from prefdag.evaluation.judge.lost import count_lost, lost_answers
from prefdag.evaluation.judge.run import FOLDER, Pair, Questions, Verdict, pairs_of
from prefdag.evaluation.judge.sheets import read_sheet
from prefdag.evaluation.scores import Key, Scores, match_rows, read_scores
from prefdag.evaluation.win_rates import JudgedPairs, agreement, summarise_verdicts
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section

logger = logging.getLogger(__name__)
COLUMNS = ("prompt_id", "sample", "judge", "verdict", "reward", "against", "shown_first", "shown_second")
Rows = list[tuple[int, int]]  # of ours and of theirs


class Job(Section):
    """The keys of `--config`."""

    judge: Judge


def run(
    job: Job,
    workspace: Workspace,
    *,
    scores: Path,
    against: Path,
    generations: Path | None = None,
    against_generations: Path | None = None,
) -> dict[str, Any]:
    """Hold every answer of `scores` against that of `against` to the same prompt, by every judge of the job."""
    settings = job.judge
    ours, theirs = read_scores(scores.parent), read_scores(against.parent)
    rows = match_rows(ours, theirs, more=settings.against == "chosen")
    pairs = _pairs(settings, ours, theirs, rows, generations, against_generations)
    sheets = {sheet.name: np.array(read_sheet(Path(sheet.people), pairs)) for sheet in settings.sheets}
    opinions = _opinions(settings, workspace, pairs)
    judged, table = [], []
    for judge in settings.judges:
        name = name_of(judge)
        judged_pairs, cells = _judged(judge, ours, theirs, rows, opinions.get(name), sheets.get(name))
        judged.append(judged_pairs)
        table += [[*ours.keys[row], name, *cell] for (row, _), cell in zip(rows, zip(*cells, strict=True), strict=True)]
    _write_verdicts(workspace.output / "verdicts.csv", table)
    if opinions:
        _write_answers(workspace.output / "answers.jsonl", [ours.keys[row] for row, _ in rows], opinions)
    summary = _summary(settings, judged, opinions)
    for name, verdicts in opinions.items():
        for line in lost_answers(name, [ours.keys[row] for row, _ in rows], verdicts):
            logger.warning(line)
    (workspace.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    workspace.journal.metrics(None, _logged(summary))  # of the whole job: it has no steps
    return summary


def verdict(ours: float, theirs: float) -> float:
    """1 for the higher reward, 0 for the lower, 0.5 for equal ones. It has no order to be biased by."""
    return 0.5 * (1 + (ours > theirs) - (ours < theirs))


def _judged(
    judge: str | LLM | People,
    ours: Scores,
    theirs: Scores,
    rows: Rows,
    opinions: list[Verdict] | None,
    sheet: np.ndarray | None,
) -> tuple[JudgedPairs, tuple[list[str], ...]]:
    """One judge's verdicts, and the cells of its rows in verdicts.csv after the judge's name."""
    keys = [ours.keys[row] for row, _ in rows]
    lengths, orders = None, None
    if "length" in ours.columns and "length" in theirs.columns:
        sides = ours.column("length")[[row for row, _ in rows]], theirs.column("length")[[row for _, row in rows]]
        lengths = sides
    blank = [""] * len(rows)
    if opinions is not None:
        orders = np.array([one.shown_first for one in opinions]), np.array([one.shown_second for one in opinions])
        verdicts = (orders[0] + orders[1]) / 2  # who goes with the order ties; nan where either cannot be read
        cells = (_cells(verdicts), blank, blank, _cells(orders[0]), _cells(orders[1]))
    elif sheet is not None:
        verdicts, cells = sheet, (_cells(sheet), blank, blank, blank, blank)
    else:
        assert isinstance(judge, str)
        mine, others = ours.column(judge), theirs.column(judge)
        verdicts = np.array([verdict(mine[row], others[other]) for row, other in rows])
        rewards = [repr(float(mine[row])) for row, _ in rows], [repr(float(others[row])) for _, row in rows]
        cells = (_cells(verdicts), *rewards, blank, blank)
    prompts = np.array([prompt for prompt, _ in keys])
    return JudgedPairs(name_of(judge), list(keys), verdicts, prompts, lengths=lengths, orders=orders), cells


def _cells(values: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:g}" for value in values]


def _pairs(
    settings: Judge, ours: Scores, theirs: Scores, rows: Rows, generations: Path | None, against: Path | None
) -> list[Pair]:
    """The answers of every row, where a judge reads them."""
    if not settings.reads_answers:
        return []
    if generations is None or against is None:
        raise UserError("judge: models and people read answers: give --generations and --against_generations")
    keys = [(ours.keys[row], theirs.keys[other]) for row, other in rows]
    return pairs_of(generations.parent, against.parent, keys)


def _opinions(settings: Judge, workspace: Workspace, pairs: list[Pair]) -> dict[str, list[Verdict]]:
    """Return each model's verdicts of every pair. All limits are checked before the first request."""
    all_questions = [Questions(judge, pairs, workspace.journal.root / FOLDER) for judge in settings.models]
    endpoints = [questions.endpoint() for questions in all_questions]
    for questions, endpoint in zip(all_questions, endpoints, strict=True):
        if endpoint is not None:
            questions.ask(endpoint, workspace.name or "all")
    return {name_of(questions.judge): questions.verdicts() for questions in all_questions}


def _summary(settings: Judge, judged: Sequence[JudgedPairs], opinions: dict[str, list[Verdict]]) -> dict[str, Any]:
    """The headline judge's win rate; with several judges each one's under `judges`, and how far they agree."""
    about = {"bootstrap": settings.bootstrap}
    by_judge = {}
    for one in judged:
        by_judge[one.judge] = summarise_verdicts(one, seed=f"judge {settings.seed}", bootstrap=settings.bootstrap)
        if one.judge in opinions:
            by_judge[one.judge] |= count_lost(opinions[one.judge])
    summary = {**by_judge[judged[0].judge], "judge": judged[0].judge, "held_against": settings.against}
    if len(judged) > 1:
        pairs = itertools.combinations(judged, 2)
        agreed = [agreement(one, other, seed=f"judge {settings.seed}", **about) for one, other in pairs]
        summary |= {"judges": by_judge, "agreement": agreed}
    return summary


def _logged(summary: dict[str, Any]) -> dict[str, float]:
    """What the tracker shows: the headline's numbers, and `<judge>_<number>` of the others."""
    named = {"": summary, **{f"{name}_": entry for name, entry in summary.get("judges", {}).items()}}
    named.pop(f"{summary['judge']}_", None)
    return {
        f"{prefix}{key}": value
        for prefix, entry in named.items()
        for key, value in entry.items()
        if isinstance(value, int | float)
    }


def _write_verdicts(path: Path, table: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([COLUMNS, *table])


def _write_answers(path: Path, keys: list[Key], opinions: dict[str, list[Verdict]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for name, verdicts in opinions.items():
            for (prompt, sample), one in zip(keys, verdicts, strict=True):
                row = {"prompt_id": prompt, "sample": sample, "judge": name}
                row |= {"ours_first": one.answers[0].text, "ours_second": one.answers[1].text}
                row |= {"ours_first_ended": one.answers[0].ended, "ours_second_ended": one.answers[1].ended}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
