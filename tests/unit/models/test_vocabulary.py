"""The fused output head against the plain log-softmax, and gradients in place against autograd's."""

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from comparisons import SHAPES, comparisons, tiny
from prefdag.models.logprobs import logprobs
from prefdag.models.naive import float64_norms
from prefdag.models.ops.vocabulary import embed, in_place_gradients, target_logprobs
from prefdag.models.packing import pack

T, D, V = 23, 12, 67
PARTS = (slice(0, 2), slice(2, 3), slice(3, 6))  # three micro-batches of one step


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
    results = []
    for function in (lambda *a: target_logprobs(*a, chunk_bytes=8 * V * rows), plain):
        values = function(*leaves[:2], leaves[2] if len(leaves) > 2 else None, target)
        results.append([values.detach(), *torch.autograd.grad((values * factor).sum(), leaves)])
    return results


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
    """All logits share one buffer; those that were overwritten are recomputed."""
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


def gradients(model: PreTrainedModel, padding: int | None) -> dict[str, Tensor]:
    pairs = comparisons(6, 2)
    model.get_input_embeddings().padding_idx = padding
    for part in PARTS:
        made = logprobs(model, pack(pairs[part]))
        (made.total * torch.arange(1, 3).double()).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("padding", [None, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_place_equals_returned(shape: str, padding: int | None) -> None:
    with float64_norms():
        returned = gradients(tiny(shape), padding)
        with in_place_gradients():
            added = gradients(tiny(shape), padding)
    assert added.keys() == returned.keys()
    assert max((added[name] - returned[name]).abs().max().item() for name in added) < 1e-12


@pytest.mark.parametrize("padding", [None, 3])
def test_rows_of_the_table_equal_torchs_embedding(padding: int | None) -> None:
    """Repeated ids sum; the padding token's row gets no gradient."""
    ids = torch.tensor([[3, 5, 3], [0, 5, 9]])
    tables = [nn.Embedding(10, 4, padding_idx=padding, dtype=torch.float64) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    factor = torch.arange(24, dtype=torch.float64).view(2, 3, 4)
    values = [embed(tables[0], ids), tables[1](ids)]
    for value in values:
        (value * factor).sum().backward()
    assert torch.equal(*values)
    assert torch.equal(tables[0].weight.grad, tables[1].weight.grad)


def test_nothing_is_added_in_place_outside() -> None:
    """torch.autograd.grad sees what is returned, and leaves .grad alone."""
    table = nn.Embedding(10, 4)
    (gradient,) = torch.autograd.grad(embed(table, torch.tensor([1, 1])).sum(), table.weight)
    assert gradient[1].tolist() == [2.0] * 4 and table.weight.grad is None
    with in_place_gradients():
        embed(table, torch.tensor([1, 1])).sum().backward()
    assert table.weight.grad[1].tolist() == [2.0] * 4
