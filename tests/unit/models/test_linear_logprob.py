"""The fused output head against the plain log-softmax: values and all gradients, whatever the chunks."""

import pytest
import torch
from torch import Tensor

from prefdag.models.ops.linear_logprob import target_logprobs

T, D, V = 23, 12, 67


def inputs(bias: bool, scale: float = 1.0) -> tuple[list[Tensor], Tensor, Tensor]:
    """states, weight (and bias) as float64 leaves, targets, and what the result is multiplied with."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(T, D), (V, D), *([(V,)] if bias else [])]
    leaves = [(scale * torch.randn(shape, generator=draw, dtype=torch.float64)).requires_grad_() for shape in shapes]
    return leaves, torch.randint(0, V, (T,), generator=draw), torch.randn(T, generator=draw, dtype=torch.float64)


def plain(states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    logits = states @ weight.T if bias is None else states @ weight.T + bias
    return logits.log_softmax(-1).gather(1, target[:, None]).squeeze(1)


def both(leaves: list[Tensor], target: Tensor, factor: Tensor, rows: int) -> list[list[Tensor]]:
    found = []
    for function in (lambda *a: target_logprobs(*a, chunk_bytes=8 * V * rows), plain):
        values = function(*leaves[:2], leaves[2] if len(leaves) > 2 else None, target)
        found.append([values.detach(), *torch.autograd.grad((values * factor).sum(), leaves)])
    return found


@pytest.mark.parametrize("rows", [1, 7, T, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_the_plain_log_softmax(rows: int, bias: bool):
    for one, other in zip(*both(*inputs(bias), rows), strict=True):
        assert (one - other).abs().max() < 1e-12


def test_extreme_logits_stay_finite():
    fused, expected = both(*inputs(bias=False, scale=60.0), 7)  # logits of some 10,000
    assert all(torch.isfinite(part).all() for part in fused)
    assert (fused[0] - expected[0]).abs().max() < 1e-9 * expected[0].abs().max()


def test_a_forward_pass_in_between_does_not_spoil_the_backward_pass():
    """The logits lie in one buffer; whoever's were overwritten are computed again."""
    (states, weight), target, factor = inputs(bias=False)
    first = target_logprobs(states, weight, None, target)
    with torch.no_grad():
        target_logprobs(states + 1, weight, None, target)
    again = torch.autograd.grad((first * factor).sum(), [states, weight])
    expected = torch.autograd.grad((plain(states, weight, None, target) * factor).sum(), [states, weight])
    for one, other in zip(again, expected, strict=True):
        assert (one - other).abs().max() < 1e-12


def test_two_passes_may_be_open_at_once():
    (states, weight), target, factor = inputs(bias=False)
    together = target_logprobs(states, weight, None, target) - 0.5 * target_logprobs(2 * states, weight, None, target)
    expected = plain(states, weight, None, target) - 0.5 * plain(2 * states, weight, None, target)
    pairs = [torch.autograd.grad((values * factor).sum(), [states, weight]) for values in (together, expected)]
    for one, other in zip(*pairs, strict=True):
        assert (one - other).abs().max() < 1e-12


def test_no_position_at_all():
    (states, weight), target, _ = inputs(bias=False)
    values = target_logprobs(states[:0], weight, None, target[:0])
    assert values.shape == (0,)
    assert torch.autograd.grad(values.sum(), weight)[0].abs().max() == 0
