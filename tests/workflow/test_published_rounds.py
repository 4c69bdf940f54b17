"""DNO, SPPO, iterative REBEL and RSO as rounds of the DAG: their pairs, references and first losses."""

import json
from itertools import combinations
from math import log
from pathlib import Path

import pandas as pd
import pytest

from conftest import Project, with_rows

RESULTS = "results/mini"
ETA = 0.5
SAMPLES = "max_new_tokens: 128, max_prompts: 16"
ROWS = f"""
  - {{name: dno, method: dpo, beta: 0.1, rounds: 1, pairs: {{law: margin, threshold: 0.2, draws: 4, {SAMPLES}}}}}
  - {{name: sppo, method: sppo_hard, beta: 0.1, rounds: 1, pairs: {{law: max_min, draws: 4, {SAMPLES}}}}}
  - {{name: rebel, method: rebel, eta: {ETA}, rounds: 2, pairs: {{law: margin, labels: bradley_terry, {SAMPLES}}}}}
  - {{name: rso, method: hinge, beta: 0.1, pairs: {{law: rso, beta: 0.5, draws: 8, keep: 4, {SAMPLES}}}}}
"""


@pytest.fixture(scope="module")
def results(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the finished suite with these rows. Read only."""
    project = with_rows(finished, tmp_path_factory.mktemp("published"), ROWS.lstrip("\n"))
    done = project.snakemake()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return project.folder / RESULTS


def pairs_of(results: Path, name: str) -> list[dict]:
    lines = (results / f"pairing/{name}/pairs.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == "train"]


def scores_of(results: Path, name: str) -> dict[int, dict[int, float]]:
    """Scores of the training prompts' samples that ended, by prompt and sample."""
    table = pd.read_csv(results / f"score/{name}/scores.csv")
    lines = (results / f"generate/{name}/generations.jsonl").read_text().splitlines()
    train = [row["split"] == "train" for row in map(json.loads, lines)]
    ended = table[pd.Series(train) & (table["ended"] == 1)]
    return {
        prompt: dict(zip(rows["sample"], rows["reward"], strict=True)) for prompt, rows in ended.groupby("prompt_id")
    }


def first_loss(results: Path, name: str) -> float:
    return float(pd.read_csv(results / f"preference/{name}/curves.csv")["loss"].iloc[0])


def test_dno_takes_every_pair_beyond_the_margin(results: Path):
    expected = set()
    for prompt, scores in scores_of(results, "dno@samples1").items():
        for first, second in combinations(scores, 2):
            high, low = sorted((first, second), key=scores.__getitem__, reverse=True)
            if scores[high] - scores[low] > 0.2:
                expected.add((prompt, high, low))
    pairs = pairs_of(results, "dno@round1")
    assert {(row["prompt_id"], *row["samples"]) for row in pairs} == expected
    assert len(pairs) == len(expected) > 0
    assert first_loss(results, "dno@round1") == pytest.approx(log(2), abs=1e-6)


def test_sppo_begins_at_the_distance_of_both_log_ratios(results: Path):
    """At the reference, ((0 - 1 / (2 beta))^2 + (0 + 1 / (2 beta))^2) / 2 with beta 0.1."""
    for row in pairs_of(results, "sppo@round1"):
        scores = scores_of(results, "sppo@samples1")[row["prompt_id"]]
        assert [scores[sample] for sample in row["samples"]] == [max(scores.values()), min(scores.values())]
    assert first_loss(results, "sppo@round1") in (pytest.approx(25, abs=1e-3), pytest.approx(50, abs=1e-3))


def test_rebel_regresses_on_scores_and_each_round_is_its_own_reference(results: Path):
    """Its first loss is the mean of (eta (r_w - r_l))^2, in round 2 only if round 1 is the reference."""
    for number in (1, 2):
        scores = scores_of(results, f"rebel@samples{number}")
        pairs = pairs_of(results, f"rebel@round{number}")
        differences = []
        for row in pairs:
            first, second = (scores[row["prompt_id"]][sample] for sample in row["samples"])
            assert row["scores"] == pytest.approx([first, second])
            differences.append(first - second)
        assert any(one < 0 for one in differences), "sampled labels prefer the worse answer now and then"
        squares = [(ETA * one) ** 2 for one in differences]
        # A step has two pairs.
        steps = {(squares[i] + squares[j]) / 2 for i, j in combinations(range(len(squares)), 2)}
        loss = first_loss(results, f"rebel@round{number}")
        assert min(abs(loss - one) for one in steps) < 1e-5
    first, second = (
        json.loads((results / f"preference/rebel@round{number}/manifest.json").read_text())["files"][
            "model/model.safetensors"
        ]["sha256"]
        for number in (1, 2)
    )
    assert first != second


def test_rso_pairs_samples_that_rejection_accepted(results: Path):
    """No sample is in two pairs, and what is accepted scores more than all samples do on average."""
    scores, accepted, everything = scores_of(results, "rso@samples1"), [], []
    used = set()
    for row in pairs_of(results, "rso@round1"):
        chosen, rejected = (scores[row["prompt_id"]][sample] for sample in row["samples"])
        assert chosen > rejected
        keys = {(row["prompt_id"], sample) for sample in row["samples"]}
        assert not keys & used
        used |= keys
        accepted += [chosen, rejected]
    for prompt in {prompt for prompt, _ in used}:
        everything += scores[prompt].values()
    assert sum(accepted) / len(accepted) > sum(everything) / len(everything)
