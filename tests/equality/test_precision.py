"""bf16 on a CPU: errors against float64, packed against padded, resume, processes, and that a training trains."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import benchmarks.half
from artifacts import cache_of, manifest_of
from benchmarks.half import errors_in_half
from comparisons import comparisons, stored, tiny
from on_policy import ROWS, online_training, watched
from prefdag.config.objectives import objective
from prefdag.config.sections.training import Training
from prefdag.data.token_store import Store
from prefdag.models.attention import tiled
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.naive import naive_logprobs
from prefdag.models.ops.device import autocast, use_precision
from prefdag.models.ops.half_linear import HalfLinear, use_half_linears, use_plain_linears
from prefdag.models.ops.vocabulary import half_copy, in_place_gradients
from prefdag.models.packing import Segments, pack
from prefdag.online.round import Round
from prefdag.training.checkpoint import Checkpoint
from prefdag.training.loop import train
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.records import Step
from prefdag.training.reference_cache import TOLERANCE, cache_key
from ranks import Trial, crew

CPU = torch.device("cpu")
ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "qwen2", "mistral"]


@pytest.fixture(autouse=True)
def in_bf16() -> Iterator[None]:
    use_precision("bfloat16")
    yield
    use_precision(None)


def half(architecture: str = "llama") -> PreTrainedModel:
    model = tiny(architecture, dtype=torch.float32)
    use_half_linears(model)
    return model


@pytest.mark.parametrize(("architecture", "longest"), [*((name, 8) for name in ARCHITECTURES), ("llama", 100)])
def test_the_error_is_at_most_twice_that_of_padded_rows_under_autocast(architecture: str, longest: int) -> None:
    """Norms of the errors of log-probs and of gradients against float64; long rows attend in tiles."""
    model = half(architecture)
    errors = errors_in_half(model, comparisons(20, 2, longest=longest))
    assert 0 < errors["logprobs"] <= 2 and 0 < errors["gradients"] <= 2


def test_the_bound_is_able_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs that are 5 % off, and so their gradients, break it."""

    def scaled(model: PreTrainedModel, segments: Segments) -> LogProbs:
        values = logprobs(model, segments)
        return LogProbs(1.05 * values.tokens, values.owner, values.shape)

    monkeypatch.setattr(benchmarks.half, "logprobs", scaled)
    errors = errors_in_half(half(), comparisons(20, 2))
    assert errors["logprobs"] > 2 and errors["gradients"] > 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_are_padded_rows_within_the_stated_tolerance(architecture: str) -> None:
    model, pairs = half(architecture), comparisons(12, 2)
    with torch.no_grad(), autocast(CPU):
        ours, padded = logprobs(model, pack(pairs)), naive_logprobs(model, pairs)
    assert 0 < (ours.tokens - padded.tokens).abs().max() < TOLERANCE["bfloat16"]


def test_layers_are_plain_without_autocast_and_after_being_turned_back() -> None:
    model, pairs = half(), pack(comparisons(3, 2))
    expected = logprobs(tiny(dtype=torch.float32), pairs).tokens
    assert any(type(module) is HalfLinear for module in model.modules())
    assert torch.equal(logprobs(model, pairs).tokens, expected)
    use_plain_linears(model)
    assert not any(type(module) is HalfLinear for module in model.modules())


def test_a_copy_is_cast_again_once_the_weight_has_changed() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4))
    first = half_copy(weight, torch.bfloat16)
    assert half_copy(weight, torch.bfloat16) is first
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.5, fused=True).step()
    assert torch.equal(half_copy(weight, torch.bfloat16), weight.detach().bfloat16())
    assert not torch.equal(half_copy(weight, torch.bfloat16), first)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layers_gradient_is_added_in_float32(bias: bool) -> None:
    """Two micro-batches of integers, whose products bf16 holds exactly: the sum is exact, 257 included."""
    layer = torch.nn.Linear(2, 2, bias=bias)
    use_half_linears(model := torch.nn.Sequential(layer))
    with in_place_gradients():
        for states in (torch.full((1, 2), 256.0), torch.ones(1, 2)):
            with autocast(CPU):
                out = model(states)
            out.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.eq(257).all()
    if bias:
        assert layer.bias.grad is not None and layer.bias.grad.eq(2).all()


class Run:
    """One process's worth of a DPO training in bf16."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.model = half()
        cache = cache_of(folder, self.model, store)
        self.task = PreferenceTask(
            objective({"method": "dpo"}, "tests", "row"), self.model, store, cache, start=TOLERANCE["bfloat16"]
        )
        self.store = store
        self.settings = Training(
            batch_size=4, learning_rate=1e-2, max_steps=12, epochs=9, tokens_per_batch=60, precision="bfloat16"
        )

    def steps(self, checkpoint: Checkpoint | None = None) -> Iterator[Step]:
        return train(self.model, self.store, self.settings, self.task, checkpoint)


def test_a_killed_training_resumes_bit_for_bit_and_learns(tmp_path: Path) -> None:
    """The first loss is ln 2: policy and reference are the same bf16 arithmetic. The masters stay in float32."""
    store = stored(tmp_path / "store", comparisons(16, 2))
    whole = Run(store, tmp_path / "first")
    expected = list(whole.steps())
    killed = Run(store, tmp_path / "second")
    assert list(islice(killed.steps(Checkpoint(tmp_path / "resume", seconds_between=0)), 5)) == expected[:5]
    resumed = Run(store, tmp_path / "third")
    assert list(resumed.steps(Checkpoint(tmp_path / "resume", seconds_between=0))) == expected
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.model.state_dict().items())
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())
    assert expected[0].loss == pytest.approx(math.log(2), abs=1e-2) and expected[-1].loss < 0.4


def test_the_first_step_is_not_compared_with_a_reference_in_float32(tmp_path: Path) -> None:
    """The cache's key names the precision, so that the job refuses another one's cache."""
    (tmp_path / "model").mkdir()
    manifest = manifest_of(tmp_path / "model")
    in_half = cache_key(manifest, manifest, CPU)
    use_precision(None)
    assert in_half["dtype"] == "bfloat16" and cache_key(manifest, manifest, CPU)["dtype"] == "float32"


@pytest.mark.parametrize(
    ("name", "changes"),
    [("rloo", {"minibatches": 1}), ("dr_grpo", {}), ("ppo shared", {}), ("ppo one update", {"entropy": 0.01})],
)
def test_an_on_policy_update_in_bf16_is_near_that_in_float32(
    name: str, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled in float32; in the update rows attend in tiles, whose backward pass is in float32 in both."""
    monkeypatch.setattr(tiled, "MIN_LENGTH", 0)
    update, gradients = Round.update, list[torch.Tensor]()
    for precision in ("float32", "bfloat16"):

        def in_precision(*arguments: Any, precision: Any = precision) -> Any:
            use_precision(precision)
            try:
                return update(*arguments)
            finally:
                use_precision("float32")

        use_precision("float32")
        monkeypatch.setattr(Round, "update", in_precision)
        training = online_training({**ROWS[name], **changes, "max_steps": 1})
        use_half_linears(training.models.policy)
        training.optimizers = watched(training, seen := list[torch.Tensor]())
        assert len(list(training.rounds())) == 1
        gradients.append(seen[0])
    assert 0 < (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_two_processes_are_one_within_the_rounding_of_their_gradients(tmp_path: Path) -> None:
    """A micro-batch's gradient of a weight is rounded to bf16 before it is added: 2^-8 of each part."""
    trials = {"dpo": Trial("dpo", dtype=torch.float32, precision="bfloat16")}
    one, two = (crew(size, trials, tmp_path)["dpo"][0] for size in (1, 2))
    for left, right in zip(one["gradients"][0], two["gradients"][0], strict=True):
        assert (left - right).norm() <= 2**-7 * left.norm()
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-2)
