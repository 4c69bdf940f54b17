"""Form pairs of a round's scored samples, as token stores that preference training reads.

INPUTS   generations, the samples of one round at prompts of training and validation, and their scores
OUTPUTS  train/ and validation/ (token stores), pairs.jsonl (the pairs as text), samples.csv, summary.json
"""

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefdag.config.sections.pairing import Pairing
from prefdag.data.pair_laws import Pair, best_of_n, bradley_terry, disjoint_pairs, rejection_sampled
from prefdag.data.token_store import StoreWriter
from prefdag.errors import UserError
from prefdag.evaluation.spreadsheets import cell_of
from prefdag.losses.pair_choice import choose_pair, margin_pairs
from prefdag.runtime.stage import Workspace
from prefdag.schema import Count, Section, Seed
from prefdag.seeds import generator

SPLITS = ("train", "validation")
SHOWN = 100  # pairs of samples.csv
Row = dict[str, Any]  # a line of generations.jsonl with its `score`


class Job(Section):
    """The keys of `--config`."""

    pairing: Pairing
    column: str
    seed: Seed
    round: Count


def run(job: Job, workspace: Workspace, *, generations: Path, scores: Path) -> dict[str, Any]:
    """Write the pairs of every prompt.

    Args:
        job: the law, the column of scores.csv that it reads, and what names its random streams.
        workspace: output folder and journal of the job.
        generations: manifest of the samples.
        scores: manifest of their scores.

    Returns:
        Counts by split: prompts, pairs, samples left out because they did not end, prompts with fewer than two samples,
        and prompts without a pair by the law, such as those of equal scores.

    Raises:
        UserError: a score is not finite, or no training prompt has a pair.
    """
    rows = _scored_rows(generations.parent / "generations.jsonl", scores.parent / "scores.csv", job.column)
    facts = {}
    with (workspace.output / "pairs.jsonl").open("w", encoding="utf-8") as stream:
        for split in SPLITS:
            of_split = [row for row in rows if row["split"] == split]
            with StoreWriter(workspace.output / split, num_responses=2, scored=True) as writer:
                facts[split] = _write_split(job, of_split, writer, stream)
            print(f"pairing: {split}: {facts[split]}", flush=True)
    _check_pairs(workspace.name, facts["train"])
    _write_samples(workspace.output)
    (workspace.output / "summary.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    for name in ("summary.json", "samples.csv"):
        workspace.journal.artifact(workspace.output / name, name)
    workspace.results({f"{split}_{name}": value for split in SPLITS for name, value in facts[split].items()})
    return facts


def _scored_rows(generations: Path, scores: Path, column: str) -> list[Row]:
    """Return the samples with their scores. Raises `UserError` if the files do not match or a score is not finite."""
    lines = generations.read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    with scores.open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    keys = [(int(line["prompt_id"]), int(line["sample"])) for line in table]
    if keys != [(row["prompt_id"], row["sample"]) for row in rows]:
        raise UserError(f"{scores}: its rows are not those of {generations}; rerun `score`")
    for row, line in zip(rows, table, strict=True):
        if not line[column]:  # a judge gave no verdict
            row["score"] = None
            continue
        row["score"] = float(line[column])
        if not np.isfinite(row["score"]):
            raise UserError(
                f"{scores}: prompt {row['prompt_id']} sample {row['sample']}: the reward is {line[column]}, which "
                "orders no pair; correct the reward, and the next run scores these samples again"
            )
    return rows


def _write_split(job: Job, rows: list[Row], writer: StoreWriter, stream: Any) -> dict[str, int]:
    """Write the pairs of one split to its store and as text, and return the counts."""
    counts = dict.fromkeys(("prompts", "pairs", "unfinished", "short", "tied"), 0)
    for prompt, group in groupby(rows, key=lambda row: row["prompt_id"]):
        samples = list(group)
        ended = [row for row in samples if row["ended"]]  # a reward would judge where the others were cut
        counts["prompts"] += 1
        counts["unfinished"] += len(samples) - len(ended)
        if unscored := sum(row["score"] is None for row in ended):
            counts["unscored"] = counts.get("unscored", 0) + unscored
            ended = [row for row in ended if row["score"] is not None]
        if len(ended) < (1 if job.pairing.law == "best_of_n" else 2):
            counts["short"] += 1
            continue
        pairs = list(choose_pairs(job, prompt, np.array([row["score"] for row in ended]), ended))
        counts["tied"] += not pairs
        for pair in pairs:
            both = [ended[index] for index in pair]
            values = [row["score"] for row in both]
            writer.add(
                both[0]["prompt_ids"], [row["ids"] for row in both], row=counts["pairs"], prompt=prompt, scores=values
            )
            line = {"split": rows[0]["split"], "prompt_id": prompt, "samples": [row["sample"] for row in both]}
            line |= {"prompt": both[0]["prompt"], "responses": [row["response"] for row in both], "scores": values}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            counts["pairs"] += 1
    return counts


def choose_pairs(job: Job, prompt: int, scores: np.ndarray, samples: Sequence[Row]) -> Iterator[Pair]:
    """Yield the pairs of one prompt.

    Args:
        job: the law, and the seed and the round that name the draws.
        prompt: the prompt's number, which names them too.
        scores: [N].
        samples: the rows of the scores, whose `sample` is a sample's number.
    """
    settings, group = job.pairing, torch.from_numpy(scores)[None]
    if settings.law == "rso":
        random = generator(job.seed, "rso", job.round, prompt)
        pairs = disjoint_pairs(rejection_sampled(scores, settings.beta, settings.keep, random), scores)
    elif settings.law == "margin":
        pairs = margin_pairs(group, settings.threshold)[0]
    elif settings.law == "max_min":
        best, worst = choose_pair(group, "max_min")[0].tolist()
        pairs = [(best, worst)] if best >= 0 else []
    else:
        pairs = best_of_n(scores)
    for pair in pairs:
        if settings.labels == "bradley_terry":
            # Named by the samples, so that another law or threshold gives the same pair the same label.
            numbers = sorted(int(samples[index]["sample"]) for index in pair)
            random = generator(job.seed, "bradley_terry", job.round, prompt, *numbers)
            pair = bradley_terry(pair, scores, random.random())
        yield pair


def _check_pairs(name: str | None, counts: dict[str, int]) -> None:
    """Raise `UserError` if there is nothing to train on."""
    if not counts["pairs"]:
        raise UserError(
            f"pairing {name or ''}: no pairs: of {counts['prompts']} training prompts, {counts['short']} have too few "
            f"samples that end within max_new_tokens, and {counts['tied']} have scores too close to each other; state "
            "more draws, a higher temperature, more max_new_tokens, or a smaller threshold"
        )


def _write_samples(output: Path) -> None:
    """Write the first pairs as a table to read."""
    with (
        (output / "pairs.jsonl").open(encoding="utf-8") as stream,
        (output / "samples.csv").open("w", encoding="utf-8", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow(["prompt_id", "prompt", "chosen", "rejected", "chosen_score", "rejected_score"])
        for _, line in zip(range(SHOWN), stream, strict=False):
            row = json.loads(line)
            numbers = [f"{score:.4g}" for score in row["scores"]]
            writer.writerow([row["prompt_id"], *map(cell_of, (row["prompt"], *row["responses"])), *numbers])
