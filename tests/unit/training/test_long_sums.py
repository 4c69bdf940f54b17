"""Sums of many float32 or bf16 numbers are taken in a wider type, so that a long response loses no digits."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from prefdag.models.logprobs import LogProbs
from prefdag.models.ops.device import autocast, use_precision
from prefdag.models.ops.half_linear import use_half_linears
from prefdag.rewards.evaluation import evaluation
from prefdag.rewards.model import Scoring, zero_mean
from prefdag.training import mismatched, supervised_task
from prefdag.training.mismatched import MismatchedRatios
from prefdag.training.records import Sums

TOKENS = -5 * torch.rand(6001, generator=torch.Generator().manual_seed(0))  # one response; its sum is about -15,000
MODEL: Any = SimpleNamespace(parameters=lambda: iter([torch.zeros(1)]))


@pytest.fixture(autouse=True)
def one_long_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is one response of TOKENS."""

    def batches(*arguments: Any) -> Iterator[tuple[list[int], Any]]:
        yield [0], SimpleNamespace(to=lambda device: None)

    owner = torch.zeros(len(TOKENS), dtype=torch.int64)
    for module in (supervised_task, mismatched):
        monkeypatch.setattr(module, "logprobs", lambda *arguments: LogProbs(TOKENS, owner, (1, 1)))
        monkeypatch.setattr(module, "iter_packed", batches)


def test_the_loss_of_a_long_response_is_summed_in_float64() -> None:
    store: Any = SimpleNamespace(offsets=np.zeros((1, 3), dtype=np.int64))
    losses, _ = supervised_task.supervised_task(MODEL, store).losses([0], SimpleNamespace())  # type: ignore[arg-type]
    assert losses.item() == pytest.approx(-TOKENS.double().sum().item(), rel=1e-12)


def test_the_held_out_likelihood_is_summed_in_float64() -> None:
    mean = supervised_task.mean_nll(MODEL, SimpleNamespace(), 10)  # type: ignore[arg-type]
    assert mean == pytest.approx(-TOKENS.double().mean().item(), rel=1e-12)


def test_mismatched_log_ratios_are_differences_of_sums_in_float64() -> None:
    ratios = object.__new__(MismatchedRatios)
    ratios.tokens_per_batch = 10
    assert ratios._totals([None], MODEL).item() == pytest.approx(TOKENS.double().sum().item(), rel=1e-12)  # type: ignore[list-item]


def test_the_mean_of_rewards_is_taken_in_float64() -> None:
    values = np.random.default_rng(0).normal(1000, 1, (3000, 2)).astype(np.float32)
    facts = evaluation(values, np.arange(3000))
    assert facts["mean"] == pytest.approx(values.astype(float).mean(), rel=1e-13)
    assert facts["std"] == pytest.approx(values.astype(float).std(), rel=1e-11)
    (offset,) = zero_mean(values[:, :, None], Scoring(seeds=(0,))).offset
    assert offset == pytest.approx(values.astype(float).mean(), rel=1e-13)


def test_metrics_of_a_training_are_summed_in_float64() -> None:
    """2^24 and ten times 1: each of the ones would be lost in float32."""
    sums = Sums()
    for value in (2.0**24, *[1.0] * 10):
        sums.add({"margin": torch.tensor([value])})
    assert sums.to_floats() == {"margin": (2.0**24 + 10, 11)}


def test_the_gradient_of_a_bias_is_summed_in_float32() -> None:
    """257 rows of one: bf16 holds 256 and 258 alone."""
    layer = torch.nn.Linear(2, 1)
    use_half_linears(model := torch.nn.Sequential(layer))
    use_precision("bfloat16")
    try:
        with autocast(torch.device("cpu")):
            out = model(torch.ones(257, 2))
        out.float().sum().backward()
    finally:
        use_precision(None)
    assert layer.bias.grad is not None and layer.bias.grad.item() == 257
