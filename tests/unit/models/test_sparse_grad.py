"""Gradients of the vocabulary's tables added where they lie: what autograd gives, over several micro-batches."""

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from comparisons import SHAPES, comparisons, tiny
from prefdag.models.logprobs import logprobs
from prefdag.models.naive import float64_norms
from prefdag.models.ops.sparse_grad import embedded, sparse_embedding
from prefdag.models.packing import pack

PARTS = (slice(0, 2), slice(2, 3), slice(3, 6))  # three micro-batches of one step


def gradients(model: PreTrainedModel, padding: int | None) -> dict[str, Tensor]:
    found = comparisons(6, 2)
    model.get_input_embeddings().padding_idx = padding
    for part in PARTS:
        made = logprobs(model, pack(found[part]))
        (made.total * torch.arange(1, 3).double()).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("padding", [None, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_place_equals_returned(shape: str, padding: int | None) -> None:
    with float64_norms():
        returned = gradients(tiny(shape), padding)
        with sparse_embedding():
            added = gradients(tiny(shape), padding)
    assert added.keys() == returned.keys()
    assert max((added[name] - returned[name]).abs().max().item() for name in added) < 1e-12


@pytest.mark.parametrize("padding", [None, 3])
def test_rows_of_the_table_equal_torchs_embedding(padding: int | None) -> None:
    """Repeated ids sum; the padding token's row learns nothing."""
    ids = torch.tensor([[3, 5, 3], [0, 5, 9]])
    tables = [nn.Embedding(10, 4, padding_idx=padding, dtype=torch.float64) for _ in range(2)]
    tables[1].load_state_dict(tables[0].state_dict())
    factor = torch.arange(24, dtype=torch.float64).view(2, 3, 4)
    values = [embedded(tables[0], ids), tables[1](ids)]
    for value in values:
        (value * factor).sum().backward()
    assert torch.equal(*values)
    assert torch.equal(tables[0].weight.grad, tables[1].weight.grad)


def test_nothing_is_added_in_place_outside() -> None:
    """torch.autograd.grad sees what is returned, and leaves .grad alone."""
    table = nn.Embedding(10, 4)
    (found,) = torch.autograd.grad(embedded(table, torch.tensor([1, 1])).sum(), table.weight)
    assert found[1].tolist() == [2.0] * 4 and table.weight.grad is None
    with sparse_embedding():
        embedded(table, torch.tensor([1, 1])).sum().backward()
    assert table.weight.grad[1].tolist() == [2.0] * 4
