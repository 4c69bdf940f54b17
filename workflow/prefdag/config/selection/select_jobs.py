"""The configs and inputs of the jobs that choose between candidates.

`choose/<row>` reads what the row's candidates reached on validation prompts and writes the choice. `selected/<run>`
links the chosen candidate's training, for each seed of the row; its readers record the manifest of that training, so a
choice that stays the same reruns none of them.
"""

from typing import Any

from prefdag.config.answer_sets import VALIDATION, AnswerSet
from prefdag.config.runs import Run
from prefdag.schema import Section

Inputs = dict[str, list[str]]


def runs_of_row(suite: Any, row: str) -> list[Run]:
    """Return the runs of a selected row, one for each seed."""
    return [run for run in suite.runs if run.candidates and run.row == row]


def choose_config(suite: Any, row: str | None) -> dict[str, Any]:
    """Return the config of `choose`: the criterion, and the settings of the candidates in the order of its inputs."""
    assert suite.select is not None
    runs = runs_of_row(suite, str(row))
    settings = [one.setting for one in runs[0].candidates]
    return {"choice": suite.select.choice(), "settings": settings, "num_seeds": len(runs), "seed": suite.score.seed}


def choose_inputs(suite: Any, row: str, folders: dict[str, str]) -> Inputs:
    """Return what `choose` reads: of each setting, each seed. folders: the trainings of the candidates."""
    assert suite.select is not None
    by_setting = zip(*(run.candidates for run in runs_of_row(suite, row)), strict=True)
    tried = [one.name for candidates in by_setting for one in candidates]
    answers = [AnswerSet(name, VALIDATION) for name in tried]
    criterion = suite.select.criterion
    return {
        "scores": [f"score/{one}" for one in answers],
        "start": [f"score/{AnswerSet('sft', VALIDATION)}"],
        "judges": [f"judge/{one}" for one in answers] if criterion == "win_rate" else [],
        "trainings": [folders[name] for name in tried] if criterion == "held_out_accuracy" else [],
    }


def validation_sets(suite: Any) -> list[AnswerSet]:
    """Return the sets of answers that candidates, and SFT, give to validation prompts."""
    tried = [AnswerSet(one.name, VALIDATION) for run in suite.runs for one in run.candidates]
    return [AnswerSet("sft", VALIDATION), *tried] if tried else []


def fixed(run: Run, settings: Section) -> dict[str, Any]:
    """Return the settings of a run's training that are known before `select` has chosen."""
    chosen = run.candidates[0].setting if run.candidates else {}
    return {key: value for key, value in settings.model_dump(mode="json").items() if key not in chosen}


PARTS = {"choose": choose_config, "selected": lambda suite, name: {}}
