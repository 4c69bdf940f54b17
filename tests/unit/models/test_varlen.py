"""Attention with every response apart, which only CUDA uses: here its arithmetic, by a loop in the kernel's place."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from comparisons import comparisons, tiny
from padded_path import TOLERANCE, Rows, logprob_distance, on_every_case
from prefdag.errors import UserError
from prefdag.models.attention import interface
from prefdag.models.naive import float64_norms
from prefdag.models.ops import varlen
from prefdag.models.ops.varlen import Gather, VarlenLayout, attend_flash, sequences
from prefdag.models.packing import pack


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model's attention is computed apart, and compared at first use."""
    monkeypatch.setattr(interface, "lowering", lambda device, dtype: "apart")
    monkeypatch.setattr(interface, "_checked", set())


@on_every_case
def test_logprobs_and_gradients_equal_the_padded_path(architecture: str, num_responses: int, rows: Rows, forced: None):
    pairs = comparisons(6, num_responses)
    with float64_norms():
        assert logprob_distance(tiny(architecture), pairs, pack(pairs, rows)) < TOLERANCE
    assert interface._checked


def test_the_sequences_of_a_row() -> None:
    """Two comparisons of K = 2 in a row, padding behind them: [P P A B B | P A A B | .]."""
    comparison = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1, -1]]).numpy()
    response = torch.tensor([[0, 0, 1, 2, 2, 0, 1, 1, 2, 0]]).numpy()
    spans = sequences(comparison, response)
    assert spans == [((0, 0), (0, 3)), ((0, 2), (3, 5)), ((5, 5), (5, 8)), ((5, 6), (8, 9))]
    layout = VarlenLayout.of(spans, comparison.size)
    assert layout.queries.places.tolist() == list(range(9))
    assert layout.query_starts.tolist() == [0, 3, 5, 8, 9]
    assert layout.keys.places.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 5, 8]
    assert layout.key_starts.tolist() == [0, 3, 7, 10, 12]
    assert layout.longest == (3, 4)


def test_the_gradient_of_what_is_taken_twice_is_autograds() -> None:
    places = torch.tensor([3, 1, 3, 0, 3])
    values = torch.randn(6, 2, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 2, 4, dtype=torch.float64)
    gradients = []
    for rows in (Gather.of(places.numpy(), 6)(values), values[places]):
        gradients.append(torch.autograd.grad((rows * weights).sum(), values)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-15)
    assert not gradients[0][[2, 4, 5]].any()


def test_the_gradient_of_what_is_taken_thrice_is_summed_in_float32() -> None:
    """256 + 1 + 1 = 258, which bf16 holds; added up in bf16, 256 + 1 rounds to 256 twice."""
    values = torch.zeros(2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    rows = Gather.of(torch.tensor([0, 0, 0, 1]).numpy(), 2)(values)
    (gradient,) = torch.autograd.grad(rows, values, torch.tensor([256.0, 1, 1, 3]).bfloat16().view(4, 1, 1))
    assert gradient.flatten().tolist() == [258, 3] and gradient.dtype == torch.bfloat16


def test_a_kernel_that_aligns_its_diagonal_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, forced: None):
    """At the top left, so that a second response sees its prompt's first tokens alone."""

    def top_left(query: Tensor, key: Tensor, value: Tensor, apart: VarlenLayout, scale: float | None) -> Tensor:
        sizes = [starts.diff().tolist() for starts in (apart.query_starts, apart.key_starts)]
        sequences = zip(query.split(sizes[0]), key.split(sizes[1]), value.split(sizes[1]), strict=True)
        outputs = []
        for parts in sequences:
            q, k, v = (part.transpose(0, 1) for part in parts)
            mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril()
            out = F.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=True
            )
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs)

    monkeypatch.setattr(varlen, "attend_loop", top_left)
    pairs = comparisons(4, 2)
    with pytest.raises(UserError, match="is off by .* set PREFDAG_ATTENTION=masked"):
        logprob_distance(tiny("llama"), pairs, pack(pairs))


def test_what_the_comparison_keeps_is_not_counted(monkeypatch: pytest.MonkeyPatch, forced: None) -> None:
    """A memory budget counts what is saved in the first forward pass, in which attention compares itself."""
    segments, sizes = pack(comparisons(4, 2)), list[int]()
    query, key, value = torch.randn(3, 4, 2, segments.tokens.shape[1], 8).unbind()
    with saved_tensors_hooks(lambda tensor: sizes.append(1) or tensor, lambda tensor: tensor):
        interface.check(query, key, value, segments, None)
    assert interface._checked and not sizes


@pytest.mark.parametrize("heads", [4, 2])
def test_the_kernels_arguments_fit_it(heads: int) -> None:
    """Called on bf16 tensors without data: shapes of the output and of gradients, heads grouped or not."""
    segments = pack(comparisons(4, 2))
    layout = segments.varlen_layout
    with FakeTensorMode(allow_non_fake_inputs=True):
        sizes = ((len(layout.queries.places), 4), (len(layout.keys.places), heads), (len(layout.keys.places), heads))
        inputs = [torch.empty(*size, 16, dtype=torch.bfloat16, requires_grad=True) for size in sizes]
        out = attend_flash(*inputs, layout, 0.25)
        assert out.shape == inputs[0].shape and out.dtype == torch.bfloat16
        gradients = torch.autograd.grad(out.sum(), inputs)
        assert [gradient.shape for gradient in gradients] == [part.shape for part in inputs]


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(interface.VARIABLE, raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert interface.lowering(cuda, torch.bfloat16) == "apart"
    assert (interface.lowering(cuda, torch.float32), interface.lowering(cpu, torch.float32)) == ("masked", "tiled")
    monkeypatch.setenv(interface.VARIABLE, "masked")
    assert {interface.lowering(cuda, torch.bfloat16), interface.lowering(cpu, torch.float32)} == {"masked"}
    monkeypatch.setenv(interface.VARIABLE, "flash")
    with pytest.raises(UserError, match="PREFDAG_ATTENTION: expected `masked` or nothing, got 'flash'"):
        interface.lowering(cuda, torch.bfloat16)
