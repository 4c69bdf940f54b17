"""What can be known of CUDA on a machine without it: precision, waiting, and what torch refuses there."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import half
from benchmarks.half import errors_in_half
from comparisons import ARCHITECTURES, comparisons, stored, tiny, tiny_scorer
from loss_family import ROWS, aligned, batch_of
from prefdag.config.sections.reward import Reward
from prefdag.losses.registry import LOSSES
from prefdag.models.attention import interface
from prefdag.models.generation import invert_exactly, sample_tokens
from prefdag.models.logprobs import LogProbs, logprobs, token_logprobs
from prefdag.models.ops import varlen, vocabulary
from prefdag.models.ops.varlen import Gather, VarlenLayout, attend_flash
from prefdag.models.ops.vocabulary import in_place_gradients, target_logprobs
from prefdag.models.packing import Segments, TokenPlan, pack
from prefdag.rewards.model import Scoring
from prefdag.stages import reward
from prefdag.training import loop, records
from prefdag.training.loop import Batch, Losses, Task
from prefdag.training.preference_metrics import preference_metrics
from prefdag.training.records import Sums
from prefdag.training.supervised_task import supervised_task

HALF = torch.bfloat16


@pytest.fixture
def apart_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as on CUDA, with a loop instead of the kernel, and without the comparison at first use."""
    monkeypatch.setattr(interface, "lowering", lambda device, dtype: "apart")
    monkeypatch.setattr(interface, "check", lambda *_: None)


# Precision: the error against float64 is at most twice that of padded rows under autocast.


def error(values: Tensor, truth: Tensor) -> float:
    return (values.double() - truth).norm().item()


@pytest.mark.parametrize("scale", [1.0, 8.0], ids=["lively", "certain"])
def test_the_heads_error_in_half_precision(scale: float) -> None:
    """Values and both gradients; `certain`: most tokens have a probability near 1, where differences cancel."""
    draw = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(size, 48, generator=draw) for size in (300, 500))
    target = (states @ weight.T).argmax(1) if scale > 1 else torch.randint(0, 500, (300,), generator=draw)
    factor = torch.randn(300, generator=draw)
    states, weight = scale**0.5 * states, scale**0.5 * weight

    def compute(function: Callable[..., Tensor], dtype: torch.dtype, half: bool) -> list[Tensor]:
        leaves = [part.to(dtype).requires_grad_() for part in (states, weight)]
        with torch.autocast("cpu", HALF, enabled=half):
            values = function(*leaves)
        return [values, *torch.autograd.grad((values * factor).sum(), leaves)]

    def plain(states: Tensor, weight: Tensor) -> Tensor:
        return token_logprobs(
            states, target, lambda states: (states @ weight.T).to(torch.promote_types(weight.dtype, torch.float32))
        )

    def ours(states: Tensor, weight: Tensor) -> Tensor:
        return target_logprobs(states, weight, None, target, chunk_bytes=4 * 500 * 70)

    truth = compute(plain, torch.float64, half=False)
    assert (truth[0].exp().median() > 0.99) == (scale > 1)
    for one, other, true in zip(
        compute(ours, torch.float32, True), compute(plain, torch.float32, True), truth, strict=True
    ):
        assert one.dtype == torch.float32
        assert error(one, true) <= 2 * error(other, true)
        assert error(one, true) > 1e-4 * true.norm().item(), "in half precision, then"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_models_error_in_half_precision(architecture: str, apart_in_half: None) -> None:
    """Log-probs and every gradient together; the mean of the log-probs' errors is zero within its noise."""
    errors = errors_in_half(tiny(architecture, dtype=torch.float32), comparisons(40, 2))
    assert 0.05 < errors["logprobs"] <= 2 and 0.05 < errors["gradients"] <= 2
    assert abs(errors["mean"]) < 4


def test_the_bounds_on_half_precision_are_able_to_fail(apart_in_half: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin: a hundredth of a nat too much in every token."""

    def shifted(model: Any, segments: Segments) -> LogProbs:
        return replace(exact := logprobs(model, segments), tokens=exact.tokens + 0.01)

    monkeypatch.setattr(half, "logprobs", shifted)
    assert abs(errors_in_half(tiny(dtype=torch.float32), comparisons(40, 2))["mean"]) > 4


def test_products_of_half_precision_are_summed_in_float32_on_cuda() -> None:
    """Called on tensors without data, so that no GPU is needed."""
    with (mode := FakeTensorMode()), torch.no_grad():
        left, right = (on_cuda(mode, torch.empty(size, dtype=HALF)) for size in ((5, 8), (8, 7)))
        product = vocabulary.matmul(left, right, out=on_cuda(mode, torch.empty(5, 7)))
    assert product.dtype == torch.float32 and product.shape == (5, 7)


# Waiting: within a micro-batch nothing is asked of the device but that it go on.


def on_cuda(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    return FakeTensor(mode, torch.empty_like(tensor, device="meta"), torch.device("cuda", 0))


def test_segments_take_along_what_would_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    segments = pack(comparisons(4, 2), [[0, 1], [2, 3]])
    _ = (
        segments.reach,
        segments.varlen_layout,
        segments.predicting,
        segments.ending,
    )  # numpy and `unique` work on data alone
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved = segments.to(torch.device("cuda", 0))
    assert {"reach", "packed_shape", "varlen_layout", "predicting", "ending"} <= moved.__dict__.keys()
    layout = moved.varlen_layout
    assert moved.packed_shape == segments.packed_shape
    parts = [getattr(moved, field.name) for field in fields(Segments) if field.name != "copies"]
    parts += [
        *moved.predicting,
        *moved.ending,
        *(part for taken in (layout.queries, layout.keys) for part in (taken.places, taken.copies)),
    ]
    assert {part.device.type for part in (*parts, layout.query_starts, layout.key_starts)} == {"cuda"}


class WithoutData:
    """Models and micro-batches as tensors whose values cannot be asked for."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def model(self, model: nn.Module) -> Any:
        for module in model.modules():
            for held, wrap in ((module._parameters, nn.Parameter), (module._buffers, lambda tensor: tensor)):
                held.update({name: wrap(self.tensor(one.detach())) for name, one in held.items() if one is not None})
        return model

    def tensor(self, tensor: Tensor) -> Tensor:
        return self.mode.from_tensor(tensor)

    def segments(self, segments: Segments) -> Segments:
        tensors = {field.name: getattr(segments, field.name) for field in fields(Segments)}
        copy = Segments(**{name: self.tensor(one) for name, one in tensors.items() if one is not None})
        layout = segments.varlen_layout
        taken = (Gather(self.tensor(one.places), self.tensor(one.copies)) for one in (layout.queries, layout.keys))
        starts = self.tensor(layout.query_starts), self.tensor(layout.key_starts)
        copy.__dict__["reach"], copy.__dict__["packed_shape"] = segments.reach, segments.packed_shape
        copy.__dict__["varlen_layout"] = VarlenLayout(*taken, *starts, layout.longest)
        for name in ("predicting", "ending"):
            copy.__dict__[name] = TokenPlan(*map(self.tensor, getattr(segments, name)))
        return copy


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch, apart_in_half: None) -> WithoutData:
    """The loop fetches values once, at the end of a step; here it fetches zeros."""
    monkeypatch.setattr(varlen, "attend_loop", attend_flash)
    monkeypatch.setattr(loop, "autocast", lambda device: torch.autocast(device.type, HALF))
    for module in (loop, records):
        monkeypatch.setattr(module, "to_floats", lambda values: [0.0] * len(values))
    return WithoutData()


def stepped(without: WithoutData, model: Any, losses: Callable[..., Losses]) -> list[Tensor | None]:
    """A step of two micro-batches as the loop accumulates it; the gradients."""
    packings = [pack(comparisons(4, 2, seed=seed), [[0, 1], [2, 3]]) for seed in range(2)]
    batches = [(list(range(4)), without.segments(segments)) for segments in packings]
    with without.mode, in_place_gradients():
        outcome = Task(losses, len).accumulate(Batch(0, list(range(8)), lambda: iter(batches)), {})
    assert outcome.loss == 0
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_micro_batch_of_dpo_waits(architecture: str, without_data: WithoutData) -> None:
    model = without_data.model(tiny(architecture, dtype=torch.float32))

    def losses(ids: Sequence[int], segments: Segments) -> Losses:
        policy = logprobs(model, segments)
        fixed = replace(policy, tokens=torch.zeros_like(policy.tokens))
        return LOSSES["dpo"](policy, fixed, beta=0.1), preference_metrics(policy, fixed, None)

    assert all(gradient is not None for gradient in stepped(without_data, model, losses))


def test_no_micro_batch_of_sft_waits(without_data: WithoutData, tmp_path: Path) -> None:
    model = without_data.model(tiny(dtype=torch.float32))
    task = supervised_task(model, stored(tmp_path / "store", comparisons(8, 1)))
    assert all(gradient is not None for gradient in stepped(without_data, model, task.losses))


def test_no_micro_batch_of_a_reward_model_waits(without_data: WithoutData) -> None:
    model = without_data.model(tiny_scorer().float())
    scoring, settings = Scoring(length_normalisation=2.0), Reward(batch_size=8, learning_rate=1e-4, length_penalty=0.1)

    def losses(ids: Sequence[int], segments: Segments) -> Losses:
        return reward.losses(model, None, settings, scoring, ids, segments)

    assert all(gradient is not None for gradient in stepped(without_data, model, losses))


def test_who_waits_is_caught(without_data: WithoutData) -> None:
    """Broken twins: the places that are read are found out on the device; a metric is fetched at once."""
    model = without_data.model(tiny(dtype=torch.float32))

    def finding(ids: Sequence[int], segments: Segments) -> Losses:
        del segments.__dict__["predicting"]
        return logprobs(model, segments).total[:, 0], {}

    def fetching(ids: Sequence[int], segments: Segments) -> Losses:
        total = logprobs(model, segments).total[:, 0]
        return total, {"mean": torch.tensor([total.mean().item()])}

    for losses, error in ((finding, DynamicOutputShapeException), (fetching, DataDependentOutputException)):
        with pytest.raises(error):
            stepped(without_data, model, losses)


def test_sums_are_those_of_a_plain_loop() -> None:
    sums, expected = Sums(), 0.0
    for part in torch.randn(50, 3, generator=torch.Generator().manual_seed(0)):
        sums.add({"one": part, "none": part[:0]})
        expected += part.sum().item()
    assert sums.to_floats() == {"one": (expected, 150), "none": (0.0, 0)}


# What torch refuses on CUDA under deterministic algorithms, by its own documentation, among what a training could use.


class Asked(TorchDispatchMode):
    """Every operation, and whether its first argument is of floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[tuple[str, bool]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        self.names.add((function.overloadpacket.__name__, first is not None and first.is_floating_point()))
        return function(*args, **(kwargs or {}))

    def refused(self) -> list[str]:
        floats = {"cumsum", "cumsum_", "median", "nanmedian", "histc", "kthvalue", "put_", "put", "scatter_reduce"}
        floats |= {"grid_sampler_2d", "nll_loss2d_forward", "_ctc_loss", "_embedding_bag", "bincount"}
        return sorted(name for name, is_float in self.names if name in floats and is_float)


@pytest.mark.parametrize("name", ROWS)
def test_no_training_uses_what_is_refused(name: str, tmp_path: Path) -> None:
    one = aligned(name, tmp_path)
    with Asked() as operations:
        one.accumulate(batch_of(one.store, list(range(7)), 60), {})
    assert len(operations.names) > 20 and not operations.refused()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_no_sampling_uses_what_is_refused(top_p: float) -> None:
    with Asked() as operations:
        if top_p < 1:
            sample_tokens(torch.randn(3, 9), torch.rand(3), 0.7, top_p)
        else:  # as on a GPU
            invert_exactly(torch.randn(3, 9), torch.rand(3), 0.7)
    assert operations.names and not operations.refused()


def test_what_is_refused_is_seen() -> None:
    with Asked() as operations:
        torch.ones(3).cumsum(0), torch.ones(3, dtype=torch.int64).cumsum(0)
    assert operations.refused() == ["cumsum"]


def test_sampling_from_whole_parts_is_sampling_from_the_sums() -> None:
    """As before by float64 sums, on 2,000 rows of 5,000 tokens: the same token each time."""
    draw = torch.Generator().manual_seed(3)
    for _ in range(4):
        logits, uniform = (
            3 * torch.randn(500, 5000, generator=draw),
            torch.rand(500, generator=draw, dtype=torch.float64),
        )
        sums = logits.double().softmax(-1).cumsum(-1)
        expected = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True).squeeze(-1)
        assert torch.equal(sample_tokens(logits, uniform, 1.0, 1.0), expected)
