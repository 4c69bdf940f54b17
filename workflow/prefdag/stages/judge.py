"""judge: which of two policies answers a prompt better, row by row.

INPUTS   scores of a policy, scores of the policy it is held against
OUTPUTS  verdicts.csv (one row a generation), summary.json (the win rate with its interval over prompts)
"""

import csv
import json
import math
from pathlib import Path

from prefdag.config.judge import Judge
from prefdag.config.section import Section
from prefdag.errors import UserError
from prefdag.stage import Workspace
from prefdag.statistics import win_rate

Key = tuple[int, int]  # prompt_id, sample


class Job(Section):
    """The keys of `--config`."""

    judge: Judge


def run(job: Job, here: Workspace, *, scores: Path, against: Path) -> dict:
    """Hold the rewards of `scores` against those of `against`, matched by prompt and sample; equal rewards tie."""
    ours, theirs = _rewards(scores), _rewards(against)
    if ours.keys() != theirs.keys():
        lonely = min(ours.keys() ^ theirs.keys())
        raise UserError(
            f"{scores.parent}: prompt {lonely[0]} sample {lonely[1]} stands only on one side of the comparison with "
            f"{against.parent}; generate both policies with the same prompts and num_samples"
        )
    keys = sorted(ours)
    verdicts = [verdict(ours[key], theirs[key]) for key in keys]
    _write_verdicts(here.output / "verdicts.csv", keys, verdicts, ours, theirs)
    prompts = [prompt for prompt, _ in keys]
    rate = win_rate(verdicts, prompts, seed=f"judge {job.judge.seed}", bootstrap=job.judge.bootstrap).to_dict()
    (here.output / "summary.json").write_text(json.dumps(rate, indent=1) + "\n", encoding="utf-8")
    here.journal.metrics(None, rate)  # of the whole job: it has no steps
    return rate


def verdict(ours: float, theirs: float) -> float:
    """1 for the higher reward, 0 for the lower, 0.5 for equal ones. It has no order to be biased by."""
    return 0.5 * (1 + (ours > theirs) - (ours < theirs))


def _rewards(manifest: Path) -> dict[Key, float]:
    """The headline reward of every generation in the scores.csv beside `manifest`."""
    path = manifest.parent / "scores.csv"
    rewards: dict[Key, float] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            key = int(row["prompt_id"]), int(row["sample"])
            assert key not in rewards, f"{path}: prompt {key[0]} sample {key[1]} stands twice"
            rewards[key] = float(row["reward"])
            assert math.isfinite(rewards[key]), (
                f"{path}: prompt {key[0]} sample {key[1]}: {row['reward']} would pass as a tie"
            )
    return rewards


def _write_verdicts(
    path: Path, keys: list[Key], verdicts: list[float], ours: dict[Key, float], theirs: dict[Key, float]
) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["prompt_id", "sample", "verdict", "reward", "against"])
        for key, value in zip(keys, verdicts, strict=True):
            writer.writerow([*key, f"{value:g}", repr(ours[key]), repr(theirs[key])])
