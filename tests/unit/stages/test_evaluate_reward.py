"""The stage `evaluate_reward`: what it computes, and how often."""

from pathlib import Path

import numpy as np
import pytest
import torch

from comparisons import comparisons, stored, tiny
from prefdag.models.logprobs import logprobs
from prefdag.rewards.evaluation import score_all
from prefdag.stages import evaluate_reward
from prefdag.stages.evaluate_reward import Job


def test_log_probs_of_the_policy_take_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Their sum and their mean equal those of separate passes, bit for bit."""
    model, store, cpu = tiny(dtype=torch.float32), stored(tmp_path / "store", comparisons(9, 2)), torch.device("cpu")
    total = score_all(lambda segments: logprobs(model, segments).total, store, 60, cpu)
    mean = score_all(lambda segments: logprobs(model, segments).mean, store, 60, cpu)
    passes = list[int]()
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    score_all(lambda segments: logprobs(model, segments).total, store, 60, cpu)
    once = len(passes)
    passes.clear()
    monkeypatch.setattr(evaluate_reward, "load_policy", lambda *_: model)
    job = Job.parse({"evaluation": {"tokens_per_batch": 60}}, "test")
    scores = evaluate_reward._of_reference(job, store, tmp_path / "sft/manifest.json")
    assert np.array_equal(scores["reference"], total)
    assert np.array_equal(scores["reference_mean"], mean)
    assert len(passes) == once > 1
