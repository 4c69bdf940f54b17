"""The reward model: SFT policy and comparisons to a scalar head, before and after training."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from prefdag.checkpoint import Checkpoint
from prefdag.config.reward import Reward
from prefdag.config.section import Section
from prefdag.curves import record
from prefdag.logprobs import margin
from prefdag.loop import Losses, Task, total_steps, train
from prefdag.models import load_scorer, save, set_up
from prefdag.rewards import (
    bradley_terry,
    evaluation,
    head_of_scorer,
    initial_head,
    rewards,
    score_all,
    write_evaluation,
)
from prefdag.segments import Segments
from prefdag.stage import Workspace
from prefdag.store import Store


class Job(Section):
    reward: Reward


def run(job: Job, here: Workspace, *, policy: Path, comparisons: Path) -> dict[str, Any]:
    """Train a Bradley-Terry reward model; accuracy, mean and deviation are those of the held-out pairs."""
    settings = job.reward
    device = set_up(settings.threads)
    here.reads_model("policy", "sft")
    here.reads_dataset("comparisons", "train", "training")
    here.reads_dataset("comparisons", "test", "evaluation")
    store, held_out = (Store.open(comparisons.parent / split) for split in ("train", "test"))
    model = load_scorer(policy.parent / "model", device)
    initial_head(model, settings.head_std, settings.seed)
    save_file({"score.weight": head_of_scorer(model).weight.detach().cpu().clone()}, here.output / "head.safetensors")
    before = score_all(model, held_out, settings.tokens_per_batch)

    def losses(ids: Sequence[int], segments: Segments) -> Losses:
        values = rewards(model, segments)
        gap = margin(values).detach()
        return bradley_terry(values), {"accuracy": (gap > 0) + 0.5 * (gap == 0), "margin": gap}

    steps = train(model.train(), store, settings, Task(losses, len), Checkpoint(here.resume))
    record(steps, total_steps(store, settings), here.journal, here.output / "curves.csv", "reward")
    after = score_all(model.eval(), held_out, settings.tokens_per_batch)
    save(model, policy.parent / "model", here.output / "model")
    _write_scores(here.output / "scores.csv", held_out, before, after)
    here.makes_model("reward", parents=["policy"])
    prompts = np.asarray(held_out.prompts)
    facts = {"before": evaluation(before, prompts), "after": evaluation(after, prompts)}
    write_evaluation(here.output / "evaluation.json", **facts)
    here.results({f"{name}_{when}": value for when, found in facts.items() for name, value in found.items()})
    here.journal.artifact(here.output / "evaluation.json", "evaluation.json")
    return facts


def _write_scores(path: Path, store: Store, before: np.ndarray, after: np.ndarray) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", "before_chosen", "before_rejected", "after_chosen", "after_rejected"])
        for index, row in enumerate(store.rows):
            writer.writerow([int(row), *map(float, before[index]), *map(float, after[index])])
