"""Losses as numbers: finite for all possible log-probs, in their full precision, with the gradient of their values."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from prefdag.models.logprobs import LogProbs
from registry import ROWS, Example, example_for, named

every_row = pytest.mark.parametrize("row", ROWS, ids=named)


def filled(of: LogProbs, value: float, responses: int | None = None) -> LogProbs:
    """Every token of the k-th responses, or of all, at one value."""
    size = of.shape[1]
    chosen = torch.ones_like(of.owner, dtype=torch.bool) if responses is None else of.owner % size == responses
    return replace(of, tokens=torch.where(chosen, torch.full_like(of.tokens, value), of.tokens).detach())


def extremes(row: dict[str, Any], dtype: torch.dtype) -> dict[str, Example]:
    """Where a training can come to, and where peers' code overflows."""
    example = example_for(row, dtype=dtype)
    policy, reference = example.policy, example.inputs["reference"]
    last = policy.shape[1] - 1
    return {
        "as drawn": example,
        "single tokens": example_for(row, dtype=dtype, longest=1),
        "one comparison": example.of([2]),
        "equal to the reference": example.with_(reference=replace(policy, tokens=policy.tokens.detach())),
        "impossible": example.with_(filled(policy, -1e4)),
        "impossible to the reference": example.with_(reference=filled(reference, -1e4)),
        "impossible first": example.with_(filled(policy, -1e4, 0)),
        "impossible last": example.with_(filled(policy, -1e4, last)),
        "one impossible token": example_for(row, dtype=dtype, longest=1)
        .of([0])
        .with_(filled(example_for(row, dtype=dtype, longest=1).of([0]).policy, -1e4)),
        "certain": example.with_(filled(policy, 0.0)),
        "certain first": example.with_(filled(policy, 0.0, 0)),
        "certain last": example.with_(filled(policy, 0.0, last)),
        "ties": example.with_(
            filled(policy, -1.0), reference=filled(reference, -1.0), scores=torch.ones_like(example.inputs["scores"])
        ),
        "drawn on the border": example.with_(noise=torch.tensor([0, 1, 0, 1, 0, 1]).to(dtype)),
    }


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients_are_finite(row: dict[str, Any], dtype: torch.dtype) -> None:
    for where, example in extremes(row, dtype).items():
        tokens = example.policy.tokens.detach().requires_grad_()
        loss = example.with_(replace(example.policy, tokens=tokens)).loss(**row)
        (slope,) = torch.autograd.grad(loss.sum(), [tokens])
        assert loss.dtype == dtype and loss.isfinite().all(), f"{where}: {loss}"
        assert slope.isfinite().all(), f"{where}: gradient {slope}"


@every_row
def test_no_option_passes_through_float32(row: dict[str, Any]) -> None:
    """torch turns a number of Python into a float32 where it meets whole numbers or truth values alone; with another
    default dtype it would become a float64, so that equal bits show that it never does.
    """
    example = example_for(row)
    values = example.loss(**row)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(example.loss(**row), values)
    finally:
        torch.set_default_dtype(torch.float32)


# What these hold without gradient moves with the policy: BCO's running mean, beta-DPO's beta, WPO's weight. Peers'
# cases check their gradients.
HELD = {"bco", "beta_dpo", "wpo"}


@every_row
def test_gradients_are_those_of_the_values(row: dict[str, Any]) -> None:
    example = example_for(row)

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        return example.with_(replace(example.policy, tokens=tokens)).loss(**row)

    right = torch.autograd.gradcheck(loss, [example.policy.tokens], eps=1e-6, atol=1e-7, raise_exception=False)
    assert right == (row["method"] not in HELD)


def test_the_gradient_of_a_divergence() -> None:
    """TDPO2 has none through the chosen response's, TDPO1 has: -s(-z) beta times +1 and -1, or 0 and -1/2."""
    for row, expected in (({"method": "tdpo1"}, (-1, 1)), ({"method": "tdpo2"}, (0, 0.5))):
        example = example_for(row).of([3])
        divergence = example.inputs["divergence"].requires_grad_()
        loss = example.loss(**row, beta=0.13)
        (slope,) = torch.autograd.grad(loss, [divergence])
        weight = 0.13 * (1 - torch.exp(-loss))
        for response, sign in enumerate(expected):
            assert torch.allclose(slope[example.policy.owner == response], weight * sign, rtol=1e-10)
