"""Rate a round's samples by a model judge, which compares the samples of each prompt with one another.

INPUTS   generations, the samples of one round
OUTPUTS  scores.csv (the mean verdict of each sample against the prompt's others), verdicts.csv, summary.json
"""

import csv
import json
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefdag.config.sections.rating import Rating
from prefdag.evaluation.judge.run import FOLDER, Pair
from prefdag.evaluation.judge.samples import judge_pairs
from prefdag.evaluation.scores import Key
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section

Row = dict[str, Any]  # a line of generations.jsonl
SAME = 0.5  # the verdict of equal responses, about which nothing is asked


class Job(Section):
    """The keys of `--config`."""

    rating: Rating


def run(job: Job, workspace: Workspace, *, generations: Path) -> dict[str, Any]:
    """Ask the judge about every two finished samples of a prompt, in both orders.

    A sample's score is the share of the prompt's other samples that it is preferred to, as SPPO estimates it. It is
    empty for a sample that did not end, and for one without a verdict that can be read; `pairing` leaves these out.

    Args:
        job: the judge.
        workspace: output folder and journal of the job.
        generations: manifest of the samples.

    Returns:
        Counts of samples with a score, of pairs that were asked about, and of answers that cannot be read.
    """
    lines = (generations.parent / "generations.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    places = [
        pair
        for _, group in groupby(range(len(rows)), key=lambda place: rows[place]["prompt_id"])
        for pair in combinations([place for place in group if rows[place]["ended"]], 2)
    ]
    different = [pair for pair in places if _response(rows, pair[0]) != _response(rows, pair[1])]
    shown = [Pair(rows[i]["prompt"], _response(rows, i), _response(rows, j)) for i, j in different]
    keys: list[Key] = [(rows[i]["prompt_id"], rows[i]["sample"]) for i, _ in different]
    name = f"rating-{workspace.name or 'all'}"
    values, verdicts, lost = judge_pairs(job.rating.judge, shown, keys, workspace.journal.root / FOLDER, name)
    by_pair = dict.fromkeys(places, SAME) | dict(zip(different, values.tolist(), strict=True))
    scores = mean_verdicts(by_pair, len(rows))
    with (workspace.output / "scores.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt_id", "sample", "reward"])
        for row, score in zip(rows, scores.tolist(), strict=True):
            writer.writerow([row["prompt_id"], row["sample"], "" if np.isnan(score) else score])
    with (workspace.output / "verdicts.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt_id", "sample", "against", "shown_first", "shown_second"])
        for (prompt, sample), (_, j), one in zip(keys, different, verdicts, strict=True):
            cells = ["" if np.isnan(side) else side for side in (one.shown_first, one.shown_second)]
            writer.writerow([prompt, sample, rows[j]["sample"], *cells])
    facts = {"samples": int((~np.isnan(scores)).sum()), "pairs": len(different), **lost}
    (workspace.output / "summary.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    workspace.journal.artifact(workspace.output / "summary.json", "summary.json")
    workspace.results(facts)
    return facts


def mean_verdicts(verdicts: dict[tuple[int, int], float], num: int) -> NDArray[np.float64]:
    """Return the mean verdict of each of `num` samples over its pairs, NaN without any.

    verdicts: how far the first sample of a pair is preferred to the second, NaN if that cannot be read.
    """
    wins, counts = np.zeros(num), np.zeros(num)
    for (first, second), verdict in verdicts.items():
        if not np.isnan(verdict):
            wins[[first, second]] += verdict, 1 - verdict
            counts[[first, second]] += 1
    return np.divide(wins, counts, out=np.full(num, np.nan), where=counts > 0)


def _response(rows: list[Row], place: int) -> str:
    response: str = rows[place]["response"]
    return response
