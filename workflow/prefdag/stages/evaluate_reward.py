"""Measure the reward model on a set of comparisons, by subset, by section of subsets and by length difference.

INPUTS   reward model, SFT policy, the suite's comparisons, fetched rows; the comparisons of a set with rows of its own
OUTPUTS  subsets.csv (accuracy before and after training, and of the SFT policy's log-probs, of each subset and
         section, with intervals over prompts), held_out.csv
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefdag.config.sections.evaluate_reward import Evaluation
from prefdag.data.subset_labels import check_sections, labels_of_store
from prefdag.data.token_store import Store
from prefdag.errors import UserError
from prefdag.evaluation.subsets import accuracy_by_section, accuracy_by_subset
from prefdag.models.loading import load_policy, set_up
from prefdag.models.logprobs import logprobs
from prefdag.models.packing import Segments
from prefdag.provenance.manifest import read_manifest
from prefdag.rewards.adoption import load_any_reward
from prefdag.rewards.evaluation import score_all, write_held_out
from prefdag.rewards.model import RewardModel, untrained_reward_model
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section

Scores = dict[str, NDArray[np.float32]]


class Job(Section):
    """The keys of `--config`."""

    evaluation: Evaluation


def run(
    job: Job,
    workspace: Workspace,
    *,
    reward: Path,
    policy: Path,
    comparisons: Path,
    rows: Path,
    evaluated: Path | None = None,
) -> dict[str, Any]:
    """Measure the accuracy of the reward model before and after its training on a set's comparisons.

    The order of chosen and rejected responses under the SFT policy, by summed and by mean log-prob, is measured alike.

    Args:
        job: the config.
        workspace: where to write, and the journal.
        reward: manifest of the reward model.
        policy: manifest of the SFT policy.
        comparisons: manifest of the suite's comparisons: the set itself, or what the reward model was trained on.
        rows: manifest of the fetched rows, which name the subsets.
        evaluated: manifest of the set's comparisons, if it has rows of its own.

    Returns:
        Accuracy after training, pairs, and the comparisons left out because their prompt was trained on.

    Raises:
        UserError: a row lacks a column of `subset`, a section names a subset of no comparison, or none is left.
    """
    read_manifest(reward).check_weights("")
    store = Store.open((evaluated or comparisons).parent / "test")
    new = ~_trained_on(store, Store.open(comparisons.parent / "train")) if evaluated else np.ones(len(store), bool)
    if not new.any():
        raise UserError(f"evaluate_reward.{workspace.name}: the reward model was trained on all of its prompts")
    key, named_by = f"evaluate_reward.{workspace.name}", _labelled_rows(rows, is_set=evaluated is not None)
    every_label = labels_of_store(job.evaluation.subset, named_by, store, key)
    labels = [one for one, is_new in zip(every_label, new, strict=True) if is_new]
    if notice := check_sections(job.evaluation.sections, labels, key):
        print(notice, flush=True)
    scores = _of_set(job, store, reward, policy) if evaluated else _of_test_split(reward, store)
    scores |= _of_reference(job, store, policy)
    write_held_out(workspace.output / "held_out.csv", store, scores)
    table = _table(job, store, new, labels, {name: values[new] for name, values in scores.items()})
    table.insert(0, "set", workspace.name)
    table.to_csv(workspace.output / "subsets.csv", index=False, lineterminator="\n")
    workspace.journal.artifact(workspace.output / "subsets.csv", "subsets.csv")
    after = table[table["reward"] == "after"].set_index("kind")
    accuracy = {"accuracy": float(after.loc["all", "accuracy"])}
    if job.evaluation.sections:
        accuracy["mean_of_sections"] = float(after.loc["overall", "accuracy"])
    workspace.results(accuracy)
    facts = {**accuracy, "pairs": int(after.loc["all", "pairs"]), "trained_on": int((~new).sum())}
    if facts["trained_on"]:
        print(f"evaluate_reward: {facts['trained_on']} comparisons left out: their prompts were trained on", flush=True)
    return facts


def _table(job: Job, store: Store, new: NDArray[np.bool_], labels: list[list[str]], scores: Scores) -> pd.DataFrame:
    """Return the accuracies of the comparisons that are `new`: of all, of sections, of subsets and by length."""
    prompts, ends = np.asarray(store.prompts)[new], np.asarray(store.offsets)
    table = accuracy_by_subset(scores, prompts, (ends[:, 2:] - ends[:, 1:-1])[new], labels)
    if not job.evaluation.sections:
        return table
    sections = accuracy_by_section(scores, prompts, labels, job.evaluation.sections)
    is_all = table["kind"] == "all"
    return pd.concat([table[is_all], sections, table[~is_all]], ignore_index=True)


def _of_test_split(reward: Path, store: Store) -> Scores:
    """Return the scores of the suite's test split, which the stage `reward` has written."""
    table = pd.read_csv(reward.parent / "held_out.csv")
    if table["row"].tolist() != np.asarray(store.rows).tolist():
        raise UserError(f"{reward.parent}/held_out.csv: of other comparisons than these; rerun `reward`")
    columns = {when: [f"{when}_chosen", f"{when}_rejected"] for when in ("before", "after")}
    return {when: table[names].to_numpy(np.float32) for when, names in columns.items() if set(names) <= set(table)}


def _of_set(job: Job, store: Store, reward: Path, policy: Path) -> Scores:
    """Score a set by the reward model before and after its training; a fetched one has no training."""
    settings = job.evaluation
    device = set_up(settings.threads)
    trained = load_any_reward(reward.parent, device)
    after = score_all(trained, store, settings.tokens_per_batch, device)
    if not isinstance(trained, RewardModel):
        return {"after": after}
    untrained = untrained_reward_model(policy.parent / "model", reward.parent, device)
    return {"before": score_all(untrained, store, settings.tokens_per_batch, device), "after": after}


def _of_reference(job: Job, store: Store, policy: Path) -> Scores:
    """Return the SFT policy's log-probs of the responses, [N, 2]: summed, and the mean over tokens."""
    budget, device = job.evaluation.tokens_per_batch, set_up(job.evaluation.threads)
    model = load_policy(policy.parent / "model", device)

    def total_and_mean(segments: Segments) -> Tensor:
        values = logprobs(model, segments)
        return torch.stack((values.total, values.mean), -1)

    scores = score_all(total_and_mean, store, budget, device)  # one pass for both
    return {"reference": scores[..., 0], "reference_mean": scores[..., 1]}


def _trained_on(store: Store, trained: Store) -> NDArray[np.bool_]:
    """Return which comparisons have a prompt of the training comparisons, token by token, [N]."""
    seen = {_digest(trained, index) for index in range(len(trained))}
    return np.array([_digest(store, index) in seen for index in range(len(store))])


def _digest(store: Store, index: int) -> bytes:
    """Return 16 bytes that stand for a comparison's prompt, so that memory does not grow with its length."""
    return hashlib.blake2b(store[index].prompt.tobytes(), digest_size=16).digest()


def _labelled_rows(rows: Path, *, is_set: bool) -> Path:
    """Return the file of the rows that the comparisons were made of."""
    path = rows.parent / "test.jsonl"
    return path if path.is_file() and not is_set else rows.parent / "train.jsonl"  # test may be held out of train
