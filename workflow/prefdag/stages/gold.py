"""Give some pairs of a round's samples a gold label, for the reward model of the round (D2PO).

INPUTS   generations, the samples of one round; the classifier if it is the ground truth
OUTPUTS  train/ (a token store of the labelled pairs), pairs.jsonl (the pairs as text), summary.json
"""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefdag.config.sections.gold import Gold
from prefdag.data.pair_laws import bradley_terry
from prefdag.data.token_store import StoreWriter
from prefdag.errors import UserError
from prefdag.evaluation.judge.run import FOLDER, Pair
from prefdag.evaluation.judge.samples import judge_pairs
from prefdag.models.loading import set_up
from prefdag.rewards.ground_truth import load_ground_truth
from prefdag.rewards.user_function import user_function
from prefdag.runtime.stage import Workspace
from prefdag.schema import Count, Section, Seed
from prefdag.seeds import generator

Row = dict[str, Any]  # a line of generations.jsonl
Samples = tuple[Row, Row]  # two of one prompt


class Job(Section):
    """The keys of `--config`."""

    gold: Gold
    seed: Seed
    round: Count
    threads: Count


def run(job: Job, workspace: Workspace, *, generations: Path, classifier: Path | None = None) -> dict[str, Any]:
    """Label the chosen pairs and write those with a preference.

    Args:
        job: how many pairs, what labels them, and what names the random streams.
        workspace: output folder and journal of the job.
        generations: manifest of the samples.
        classifier: manifest of the classifier, if it is the ground truth.

    Returns:
        Counts: pairs that were labelled, those with a preference, ties, and, of a judge, answers that cannot be read.

    Raises:
        UserError: no prompt has two finished samples that differ, or a gold score is not finite.
    """
    lines = (generations.parent / "generations.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [row for line in lines if line and (row := json.loads(line))["split"] == "train"]
    pairs = choose_pairs(rows, job)
    if not pairs:
        raise UserError(
            f"gold {workspace.name or ''}: no training prompt has two samples that differ and end within "
            "max_new_tokens; state more draws, a higher temperature or more max_new_tokens"
        )
    scores, lost = _gold_scores(job, pairs, workspace, classifier)
    facts = {"labelled": len(pairs), "pairs": 0, "tied": 0, **lost}
    with (
        (workspace.output / "pairs.jsonl").open("w", encoding="utf-8") as stream,
        StoreWriter(workspace.output / "train", num_responses=2, scored=True) as writer,
    ):
        for pair, values in zip(pairs, scores, strict=True):
            order = _order(pair, values, job)
            facts["tied"] += int(values[0] == values[1])
            if order is None:
                continue
            both, chosen_first = [pair[index] for index in order], [float(values[index]) for index in order]
            prompt, ids = both[0]["prompt_id"], [row["ids"] for row in both]
            writer.add(both[0]["prompt_ids"], ids, row=facts["pairs"], prompt=prompt, scores=chosen_first)
            line = {"prompt_id": prompt, "samples": [row["sample"] for row in both], "prompt": both[0]["prompt"]}
            line |= {"responses": [row["response"] for row in both], "scores": chosen_first}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            facts["pairs"] += 1
    if len(pairs) < job.gold.num_pairs:
        print(f"gold: {len(pairs)} pairs are all there are; gold_pairs is {job.gold.num_pairs}", flush=True)
    (workspace.output / "summary.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    workspace.journal.artifact(workspace.output / "summary.json", "summary.json")
    workspace.results(facts)
    return facts


def choose_pairs(rows: Sequence[Row], job: Job) -> list[Samples]:
    """Return the pairs to label: of random prompts, one of each before a second one of any.

    A prompt's finished samples, repeated responses left out, form disjoint random pairs. Its random numbers are named
    by seed, round and prompt, so a larger budget labels the pairs of a smaller one and more.

    Args:
        rows: the training samples, those of a prompt one after the other.
        job: the budget, seed and round.
    """
    offered: list[tuple[int, float, Samples]] = []
    for prompt, group in groupby(rows, key=lambda row: row["prompt_id"]):
        finished = {row["response"]: row for row in reversed([*group]) if row["ended"]}
        samples = sorted(finished.values(), key=lambda row: row["sample"])
        random = generator(job.seed, "gold", job.round, prompt)
        turn, order = random.random(), random.permutation(len(samples))
        pairs = zip(order[::2], order[1::2], strict=False)
        offered += [(number, turn, (samples[i], samples[j])) for number, (i, j) in enumerate(pairs)]
    offered.sort(key=lambda each: each[:2])
    return [pair for _, _, pair in offered[: job.gold.num_pairs]]


def _gold_scores(
    job: Job, pairs: Sequence[Samples], workspace: Workspace, classifier: Path | None
) -> tuple[NDArray[np.float64], dict[str, int]]:
    """Return the gold scores of each pair, [N, 2], and counts of a judge's answers that cannot be read.

    Of a judge these are how far it prefers each of the two: they sum to 1, and are NaN without a verdict.
    """
    both = [row for pair in pairs for row in pair]
    prompts, responses = [row["prompt"] for row in both], [row["response"] for row in both]
    if job.gold.judge is not None:
        shown = [Pair(one["prompt"], one["response"], other["response"]) for one, other in pairs]
        keys = [(one["prompt_id"], one["sample"]) for one, _ in pairs]
        folder, name = workspace.journal.root / FOLDER, f"gold-{workspace.name or 'all'}"
        preferred, _, lost = judge_pairs(job.gold.judge, shown, keys, folder, name)
        return np.stack([preferred, 1 - preferred], 1), lost
    if job.gold.user_function is not None:
        values = user_function(*job.gold.user_function)(prompts, responses)
    else:
        if classifier is not None:
            workspace.log_model_input("classifier", "classifier")
        truth = load_ground_truth(job.gold.by, classifier, set_up(job.threads))
        values = truth([prompt + response for prompt, response in zip(prompts, responses, strict=True)])
    for row, value in zip(both, values.tolist(), strict=True):
        if not np.isfinite(value):
            raise UserError(
                f"gold {workspace.name or ''}: prompt {row['prompt_id']} sample {row['sample']}: {job.gold.by} scored "
                f"{value}, which orders no pair; correct it, and the next run labels these samples again"
            )
    return values.reshape(-1, 2), {}


def _order(pair: Samples, scores: NDArray[np.float64], job: Job) -> tuple[int, int] | None:
    """Return which of two samples is chosen and which rejected; None for a tie or without a verdict."""
    if np.isnan(scores).any() or scores[0] == scores[1]:
        return None
    order = (0, 1) if scores[0] > scores[1] else (1, 0)
    if job.gold.labels == "hard":
        return order
    numbers = sorted(int(row["sample"]) for row in pair)
    random = generator(job.seed, "gold label", job.round, pair[0]["prompt_id"], *numbers)
    return bradley_terry(order, scores, random.random())
