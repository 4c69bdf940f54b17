"""The comparison of a varlen kernel with the mask before its first use: what it refuses, and when it is done again."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from comparisons import comparisons, tiny
from prefdag.errors import UserError
from prefdag.models.attention import interface
from prefdag.models.logprobs import divergence, head_of, logprobs, token_logprobs
from prefdag.models.ops import varlen
from prefdag.models.ops.device import autocast, use_precision
from prefdag.models.packing import Segments, pack

Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def checks(monkeypatch: pytest.MonkeyPatch) -> set[tuple[object, ...]]:
    """The kinds that were compared: none yet."""
    checked: set[tuple[object, ...]] = set()
    monkeypatch.setattr(interface, "_checked", checked)
    return checked


def inputs_of(
    segments: Segments, *, heads: int = 4, keys: int = 2, size: int = 8, dtype: Any = torch.bfloat16
) -> Inputs:
    random, length = torch.Generator().manual_seed(0), segments.tokens.shape[1]
    shapes = ((len(segments.tokens), number, length, size) for number in (heads, keys, keys))
    query, key, value = (torch.randn(shape, generator=random).to(dtype) for shape in shapes)
    return query, key, value


def replace_kernel(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Change the output of the loop that computes a kernel's values on a CPU."""
    right = varlen.attend_loop
    monkeypatch.setattr(varlen, "attend_loop", lambda *arguments: change(right(*arguments)))


def relative_error(inputs: Inputs, segments: Segments) -> float:
    """Return the relative error of the masked path's output in half precision."""
    exact = interface._run(interface.masked_lowering, [part.float() for part in inputs], segments, None)[0]
    plain = interface._run(interface.masked_lowering, list(inputs), segments, None)[0]
    return ((plain - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("times", "is_refused"), [(10, True), (1, False)])
def test_a_kernel_off_by_ten_times_the_masked_paths_error_is_refused(
    times: float, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is in the values, in float32, so that nothing but its size decides; four times are allowed."""
    segments = pack(comparisons(6, 2))
    inputs = inputs_of(segments)
    noise = torch.Generator().manual_seed(1)
    error = times * relative_error(inputs, segments)

    def off(out: Tensor) -> Tensor:
        random = torch.randn(out.shape, generator=noise)
        return out.float() + error * random * out.float().norm() / random.norm()

    replace_kernel(monkeypatch, off)
    if is_refused:
        with pytest.raises(UserError, match="kernel for sequences is off by .* in the output's values"):
            interface.check(*inputs, segments, None)
    else:
        interface.check(*inputs, segments, None)


def test_a_kernel_that_returns_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = pack(comparisons(6, 2))
    replace_kernel(monkeypatch, lambda out: out * float("nan"))
    with pytest.raises(UserError, match="is off by nan in the output's values"):
        interface.check(*inputs_of(segments), segments, None)


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_a_gradient_off_by_ten_times_the_masked_paths_error_is_refused(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The values are right; the gradient of one input is scaled by 1 % where bf16 rounds to 0.4 %, ten times summed."""
    segments, right = pack(comparisons(6, 2)), varlen.attend_loop
    place = ("query", "key", "value").index(part)

    def steep(*arguments: Any) -> Tensor:
        parts = list(arguments)
        parts[place] = 1.1 * parts[place] - 0.1 * parts[place].detach()
        return right(*parts)

    monkeypatch.setattr(varlen, "attend_loop", steep)
    with pytest.raises(UserError, match=f"off by .* in the {part}'s gradient"):
        interface.check(*inputs_of(segments), segments, None)


OTHERS: list[dict[str, Any]] = [{"size": 16}, {"heads": 2}, {"keys": 4}, {"keys": 1}, {"dtype": torch.float16}]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_another_shape_or_dtype_is_compared_again(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that turns wrong is noticed at the next kind of input, and not asked again for a known one."""
    segments = pack(comparisons(6, 2))
    interface.check(*inputs_of(segments), segments, None)
    replace_kernel(monkeypatch, lambda out: 1.5 * out)
    interface.check(*inputs_of(segments), segments, None)
    with pytest.raises(UserError, match="is off by"):
        interface.check(*inputs_of(segments, **other), segments, None)
    with pytest.raises(UserError, match="is off by"):  # a refusal is not remembered as a success
        interface.check(*inputs_of(segments, **other), segments, None)


@pytest.mark.parametrize("heads", [4, 2])
def test_the_kernel_is_asked_for_causal_attention_of_the_sequences(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """window_size (-1, 0) is causal; offsets, longest sequences and scale are the layout's."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def kernel(query: Tensor, *arguments: Any, enable_gqa: bool = False, **options: Any) -> Tensor:
        calls.append((arguments, {**options, "enable_gqa": enable_gqa}))
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    segments = pack(comparisons(4, 2))
    layout = replace(segments.varlen_layout, longest=(3, 7))
    query = torch.zeros(len(layout.queries.places), 4, 8)
    key, value = torch.zeros(2, len(layout.keys.places), heads, 8).unbind()
    varlen.attend_flash(query, key, value, layout, 0.25)
    ((arguments, options),) = calls
    assert options == {"scale": 0.25, "window_size": (-1, 0), "enable_gqa": True}
    assert arguments[0] is key and arguments[1] is value
    assert arguments[2] is layout.query_starts and arguments[3] is layout.key_starts
    assert arguments[4:] == (3, 7)


def test_under_autocast_the_kernel_is_given_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions leave float32 behind, which no varlen kernel takes; what is compared is what is computed."""
    monkeypatch.setattr(interface, "lowering", lambda device, dtype: "apart")
    dtypes: list[torch.dtype] = []
    right = varlen.attend_loop
    monkeypatch.setattr(
        varlen,
        "attend_loop",
        lambda q, k, v, *rest: dtypes.extend((q.dtype, k.dtype, v.dtype)) or right(q, k, v, *rest),
    )
    model, segments = tiny(dtype=torch.float32), pack(comparisons(3, 2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logprobs(model, segments)
    assert set(dtypes) == {torch.bfloat16}
    dtypes.clear()
    module: Any = None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for place in range(3):  # each of the three may be wider than the others
            parts = [part.float() if at == place else part for at, part in enumerate(inputs_of(segments))]
            interface.segment_attention(module, *parts, None, segments=segments)
    assert set(dtypes) == {torch.bfloat16}
    dtypes.clear()
    with torch.no_grad():
        logprobs(model, segments)
    assert set(dtypes) == {torch.float32}


def test_logits_in_bf16_are_widened_before_the_log_softmax() -> None:
    """The log of a sum of 50 exponentials in bf16 is off by 0.4 %; the head's products are rounded, sums are not."""
    model, segments = tiny(dtype=torch.float32), pack(comparisons(3, 2))
    use_precision("bfloat16")
    try:
        with torch.no_grad(), autocast(torch.device("cpu")):
            states = torch.randn(5, 16)
            head = head_of(model)
            logits = head(states)
            values = token_logprobs(states, torch.arange(5), head)
            both = divergence(model, tiny(seed=1, dtype=torch.float32), segments)
            tokens = logprobs(model, segments).tokens
    finally:
        use_precision(None)
    assert logits.dtype == values.dtype == tokens.dtype == torch.float32
    exact = logits.double().log_softmax(-1)[torch.arange(5), torch.arange(5)]
    assert (values - exact).abs().max() < 1e-5
    assert {both.kl.dtype, both.policy.dtype, both.reference.dtype} == {torch.float32}
    assert not torch.equal(both.kl, both.kl.bfloat16().float())
