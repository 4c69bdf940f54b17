"""The frontier's KL axis: which policy is the first argument of the divergence, and the estimators of it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from comparisons import comparisons, tiny
from prefdag.evaluation.bootstrap import summarise
from prefdag.models.logprobs import Divergence
from prefdag.models.naive import naive_logprobs, transformers_attention
from prefdag.models.packing import Segments
from prefdag.provenance.journal import Journal
from prefdag.runtime.stage import Workspace
from prefdag.stages import score
from prefdag.stages.score import Job, divergences, run

CPU = torch.device("cpu")


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """Folders of two policies with different weights."""
    folders = {name: tmp_path / name / "model" for name in ("policy", "reference")}
    for seed, folder in enumerate(folders.values()):
        tiny(seed=seed, dtype=torch.float32).save_pretrained(folder)
    return folders


@torch.no_grad()
def plain_loop() -> list[tuple[float, float, float]]:
    """Return KL, k1 and k3 of each sample in float64: a response at a time, and a token at a time."""
    policy, reference, rows = tiny(seed=0), tiny(seed=1), []
    for one in comparisons(7, 1):
        ids = torch.tensor([[*one.prompt.tolist(), *one.responses[0].tolist()]])
        distributions = []
        for model in (policy, reference):
            with transformers_attention(model):
                distributions.append(model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1))
        kl = k1 = k3 = 0.0
        for at in range(len(one.prompt), ids.shape[1]):
            p, q = (log[at - 1] for log in distributions)
            kl += (p.exp() * (p - q)).sum().item()
            log_ratio = (q - p)[ids[0, at]].item()  # of the reference to the policy
            k1 -= log_ratio
            k3 += torch.tensor(log_ratio).exp().item() - 1 - log_ratio
        rows.append((kl, k1, k3))
    return rows


def test_divergences_equal_a_plain_loop(models: dict[str, Path]) -> None:
    """KL(policy || reference), its estimators k1 and k3; samples of many lengths, packed in another order."""
    expected = plain_loop()
    columns = divergences(comparisons(7, 1), models["policy"], models["reference"], 24, CPU)
    for column, values in zip(("kl", "k1", "k3"), zip(*expected, strict=True), strict=True):
        assert columns[column] == pytest.approx(values, rel=1e-3, abs=1e-4), column
    assert min(columns["k3"]) >= 0 and min(columns["k1"]) < 0  # k3 is never negative, k1 may be
    reverse = divergences(comparisons(7, 1), models["reference"], models["policy"], 24, CPU)
    assert max(abs(a - b) for a, b in zip(columns["kl"], reverse["kl"], strict=True)) > 0.1


def test_k3_of_policies_that_are_close_is_not_lost_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-ratios of 1e-4: exp(-x) - 1 + x is 5e-9, a rounding error of float32 numbers near x."""
    pairs, small = comparisons(3, 1), torch.tensor(1e-4)
    monkeypatch.setattr(score, "load_policy", lambda *arguments: None)

    def close(policy: object, reference: object, segments: Segments) -> Divergence:
        ratio = small.expand(len(segments.target))
        return Divergence(ratio, 0 * ratio, ratio)

    monkeypatch.setattr(score, "divergence", close)
    columns = divergences(pairs, Path("policy"), Path("reference"), 100, CPU)
    x = small.double().item()
    each = [len(one.responses[0]) * (x**2 / 2 - x**3 / 6) for one in pairs]
    assert columns["k3"] == pytest.approx(each, rel=1e-6)


def test_sums_of_log_probs_are_those_of_single_rows(models: dict[str, Path]) -> None:
    """k1 is the log-ratio of the sequence, policy minus reference."""
    pairs = comparisons(7, 1)
    with torch.no_grad():
        totals = [naive_logprobs(tiny(seed=seed), pairs).total[:, 0] for seed in (0, 1)]
    columns = divergences(pairs, models["policy"], models["reference"], 10_000, CPU)
    assert columns["k1"] == pytest.approx((totals[0] - totals[1]).tolist(), abs=1e-4)


def test_of_the_reference_itself_all_are_zero(models: dict[str, Path]) -> None:
    columns = divergences(comparisons(3, 1), models["policy"], models["policy"], 100, CPU)
    assert columns == {name: [0.0] * 3 for name in ("kl", "k1", "k3")}


def test_the_stage_measures_the_policy_against_the_reference(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The column kl of scores.csv is that of the policy's weights as the first argument."""
    monkeypatch.setattr(score, "_check_weights", lambda *paths: None)
    monkeypatch.setattr(Workspace, "log_model_input", lambda *names: None)
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(comparisons(7, 1)):
        texts = {
            "prompt": f"p{number}",
            "response": "fine",
            "ended": True,
            "prompt_id": number // 2,
            "sample": number % 2,
        }
        rows.append({**texts, "prompt_ids": one.prompt.tolist(), "ids": one.responses[0].tolist()})
    (tmp_path / "in").mkdir()
    (tmp_path / "in/generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    journal = Journal(tmp_path / "journal.jsonl", root=tmp_path, stage="score", name="dpo")
    workspace = Workspace("score", "dpo", tmp_path / "out", tmp_path / "resume", journal, {})
    job = Job.parse({"score": {"reward": "vader", "bootstrap": 20}}, "test")
    inputs = {name: folder.parent / "manifest.json" for name, folder in models.items()}
    run(job, workspace, generations=tmp_path / "in/manifest.json", implicit=[], **inputs)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    for place, column in enumerate(("kl", "k1", "k3")):
        mean = sum(row[place] for row in plain_loop()) / 7
        assert summary[column]["mean"] == pytest.approx(mean, rel=1e-3, abs=1e-4)
    with (tmp_path / "out/scores.csv").open(newline="") as stream:
        values = [float(row["kl"]) for row in csv.DictReader(stream)]
    prompts = [number // 2 for number in range(7)]
    assert summary["kl"] == pytest.approx(summarise(values, prompts, seed="0/kl", bootstrap=20).to_dict())
