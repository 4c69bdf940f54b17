"""A response that several pairs of a step share is computed once: loss, metrics and gradients are the plain path's."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from comparisons import comparisons, distance, stored, tiny, tiny_scorer
from loss_family import Live, aligned, batch_of
from prefdag.config.sections.adapter import Adapter
from prefdag.config.sections.reward import Reward
from prefdag.config.sections.training import Training
from prefdag.data.token_store import Comparison, Store
from prefdag.data.views import Unpaired, objective_view
from prefdag.models.adapters import attach
from prefdag.models.logprobs import divergence, logprobs, padded_rows
from prefdag.models.naive import float64_norms
from prefdag.models.packing import Segments, micro_batches, num_tokens, pack
from prefdag.models.repeats import iter_packed, pack_groups, repeat_groups
from prefdag.models.route import Route, set_route
from prefdag.rewards.fetched import _second_texts
from prefdag.rewards.model import RewardModel, Scoring
from prefdag.stages import reward
from prefdag.training import loop
from prefdag.training.loop import Batch, Task, Trainable
from prefdag.training.mismatched import MismatchedRatios
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.reference_cache import write_cache

NUM_PROMPTS, SAMPLES = 4, 4
# Losses that read sums, means, single tokens, whole distributions, single responses, and whole steps.
PAIR_ROWS = ["dpo", "simpo", "wpo", "tdpo2", "kto", "aot", "orpo per_token"]
STEP = [23, 0, 7, 12, 3, 1, 14, 5, 18, 2, 4, 13, 9]  # all pairs of the first prompt, some of the others


@pytest.fixture(autouse=True)
def _float64_norms() -> Iterator[None]:
    with float64_norms():
        yield


def all_pairs(num_responses: int = SAMPLES) -> list[Comparison]:
    """All pairs of the samples of each prompt, prompt by prompt."""
    samples = comparisons(NUM_PROMPTS, num_responses, seed=0)
    assert all(len({response.tobytes() for response in one.responses}) == num_responses for one in samples)
    return [Comparison(one.prompt, pair) for one in samples for pair in combinations(one.responses, 2)]


def pairs_store(folder: Path) -> Store:
    pairs = all_pairs()
    scores = [[2.0 + 0.1 * row, 1.3 - 0.05 * row] for row in range(len(pairs))]
    return stored(folder, pairs, scores, [row // 6 for row in range(len(pairs))])


def task_of(name: str, folder: Path, model: PreTrainedModel | None = None) -> PreferenceTask:
    """The loss of one row on all pairs of the samples."""
    one = aligned(name, folder / "other", model)
    view = objective_view(pairs_store(folder / "pairs"), one.objective)
    assert one.live is not None
    mismatched = None
    if isinstance(view, Unpaired):
        mismatched = MismatchedRatios(one.live, view, 0, 60)
        mismatched.model = one.model
    return replace(one, store=view, reference=Live(one.live, view), mismatched=mismatched)


def shared_batch(model: PreTrainedModel, store: Any, ids: list[int], budget: int) -> Batch:
    settings = Training(batch_size=16, learning_rate=1e-3, tokens_per_batch=budget)
    return loop._batch(model, store, store.lengths(), settings, 0, ids)


def measured(model: PreTrainedModel, task: Trainable, batch: Batch) -> dict[str, torch.Tensor]:
    """Loss, metrics and gradients of a step; gradients relative to the largest."""
    model.zero_grad()
    outcome = task.accumulate(batch, {})
    values = {"loss": outcome.loss} | outcome.metrics | outcome.state
    relative = {name: torch.tensor(value).double() / max(1.0, abs(value)) for name, value in values.items()}
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    scale = max(one.abs().max() for one in gradients.values())
    return relative | {f"gradient of {name}": one / scale for name, one in gradients.items()}


def ids_of(store: Any) -> list[int]:
    """The step's comparisons; of a view of single responses, both of each pair."""
    return [2 * index + k for index in STEP for k in (0, 1)] if isinstance(store, Unpaired) else STEP


@pytest.mark.parametrize("name", PAIR_ROWS)
def test_every_pair_loss_is_that_of_the_plain_packing(name: str, tmp_path: Path) -> None:
    one = task_of(name, tmp_path)
    ids = ids_of(one.store)
    plain = measured(one.model, one, batch_of(one.store, ids, 60))
    batch = shared_batch(one.model, one.store, ids, 60)
    assert any(segments.copies is not None for _, segments in batch.micro_batches())
    assert distance(measured(one.model, one, batch), plain) < 1e-9


def test_a_gather_of_wrong_responses_is_caught(tmp_path: Path) -> None:
    """The broken twin: two responses of the packed prompt change places."""
    one = task_of("dpo", tmp_path)
    plain = measured(one.model, one, batch_of(one.store, STEP, 60))
    groups = repeat_groups(STEP, one.store, 10_000)
    swapped = {first: replace(group, reads=[pair[::-1] for pair in group.reads]) for first, group in groups.items()}
    for parts, is_equal in ((groups, True), (swapped, False)):
        ids, segments = pack_groups(list(parts.values()), [[index] for index in range(len(parts))])
        batch = Batch(0, STEP, lambda ids=ids, segments=segments: iter([(ids, segments)]))
        if is_equal:
            assert distance(measured(one.model, one, batch), plain) < 1e-9
        else:  # lengths differ, so the reference's tokens do not fit, or the margin changes
            with pytest.raises((RuntimeError, AssertionError)):
                assert distance(measured(one.model, one, batch), plain) < 1e-4


@pytest.mark.parametrize("shape", ["gpt2", "gpt_neox", "qwen2"])
def test_architectures(shape: str, tmp_path: Path) -> None:
    one = task_of("dpo", tmp_path, tiny(shape))
    plain = measured(one.model, one, batch_of(one.store, STEP, 60))
    assert distance(measured(one.model, one, shared_batch(one.model, one.store, STEP, 10_000)), plain) < 1e-9


@pytest.mark.parametrize("name", ["dpo", "tdpo2", "kto"])
@pytest.mark.parametrize("kind", ["mask", "padded"])
def test_the_other_routes(kind: Any, name: str, tmp_path: Path) -> None:
    one = task_of(name, tmp_path)
    ids = ids_of(one.store)
    plain = measured(one.model, one, batch_of(one.store, ids, 60))
    for model in (one.model, one.live):
        set_route(model, Route(kind=kind, last_layer=False))
        model.set_attn_implementation("sdpa")
    assert distance(measured(one.model, one, shared_batch(one.model, one.store, ids, 10_000)), plain) < 1e-9


def test_an_adapter(tmp_path: Path) -> None:
    model = tiny()
    attach(model, Adapter(rank=3, alpha=6), seed=0)
    for number, parameter in enumerate(one for one in model.parameters() if one.requires_grad):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    one = task_of("dpo", tmp_path, model)
    plain = measured(model, one, batch_of(one.store, STEP, 60))
    assert distance(measured(model, one, shared_batch(model, one.store, STEP, 10_000)), plain) < 1e-9


@pytest.mark.parametrize("kind", ["segments", "padded"])
def test_reward_models(kind: Any, tmp_path: Path) -> None:
    model, store = tiny_scorer(), pairs_store(tmp_path)
    settings = Reward(batch_size=5, learning_rate=1e-2, length_normalisation=3)
    scoring = Scoring(length_normalisation=3)
    task = Task(functools.partial(reward.losses, model, store, settings, scoring), len)
    plain = measured(model, task, batch_of(store, STEP, 60))
    if kind == "padded":
        set_route(model, Route(kind="padded", last_layer=False))
        model.set_attn_implementation("sdpa")
    assert distance(measured(model, task, shared_batch(model, store, STEP, 10_000)), plain) < 1e-9


def test_rankings_share_responses_too(tmp_path: Path) -> None:
    """K = 3: the pairs of a prompt become triples that overlap."""
    one = aligned("plackett_luce", tmp_path / "other")
    samples = comparisons(NUM_PROMPTS, SAMPLES, seed=0)
    triples = [Comparison(c.prompt, part) for c in samples for part in combinations(c.responses, 3)]
    assert one.live is not None
    store = stored(tmp_path / "triples", triples)
    one = replace(one, store=store, reference=Live(one.live, store))
    ids = [9, 0, 3, 1, 2, 6, 5]
    plain = measured(one.model, one, batch_of(store, ids, 60))
    assert distance(measured(one.model, one, shared_batch(one.model, store, ids, 10_000)), plain) < 1e-9


def test_a_step_computes_each_response_once(tmp_path: Path) -> None:
    store = pairs_store(tmp_path)
    groups = repeat_groups(range(len(store)), store, 10_000)
    assert [group.ids for group in groups.values()] == [list(range(6 * p, 6 * p + 6)) for p in range(NUM_PROMPTS)]
    assert all(len(group.packed.responses) == SAMPLES for group in groups.values())
    samples = comparisons(NUM_PROMPTS, SAMPLES, seed=0)
    assert [num_tokens(group.packed) for group in groups.values()] == [num_tokens(one) for one in samples]


def test_groups_keep_to_the_budget(tmp_path: Path) -> None:
    store = pairs_store(tmp_path)
    for budget in (1, 15, 25, 40):
        groups = repeat_groups(range(len(store)), store, budget)
        assert sorted(index for group in groups.values() for index in group.ids) == list(range(len(store)))
        assert all(num_tokens(g.packed) <= budget or len(g.ids) == 1 for g in groups.values())


def test_a_step_without_repeats_is_packed_as_before() -> None:
    """Bit for bit: the same segments, in the same micro-batches. A prompt that is shared alone is no repeat."""
    pairs = all_pairs()
    step = [pairs[index] for index in (0, 5, 6, 12, 18, 23)]  # 0 and 5: one prompt, four responses
    lengths = np.array([num_tokens(one) for one in step])
    groups = repeat_groups([3, 0, 5, 1, 4, 2], step, 10_000)
    assert [group.ids for group in groups.values()] == [[index] for index in range(6)]
    sizes = {first: num_tokens(group.packed) for first, group in groups.items()}
    shared = [pack_groups([groups[one] for one in ids], rows) for ids, rows in micro_batches(list(groups), sizes, 60)]
    plain = [(ids, pack([step[one] for one in ids], rows)) for ids, rows in micro_batches(range(6), lengths, 60)]
    for (ids, segments), (expected_ids, expected) in zip(shared, plain, strict=True):
        assert ids == expected_ids and segments.copies is None
        for field in ("tokens", "positions", "comparison", "response", "predictor", "target", "owner", "last"):
            assert torch.equal(getattr(segments, field), getattr(expected, field))


def plain_packed(store: Any, budget: int) -> Iterator[tuple[list[int], Segments]]:
    """What `iter_packed` yields where no response is repeated."""
    pairs = [store[index] for index in range(len(store))]
    for ids, rows in micro_batches(range(len(pairs)), np.array([num_tokens(one) for one in pairs]), budget):
        yield ids, pack([pairs[index] for index in ids], rows)


def gathered(batches: Iterator[tuple[list[int], Segments]], compute: Callable[[Segments], list[torch.Tensor]]) -> Any:
    """Tensors [T] or [B, ...] of each micro-batch, by comparison; tokens by their owner."""
    result: dict[int, list[torch.Tensor]] = {}
    for ids, segments in batches:
        for values in compute(segments):
            for place, index in enumerate(ids):
                is_of = segments.owner // segments.shape[1] == place
                part = values[is_of] if len(values) == len(segments.owner) else values[place]
                result.setdefault(index, []).append(part.flatten())
    return torch.cat([part for index in sorted(result) for part in result[index]])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["segments", "padded"])
def test_passes_over_a_store(kind: Any, tmp_path: Path) -> None:
    """Log-probs, divergence, and rewards; each response of a prompt passes through the model once."""
    store, policy, other, scorer = pairs_store(tmp_path), tiny(), tiny(seed=1), tiny_scorer()
    if kind == "padded":
        for model in (policy, other, scorer):
            set_route(model, Route(kind="padded", last_layer=False))
            model.set_attn_implementation("sdpa")
    rewards = RewardModel((scorer,), Scoring(length_normalisation=3))

    def compute(segments: Segments) -> list[torch.Tensor]:
        apart = divergence(policy, other, segments)
        return [logprobs(policy, segments).tokens, apart.kl, apart.reference, rewards(segments)]

    truth = gathered(plain_packed(store, 60), compute)
    assert (gathered(iter_packed(store, 10_000), compute) - truth).abs().max() < 1e-9
    targets = sum(len(segments.target) for _, segments in iter_packed(store, 10_000))
    assert targets == sum(len(r) for one in comparisons(NUM_PROMPTS, SAMPLES, seed=0) for r in one.responses)
    pairs = [store[index] for index in range(len(store))]
    swapped = [Comparison(one.prompt, one.responses[::-1]) for one in pairs]
    with pytest.raises((RuntimeError, AssertionError)):
        assert (gathered(iter_packed(swapped, 10_000), compute) - truth).abs().max() < 1e-4


def test_the_reference_cache_without_repeats_is_as_before(tmp_path: Path) -> None:
    """Bit for bit; with repeats, within float32's rounding of the plain packing."""
    model = tiny(dtype=torch.float32)
    for name, store, tolerance in (
        ("once", stored(tmp_path / "once", comparisons(30, 2, seed=3)), 0.0),
        ("pairs", pairs_store(tmp_path / "pairs"), 1e-5),
    ):
        write_cache(model, store, tmp_path / f"{name}.npy", 60)
        with torch.no_grad():
            truth = gathered(plain_packed(store, 60), lambda segments: [logprobs(model, segments).tokens])
        assert (torch.from_numpy(np.load(tmp_path / f"{name}.npy")) - truth).abs().max() <= tolerance


def test_a_padded_reward_reads_each_comparisons_responses() -> None:
    """A row for each packed response, marked at its tokens: [P | R1 | R2 | R3] read as (R1, R3) and (R3, R2)."""
    prompt, first, second, third = np.array([5]), np.array([6]), np.array([7, 8]), np.array([9, 2, 3])
    pairs = [Comparison(prompt, (first, third)), Comparison(prompt, (third, second))]
    groups = repeat_groups([0, 1], pairs, 100)
    _, segments = pack_groups(list(groups.values()), [[0]])
    tokens, mask = padded_rows(segments)
    assert tokens.tolist() == [[5, 6, 0, 0], [5, 9, 2, 3], [5, 7, 8, 0]]
    assert segments.padded_row.flatten()[segments.last].tolist() == [[0, 1], [1, 2]]
    assert _second_texts(segments, mask).tolist() == [[0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0]]


def test_equal_responses_to_different_prompts_are_not_shared() -> None:
    first, second = comparisons(2, 2)
    other = Comparison(second.prompt, first.responses)
    assert [group.ids for group in repeat_groups([0, 1], [first, other], 10_000).values()] == [[0], [1]]
