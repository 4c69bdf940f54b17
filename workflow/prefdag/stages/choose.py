"""Choose the setting of a row that is best on validation prompts.

INPUTS   scores of the candidates' and of SFT's answers to validation prompts, judgements for a win rate, trainings for
         a held-out accuracy; of each setting, each length of training, each seed
OUTPUTS  choice.json: the chosen setting; candidates.csv: a row for each setting
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from prefdag.config.sections.select import Choice
from prefdag.errors import UserError
from prefdag.evaluation.candidates import by_prompt, held_out_accuracy, measured, reward_within, win_rates
from prefdag.evaluation.scores import read_scores
from prefdag.runtime.stage import Workspace
from prefdag.schema import Count, Section, Seed

FEW_PROMPTS = 30


class Job(Section):
    """The keys of `--config`."""

    choice: Choice
    settings: tuple[dict[str, Any], ...] = Field(min_length=1, description="of the candidates, in the inputs' order")
    steps: tuple[Count, ...] = Field((), description="lengths of each training that are candidates, its end the last")
    num_seeds: Count = 1
    seed: Seed = 0


def run(
    job: Job, workspace: Workspace, *, scores: list[Path], start: Path, judges: list[Path], trainings: list[Path]
) -> dict[str, Any]:
    """Measure every candidate, the mean over its seeds, and choose the largest; of equal ones the first."""
    settings = [{**one, **length} for one in job.settings for length in [{"steps": step} for step in job.steps] or [{}]]
    if len(scores) != len(settings) * job.num_seeds:
        raise UserError(f"choose --scores: {len(scores)} manifests, and the config has {len(settings)} candidates")
    origin = by_prompt(read_scores(start.parent))
    tables = np.array([by_prompt(read_scores(path.parent)) for path in scores])  # settings x seeds, [2, G] each
    if tables.shape[1:] != origin.shape:
        raise UserError(
            "choose --scores: the candidates and SFT answered other prompts; run `snakemake` to make them again"
        )
    tables = tables.reshape(len(settings), job.num_seeds, *origin.shape)
    values = {
        "reward_at_kl": lambda: reward_within(job.choice.kl or 0.0, tables, origin, job.seed),
        "win_rate": lambda: win_rates(judges, job.num_seeds, job.seed),
        "held_out_accuracy": lambda: held_out_accuracy(trainings, job.num_seeds),
    }[job.choice.criterion]()
    best = int(np.argmax(values[:, 0]))
    rows = [
        {**setting, job.choice.criterion: value, "low": low, "high": high, **measured(table), "chosen": index == best}
        for index, (setting, (value, low, high), table) in enumerate(zip(settings, values, tables, strict=True))
    ]
    if origin.shape[1] < FEW_PROMPTS:
        print(
            f"choose: {origin.shape[1]} validation prompts are few, and the choice may be noise; hold out "
            f"{FEW_PROMPTS} or more",
            file=sys.stderr,
        )
    sft_reward = float(origin[0].mean())
    if job.choice.criterion == "reward_at_kl" and rows[best]["reward"] <= sft_reward:
        print(
            f"choose: the chosen candidate has reward {rows[best]['reward']:.4g}, no more than SFT's {sft_reward:.4g}; "
            "try other values",
            file=sys.stderr,
        )
    path = workspace.output / "candidates.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    choice = {"candidate": best, "setting": settings[best], "candidates": len(rows), "seeds": job.num_seeds}
    if job.steps:
        step = job.steps[best % len(job.steps)]
        choice |= {"training": best // len(job.steps), "lengths": len(job.steps)}
        choice |= {"checkpoint": step} if step != job.steps[-1] else {}
    choice |= {
        **job.choice.model_dump(),
        "prompts": origin.shape[1],
        "value": float(values[best, 0]),
        "sft_reward": sft_reward,
    }
    (workspace.output / "choice.json").write_text(json.dumps(choice, indent=1, sort_keys=True) + "\n")
    for name in ("candidates.csv", "choice.json"):
        workspace.journal.artifact(workspace.output / name, name)
    workspace.results({f"chosen_{job.choice.criterion}": float(values[best, 0]), "candidates": len(rows)})
    return {"chosen": settings[best]}
