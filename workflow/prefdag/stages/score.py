"""Rewards, divergence from the reference and text statistics of one policy's generations."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from prefdag.config.answer_sets import AnswerSet, weights_of
from prefdag.config.sections.ground_truths import GROUND_TRUTHS
from prefdag.config.sections.score import Score
from prefdag.config.user_paths import split_path
from prefdag.data.token_store import Comparison, Store
from prefdag.errors import UserError
from prefdag.evaluation.bootstrap import summarise
from prefdag.evaluation.spreadsheets import cell_of
from prefdag.models.loading import load_policy, set_up
from prefdag.models.logprobs import divergence
from prefdag.models.ops.device import autocast
from prefdag.models.repeats import iter_packed
from prefdag.provenance.manifest import read_manifest
from prefdag.rewards.adoption import load_any_reward
from prefdag.rewards.evaluation import Rewards, evaluation, score_all, write_evaluation, write_held_out
from prefdag.rewards.ground_truth import load_ground_truth
from prefdag.rewards.implicit import ImplicitReward
from prefdag.rewards.model import RewardModel, untrained_reward_model
from prefdag.rewards.user_function import user_function
from prefdag.runtime.stage import Workspace
from prefdag.schema import Count, Section

Columns = dict[str, list[float]]
Answer = Mapping[str, Any]
Metric = Callable[[Answer], float]
METRICS: dict[str, Metric] = {}
SHOWN = 100  # prompts in samples.csv


class Job(Section):
    score: Score
    checkpoint: Count | None = None
    user_reward: str | None = Field(
        None, pattern=r".+\.py:\w+", description="a user's function as file.py:function, in place of `score.reward`"
    )

    def user_files(self) -> tuple[Path, ...]:
        reward = () if self.user_reward is None else (split_path(self.user_reward)[0],)
        return (*reward, *self.score.user_files())


def run(
    job: Job,
    workspace: Workspace,
    *,
    generations: Path,
    reference: Path,
    implicit: list[Path],
    policy: Path | None = None,
    reward: Path | None = None,
    comparisons: Path | None = None,
    classifier: Path | None = None,
    variants: list[Path] | None = None,
) -> dict[str, Any]:
    """Score every generation; the summary has a mean with an interval over prompts for each column.

    Answers that no policy gave, `chosen`, have no divergence.
    """
    settings = job.score
    device = set_up(settings.threads)
    weights = weights_of(policy, job.checkpoint) if policy is not None else None
    if policy is not None and weights is not None:
        workspace.log_model_input(
            "policy", AnswerSet.parse(workspace.name or "policy").policy, str(weights.relative_to(policy.parent))
        )
    if classifier is not None:
        workspace.log_model_input("classifier", "classifier")
    _check_weights(reference, reward, implicit)
    lines = (generations.parent / "generations.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    samples = [Comparison(np.array(row["prompt_ids"]), (np.array(row["ids"]),)) for row in rows]
    columns: Columns = {}
    if job.user_reward is not None:
        columns["reward"] = _user_column(job.user_reward, rows)
    for truth in _truths(settings, classifier) if job.user_reward is None else ():
        texts = [row["prompt"] + row["response"] for row in rows]
        columns[truth] = load_ground_truth(truth, classifier, device)(texts).tolist()
    budget = settings.tokens_per_batch
    if reward is not None:
        trained = load_any_reward(reward.parent, device)
        columns["trained"] = _scored(trained, samples, budget, device)
        if isinstance(trained, RewardModel):
            untrained = untrained_reward_model(reference.parent / "model", reward.parent, device)
            columns["untrained"] = _scored(untrained, samples, budget, device)
    for path in variants or ():
        read_manifest(path).check_weights("")
        columns[f"trained_{path.parent.name}"] = _scored(load_any_reward(path.parent, device), samples, budget, device)
    for name, rewards in _implicit_rewards(settings.implicit, implicit, reference, device):
        columns[f"implicit_{name}"] = _scored(rewards, samples, budget, device)
        if comparisons is not None and name == workspace.name:
            held_out = Store.open(comparisons.parent / "test")
            if held_out.num_responses > 1:  # accuracy is of pairs
                _evaluate(workspace, rewards, held_out, budget, device)
    if job.user_reward is None:
        columns = {"reward": columns[settings.reward], **columns}
    if weights is not None:
        columns |= divergences(samples, weights, weights_of(reference), budget, device)
    columns |= {name: [function(row) for row in rows] for name, function in METRICS.items()}
    columns |= {split_path(named)[1]: _user_column(named, rows) for named in settings.metrics}
    _write_results(workspace, settings, rows, columns)
    return {"rows": len(rows)}


def _user_column(named: str, rows: Sequence[Answer]) -> list[float]:
    """Return what a user's function, `file.py:function`, gives each answer: finite numbers."""
    function = user_function(*split_path(named))
    values = function([row["prompt"] for row in rows], [row["response"] for row in rows])
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        first = rows[wrong[0]]
        raise UserError(
            f"{named.replace(':', ': ')} returned {values[wrong[0]]} for sample {first['sample']} of prompt "
            f"{first['prompt_id']} ({len(wrong)} of {len(values)} are not finite); return a finite number for each"
        )
    return values.tolist()


def _write_results(workspace: Workspace, settings: Score, rows: list[dict[str, Any]], columns: Columns) -> None:
    """Write scores.csv, summary.json and samples.csv, and journal the summary."""
    _write(workspace.output / "scores.csv", rows, columns)
    prompts = np.array([row["prompt_id"] for row in rows])
    summary = {
        name: summarise(
            np.array(values), prompts, seed=f"{settings.seed}/{name}", bootstrap=settings.bootstrap
        ).to_dict()
        for name, values in columns.items()
    }
    (workspace.output / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    workspace.results({f"{name}{part}": entry[key] for name, entry in summary.items() for part, key in _LOGGED})
    workspace.journal.artifact(workspace.output / "summary.json", "summary.json")
    _write_samples(workspace.output / "samples.csv", rows, columns)
    workspace.journal.artifact(workspace.output / "samples.csv", "samples.csv")


def _check_weights(reference: Path, reward: Path | None, implicit: Sequence[Path]) -> None:
    """Check the weights that score against their manifests; the journal records only the policy that is scored."""
    for path in (reference, *implicit):
        read_manifest(path).check_weights()
    if reward is not None:
        read_manifest(reward).check_weights("")


def _truths(settings: Score, classifier: Path | None) -> list[str]:
    """Return the ground-truth rewards to compute: the headline, and the classifier if the suite has one."""
    wanted = {settings.reward, "classifier"} if classifier else {settings.reward}
    return [name for name in GROUND_TRUTHS if name in wanted]


_LOGGED = (("", "mean"), ("_low", "low"), ("_high", "high"))


def _scored(
    rewards: Rewards, samples: Sequence[Comparison], tokens_per_batch: int, device: torch.device
) -> list[float]:
    return score_all(rewards, samples, tokens_per_batch, device)[:, 0].astype(float).tolist()


def _implicit_rewards(
    names: Sequence[str], runs: Sequence[Path], reference: Path, device: torch.device
) -> Iterator[tuple[str, ImplicitReward]]:
    """The implicit reward of each named run, one policy in memory at a time."""
    if [AnswerSet.parse(path.parent.name).policy for path in runs] != list(names):
        raise UserError(f"score --implicit: expected the manifests of {', '.join(names) or 'no run'}, in this order")
    if runs:
        model = load_policy(reference.parent / "model", device)
    for name, path in zip(names, runs, strict=True):
        yield name, ImplicitReward.of_run(read_manifest(path), model, device)


def _evaluate(
    workspace: Workspace, rewards: Rewards, held_out: Store, tokens_per_batch: int, device: torch.device
) -> None:
    """Evaluate the run's implicit reward on the held-out comparisons, as the stage `reward` does."""
    values = score_all(rewards, held_out, tokens_per_batch, device)
    facts = evaluation(values, np.asarray(held_out.prompts))
    write_evaluation(workspace.output / "evaluation.json", {"implicit": facts})
    write_held_out(workspace.output / "held_out.csv", held_out, {"implicit": values})
    workspace.results({f"implicit_{name}": value for name, value in facts.items()})
    workspace.journal.artifact(workspace.output / "evaluation.json", "evaluation.json")


def divergences(
    comparisons: Sequence[Comparison], policy: Path, reference: Path, tokens_per_batch: int, device: torch.device
) -> Columns:
    """Sequence KL(policy || reference), in nats, of each sample: the full-vocabulary sum, k1 and k3.

    k1 = sum log p/q and k3 = sum (q/p - 1 - log q/p) over a sample's tokens (Schulman 2020, Approximating KL
    divergence); all three are unbiased, the full sum has the least variance. Of the reference itself all are 0.
    """
    if policy == reference:
        return {name: [0.0] * len(comparisons) for name in ("kl", "k1", "k3")}
    policy_model, reference_model = (load_policy(path, device) for path in (policy, reference))
    sums = np.zeros((3, len(comparisons)))
    for ids, segments in iter_packed(comparisons, tokens_per_batch):
        with autocast(device):
            tokens = divergence(policy_model, reference_model, segments.to(device))
        k1 = (tokens.policy - tokens.reference).double()
        owner = segments.owner.numpy()
        for row, values in enumerate((tokens.kl.double(), k1, torch.expm1(-k1) + k1)):
            sums[row, ids] = np.bincount(owner, weights=values.cpu().numpy(), minlength=len(ids))
    return {name: values.tolist() for name, values in zip(("kl", "k1", "k3"), sums, strict=True)}


def metric(function: Metric) -> Metric:
    """Register a function of one answer, a line of generations.jsonl, as a column of scores.csv under its name."""
    METRICS[function.__name__] = function
    return function


@metric
def length(answer: Answer) -> float:
    """Return the number of counted tokens."""
    return float(len(answer["ids"]))


@metric
def ended(answer: Answer) -> float:
    """Return 1 if the policy ended its turn, 0 if the answer was cut at the token limit."""
    return float(answer["ended"])


@metric
def distinct1(answer: Answer) -> float:
    """Return the share of distinct tokens."""
    return distinct(answer["ids"], 1)


@metric
def distinct2(answer: Answer) -> float:
    """Return the share of distinct pairs of adjacent tokens."""
    return distinct(answer["ids"], 2)


@metric
def repetition(answer: Answer) -> float:
    """Return 1 - the share of distinct 4-grams of tokens; 0 if there are none.

    Reference: Welleck et al. 2020, seq-rep-4.
    """
    return 1 - distinct(answer["ids"], 4)


def distinct(ids: Sequence[int], n: int) -> float:
    """Return the number of distinct n-grams of tokens as a share of all; 1 if there are none.

    Reference: Li et al. 2016, distinct-n.
    """
    grams = [tuple(ids[begin : begin + n]) for begin in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _write_samples(path: Path, rows: list[dict[str, Any]], columns: Columns) -> None:
    """A table to read: the first sample of the first prompts, with what it scored."""
    first = [index for index, row in enumerate(rows) if row["sample"] == 0][:SHOWN]
    shown = [name for name in ("reward", "kl", "length") if name in columns]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt_id", "prompt", "response", *shown])
        for index in first:
            row = rows[index]
            numbers = [f"{columns[name][index]:.4g}" for name in shown]
            writer.writerow([row["prompt_id"], cell_of(row["prompt"]), cell_of(row["response"]), *numbers])


def _write(path: Path, rows: list[dict[str, Any]], columns: Columns) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt_id", "sample", *columns])
        for index, row in enumerate(rows):
            writer.writerow([row["prompt_id"], row["sample"], *(values[index] for values in columns.values())])
