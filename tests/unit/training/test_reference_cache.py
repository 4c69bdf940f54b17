"""The reference cache equals the live reference, and a wrong one is refused."""

import json
import math
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from artifacts import BUDGET, cache_of, manifest_of
from comparisons import comparisons, stored, tiny
from prefdag.config.objectives import objective
from prefdag.config.sections.training import Training
from prefdag.data.token_store import Store
from prefdag.errors import UserError
from prefdag.models.logprobs import logprobs
from prefdag.models.packing import pack
from prefdag.models.repeats import iter_packed
from prefdag.provenance.manifest import Manifest, read_manifest
from prefdag.training.loop import train
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.records import Step
from prefdag.training.reference_cache import ReferenceCache, cache_key, check_key

CPU = torch.device("cpu")


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny(dtype=torch.float32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return stored(tmp_path / "store", comparisons(20, 2))


@pytest.fixture
def cache(model: PreTrainedModel, store: Store, tmp_path: Path) -> ReferenceCache:
    return cache_of(tmp_path / "reference", model, store)


@torch.no_grad()
def test_cached_equals_live_in_the_same_packing(model: PreTrainedModel, store: Store, cache: ReferenceCache) -> None:
    """Bit for bit."""
    for ids, segments in iter_packed(store, BUDGET):
        live, read = logprobs(model, segments), cache(ids, segments)
        assert torch.equal(read.tokens, live.tokens)
        assert torch.equal(read.owner, live.owner) and read.shape == live.shape
        assert torch.equal(read.total, live.total)


@torch.no_grad()
def test_cached_equals_live_in_any_packing(model: PreTrainedModel, store: Store, cache: ReferenceCache) -> None:
    """Other neighbours, other order: float32 sums in another order, within 1e-5 nats per token."""
    ids = [7, 3, 19, 0, 11]
    for rows in (None, [[0, 1, 2, 3, 4]], [[4, 0], [2], [1, 3]]):
        segments = pack([store[index] for index in ids], rows)
        assert (logprobs(model, segments).tokens - cache(ids, segments).tokens).abs().max() < 1e-5


@torch.no_grad()
def test_a_cache_read_for_other_comparisons_is_caught(
    model: PreTrainedModel, store: Store, cache: ReferenceCache
) -> None:
    """The broken twin: places in the micro-batch taken for places in the store."""
    equal = stored(store.folder.parent / "equal", [store[0]] * 2 + [store[5]] * 2)
    other = cache_of(store.folder.parent / "other", model, equal)
    segments = pack([equal[2], equal[0]])
    live = logprobs(model, segments).total
    assert (other([2, 0], segments).total - live).abs().max() < 1e-4
    with pytest.raises((AssertionError, RuntimeError)):
        assert (other([0, 1], segments).total - live).abs().max() < 1e-4


def test_a_split_without_comparisons_has_an_empty_cache(model: PreTrainedModel, tmp_path: Path) -> None:
    from prefdag.data.token_store import StoreWriter

    with StoreWriter(tmp_path / "empty", num_responses=2, scored=False):
        pass
    empty = Store.open(tmp_path / "empty")
    assert len(empty) == 0 and len(cache_of(tmp_path / "reference", model, empty).values) == 0


def first_step(model: PreTrainedModel, store: Store, cache: ReferenceCache, **entry: object) -> Step:
    """The first step of a training of another copy of the policy, checked as the stage checks it."""
    task = PreferenceTask(objective(entry, "tests", "row"), model, store, cache, start=1e-3)
    settings = Training(batch_size=8, learning_rate=1e-3, tokens_per_batch=100)
    return next(train(model.train(), store, settings, task))


def test_dpos_first_loss_is_ln_2(store: Store, cache: ReferenceCache) -> None:
    step = first_step(tiny(dtype=torch.float32), store, cache, method="dpo", beta=0.3)
    assert step.loss == pytest.approx(math.log(2), abs=1e-6)
    assert step.metrics["margin"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("logprob", ["summed", "averaged"])
def test_ipos_first_loss_is_its_target_squared(logprob: str, store: Store, cache: ReferenceCache) -> None:
    """(1 / (2 * 0.25))^2 = 4."""
    step = first_step(tiny(dtype=torch.float32), store, cache, method="ipo", beta=0.25, logprob=logprob)
    assert step.loss == pytest.approx(4, abs=1e-4)


def test_a_policy_that_is_not_the_reference_is_refused_before_it_moves(store: Store, cache: ReferenceCache) -> None:
    other = tiny(seed=1, dtype=torch.float32)
    before = torch.nn.utils.parameters_to_vector(other.parameters()).clone()
    with pytest.raises(UserError, match=r"step 1: the policy is not the reference \(log-ratios of"):
        first_step(other, store, cache, method="dpo")
    assert torch.equal(torch.nn.utils.parameters_to_vector(other.parameters()), before)


def test_only_the_first_step_is_checked(model: PreTrainedModel, store: Store, cache: ReferenceCache) -> None:
    """A policy that has learnt is not the reference any more, and need not be."""
    task = PreferenceTask(objective({"method": "dpo"}, "tests", "row"), model, store, cache, start=1e-3)
    settings = Training(batch_size=8, learning_rate=1e-2, tokens_per_batch=100, epochs=3)
    steps = list(train(model, store, settings, task))
    assert abs(steps[-1].metrics["chosen_logratio"]) > 0.1 and steps[-1].loss < math.log(2)


def test_verify_accepts_the_right_cache(model: PreTrainedModel, store: Store, cache: ReferenceCache) -> None:
    assert cache.verify(model, store) < 1e-5


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_verify_refuses_a_corrupted_cache(
    wrong: float, model: PreTrainedModel, store: Store, cache: ReferenceCache
) -> None:
    values = np.load(cache.path)
    values[-1] += wrong  # the last comparison is among those recomputed
    np.save(cache.path, values)
    corrupted = ReferenceCache(read_manifest(cache.path.parent / "manifest.json").file("train.npy"), store)
    with pytest.raises(UserError, match=r"train.npy: recomputed log-probs differ by .* rerun `reference`"):
        corrupted.verify(model, store)


def test_verify_refuses_another_models_cache(store: Store, cache: ReferenceCache) -> None:
    with pytest.raises(UserError, match="recomputed log-probs differ"):
        cache.verify(tiny(seed=1, dtype=torch.float32), store)


def test_a_cache_of_another_size_is_refused(cache: ReferenceCache, tmp_path: Path) -> None:
    """Of other comparisons; and cut short, which the manifest's size shows."""
    fewer = stored(tmp_path / "fewer", comparisons(19, 2))
    manifest = read_manifest(cache.path.parent / "manifest.json")
    with pytest.raises(UserError, match=r"train.npy: holds \d+ tokens, the comparisons \d+; .* rerun `reference`"):
        ReferenceCache(manifest.file("train.npy"), fewer)
    cache.path.write_bytes(cache.path.read_bytes()[:-4])
    with pytest.raises(UserError, match="missing, or not the file that manifest.json lists"):
        ReferenceCache(manifest.file("train.npy"), fewer)


@pytest.fixture
def inputs(tmp_path: Path, store: Store) -> tuple[Manifest, Manifest]:
    """Manifests of a policy and of comparisons."""
    policy = tmp_path / "policy"
    tiny(dtype=torch.float32).save_pretrained(policy / "model")
    stored(tmp_path / "comparisons" / "train", [store[index] for index in range(4)])
    return manifest_of(policy), manifest_of(tmp_path / "comparisons")


def keyed(folder: Path, key: object) -> Manifest:
    folder.mkdir(exist_ok=True)
    return manifest_of(folder, {"key": key})


def test_the_right_key_is_accepted(inputs: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    key = cache_key(*inputs, CPU)
    check_key(keyed(tmp_path / "cache", key), cache_key(*inputs, CPU))
    assert set(key["weights"]) == {"model/model.safetensors"}
    assert set(key["tokens"]) == {"train/tokens.npy", "train/offsets.npy"}
    assert key["versions"] == {name: metadata.version(name) for name in ("torch", "transformers")}


def test_a_key_of_other_weights_is_refused(inputs: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    tiny(seed=1, dtype=torch.float32).save_pretrained(tmp_path / "other" / "model")
    made = keyed(tmp_path / "cache", cache_key(manifest_of(tmp_path / "other"), inputs[1], CPU))
    with pytest.raises(UserError, match="this cache was made with other weights; delete the cache's manifest"):
        check_key(made, cache_key(*inputs, CPU))


def test_a_key_of_other_tokens_is_refused(inputs: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    """One token of one comparison differs."""
    tokens = np.load(tmp_path / "comparisons/train/tokens.npy")
    tokens[3] += 1
    np.save(tmp_path / "comparisons/train/tokens.npy", tokens)
    made = keyed(tmp_path / "cache", cache_key(*inputs, CPU))
    with pytest.raises(UserError, match="made with other tokens"):
        check_key(made, cache_key(inputs[0], manifest_of(tmp_path / "comparisons"), CPU))


def test_a_key_of_another_precision_is_refused(inputs: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    made = keyed(tmp_path / "cache", cache_key(*inputs, torch.device("cuda")))
    with pytest.raises(UserError, match="made with other dtype"):
        check_key(made, cache_key(*inputs, CPU))


@pytest.mark.parametrize(("field", "value"), [("versions", {"torch": "1.0"}), ("attention", "eager")])
def test_a_key_of_other_software_is_refused(
    field: str, value: object, inputs: tuple[Manifest, Manifest], tmp_path: Path
) -> None:
    key = json.loads(json.dumps(cache_key(*inputs, CPU))) | {field: value}
    with pytest.raises(UserError, match=f"made with other {field}"):
        check_key(keyed(tmp_path / "cache", key), cache_key(*inputs, CPU))
    del key[field]
    with pytest.raises(UserError, match=f"made with other {field}"):
        check_key(keyed(tmp_path / "older", key), cache_key(*inputs, CPU))
