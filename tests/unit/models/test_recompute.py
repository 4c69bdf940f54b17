"""Activations within a budget: the same bits, fewer of them saved."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from comparisons import SHAPES, comparisons, tiny
from prefdag.models.logprobs import logprobs
from prefdag.models.ops.recompute import GB, blocks_of, recompute_blocks
from prefdag.models.ops.vocabulary import in_place_gradients
from prefdag.models.packing import pack


def trained(model: PreTrainedModel, budget_gb: float | None) -> tuple[list[Tensor], list[int]]:
    """Gradients over two micro-batches, and the bytes that each forward pass saved for its backward pass."""
    saved: list[int] = []
    with in_place_gradients(), recompute_blocks(model, budget_gb):
        for part in (slice(0, 4), slice(4, 6)):
            sizes: dict[int, int] = {}

            def pack_(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with saved_tensors_hooks(pack_, lambda tensor: tensor):
                total = logprobs(model, pack(comparisons(6, 2)[part])).total
            saved.append(sum(sizes.values()))
            (total * torch.arange(1, 3)).sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], saved


@pytest.mark.parametrize("shape", SHAPES)
def test_recomputed_blocks_give_the_same_bits(shape: str) -> None:
    """Without a budget, within one of a terabyte, and within one that no block fits: all but the last come again."""
    (plain, all_kept), (ample, still), (scarce, few) = (trained(tiny(shape), budget) for budget in (None, 1e3, 1e-9))
    assert all(torch.equal(one, other) for one, other in zip(plain, ample, strict=True)) and still == all_kept
    assert all(torch.equal(one, other) for one, other in zip(plain, scarce, strict=True))
    assert max(few) < max(all_kept)


def test_as_many_blocks_are_recomputed_as_a_micro_batch_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget for two of four blocks of the larger micro-batch, of 4 comparisons, holds all four of a small one."""
    calls: list[int] = []
    model = tiny("llama", layers=4)
    for number, block in enumerate(blocks_of(model)):
        block.mlp.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    parts = [pack(comparisons(6, 2)[part]) for part in (slice(0, 6), slice(0, 1))]
    with recompute_blocks(model, 1e3):
        logprobs(model, parts[0]).total.sum().backward()
        within = blocks_of(model)[0].forward.__closure__
        (plan,) = [cell.cell_contents for cell in within if hasattr(cell.cell_contents, "per_token")]
    tokens = [part.tokens.numel() for part in parts]
    assert 4 * tokens[1] < 2 * tokens[0]
    budget = 2.5 * plan.per_token * tokens[0] / GB
    with recompute_blocks(model, budget):
        for part in parts:
            calls.clear()
            total = logprobs(model, part).total.sum()
            calls.clear()
            total.backward()
            assert sorted(calls) == ([0, 1] if part is parts[0] else [])
    assert all("forward" not in vars(block) for block in blocks_of(model))
