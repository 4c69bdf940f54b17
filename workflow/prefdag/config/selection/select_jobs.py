"""The configs and inputs of the jobs that choose between candidates.

`choose/<row>` reads what the row's candidates reached on validation prompts and writes the choice. `selected/<run>`
links the chosen candidate's training, for each seed of the row; its readers record the manifest of that training, so a
choice that stays the same reruns none of them.
"""

import re
from typing import Any

from prefdag.config.answer_sets import VALIDATION, AnswerSet
from prefdag.config.runs import Run
from prefdag.schema import Section

Inputs = dict[str, list[str]]
VALIDATION_NAME = re.compile(rf"{VALIDATION}(?:-step(\d+))?")


def runs_of_row(suite: Any, row: str) -> list[Run]:
    """Return the runs of a selected row, one for each seed."""
    return [run for run in suite.runs if run.candidates and run.row == row]


def lengths_of(suite: Any, run: Run) -> list[int]:
    """Return the steps at which a candidate's training is measured with early stopping, its end the last; else none."""
    return [*run.preference.kept_steps, run.preference.max_steps or 0] if suite.select.early_stopping else []


def choose_config(suite: Any, row: str | None) -> dict[str, Any]:
    """Return the config of `choose`: the criterion, and the settings and lengths in the order of its inputs."""
    assert suite.select is not None
    runs = runs_of_row(suite, str(row))
    settings = [one.setting for one in runs[0].candidates]
    lengths = {"steps": steps} if (steps := lengths_of(suite, runs[0].candidates[0])) else {}
    about = {"num_seeds": len(runs), "seed": suite.score.seed, **lengths}
    return {"choice": suite.select.choice(), "settings": settings, **about}


def answers_of(suite: Any, run: Run) -> list[AnswerSet]:
    """Return a candidate's answers to validation prompts, one set for each length, that of its end the last.

    Their variants are `validation` and, of the checkpoint at step 20, `validation-step20`.
    """
    checkpoints = [AnswerSet(run.name, f"{VALIDATION}-step{step}") for step in lengths_of(suite, run)[:-1]]
    return [*checkpoints, AnswerSet(run.name, VALIDATION)]


def is_validation(suite: Any, answers: AnswerSet) -> bool:
    """Return whether a set answers validation prompts, by which `select` chooses."""
    return suite.select is not None and VALIDATION_NAME.fullmatch(answers.variant) is not None


def validation_step(suite: Any, answers: AnswerSet) -> int | None:
    """Return the step of the checkpoint that answers validation prompts; None of all other sets."""
    name = VALIDATION_NAME.fullmatch(answers.variant) if suite.select else None
    return int(name[1]) if name and name[1] else None


def choose_inputs(suite: Any, row: str, folders: dict[str, str]) -> Inputs:
    """Return what `choose` reads: of each setting, each length, each seed. folders: the candidates' trainings."""
    assert suite.select is not None
    by_setting = [*zip(*(run.candidates for run in runs_of_row(suite, row)), strict=True)]
    by_length = [each for seeds in by_setting for each in zip(*(answers_of(suite, one) for one in seeds), strict=True)]
    answers = [one for seeds in by_length for one in seeds]
    criterion = suite.select.criterion
    tried = [one.name for seeds in by_setting for one in seeds]
    return {
        "scores": [f"score/{one}" for one in answers],
        "start": [f"score/{AnswerSet('sft', VALIDATION)}"],
        "judges": [f"judge/{one}" for one in answers] if criterion == "win_rate" else [],
        "trainings": [folders[name] for name in tried] if criterion == "held_out_accuracy" else [],
    }


def validation_sets(suite: Any) -> list[AnswerSet]:
    """Return the sets of answers that candidates, and SFT, give to validation prompts."""
    tried = [each for run in suite.runs for one in run.candidates for each in answers_of(suite, one)]
    return [AnswerSet("sft", VALIDATION), *tried] if tried else []


def fixed(run: Run, settings: Section) -> dict[str, Any]:
    """Return the settings of a run's training that are known before `select` has chosen."""
    chosen = run.candidates[0].setting if run.candidates else {}
    return {key: value for key, value in settings.model_dump(mode="json").items() if key not in chosen}


PARTS = {"choose": choose_config, "selected": lambda suite, name: {}}
