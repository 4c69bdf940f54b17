"""Interrupted and resumed equals uninterrupted, bit for bit: weights, records, probes."""

import os
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from artifacts import cache_of
from comparisons import comparisons, stored, tiny
from prefdag.config.objectives import objective
from prefdag.config.sections.training import Training
from prefdag.data.token_store import Store
from prefdag.errors import Stopped, UserError
from prefdag.training.checkpoint import Checkpoint, WeightsKeeper, stop_requested
from prefdag.training.loop import Task, train
from prefdag.training.preference_metrics import Displacement
from prefdag.training.preference_task import PreferenceTask
from prefdag.training.records import Step
from prefdag.training.reference_cache import ReferenceCache, write_cache

STEPS = 12
OPTIMIZERS = ["adamw", "rmsprop"]


class Run:
    """One process's worth of a DPO training: everything made afresh but the store, the cache and the checkpoint."""

    def __init__(self, store: Store, reference: ReferenceCache, optimizer: str) -> None:
        self.model = tiny(dtype=torch.float32)
        self.task = PreferenceTask(objective({"method": "dpo"}, "tests", "row"), self.model, store, reference)
        self.store = store
        self.settings = Training(
            batch_size=4, learning_rate=1e-2, max_steps=STEPS, epochs=9, optimizer=optimizer, warmup_steps=3,
            weight_decay=0.1, tokens_per_batch=60,
        )  # fmt: skip

    def steps(self, checkpoint: Checkpoint | None = None, keeper: WeightsKeeper | None = None) -> Iterator[Step]:
        probe = Displacement(self.model, self.store, 60)  # measured before any state is loaded, as the stage does
        return train(self.model, self.store, self.settings, self.task, checkpoint, probe, keeper)

    def same_weights(self, other: "Run") -> bool:
        theirs = other.model.state_dict()
        return all(torch.equal(value, theirs[name]) for name, value in self.model.state_dict().items())


class LongAgo(Checkpoint):
    """Never due: only a wish to stop makes it save."""

    def due(self) -> bool:
        return False


def read(steps: Iterator[Step], seen: list[Step]) -> None:
    for step in steps:
        seen.append(step)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return stored(tmp_path / "store", comparisons(18, 2))


@pytest.fixture
def reference(store: Store, tmp_path: Path) -> ReferenceCache:
    return cache_of(tmp_path / "reference", tiny(dtype=torch.float32), store)


def test_the_cache_fixture_is_what_write_cache_wrote(store: Store, reference: ReferenceCache, tmp_path: Path) -> None:
    assert write_cache(tiny(dtype=torch.float32), store, tmp_path / "again.npy", 100) == len(reference.values)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_training_resumes_bit_for_bit(
    optimizer: str, store: Store, reference: ReferenceCache, tmp_path: Path
) -> None:
    """The process vanishes after step 5, which was saved."""
    whole = Run(store, reference, optimizer)
    expected = list(whole.steps())
    killed = Run(store, reference, optimizer)
    steps = killed.steps(Checkpoint(tmp_path / "resume", seconds_between=0))
    assert list(islice(steps, 5)) == expected[:5]
    steps.close()
    assert not killed.same_weights(whole)
    resumed = Run(store, reference, optimizer)
    assert list(resumed.steps(Checkpoint(tmp_path / "resume", seconds_between=0))) == expected
    assert resumed.same_weights(whole)
    assert len(expected) == STEPS and "held_out_margin" in expected[-1].metrics


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_told_to_stop_saves_and_resumes_bit_for_bit(
    optimizer: str, store: Store, reference: ReferenceCache, tmp_path: Path
) -> None:
    """A real SIGTERM in the middle of step 6: the step is finished, saved, and `Stopped` is raised."""
    whole = Run(store, reference, optimizer)
    expected = list(whole.steps())
    stopped, sent = Run(store, reference, optimizer), []
    right, before = stopped.task.task(0), signal.getsignal(signal.SIGTERM)

    def losses(ids, segments):
        if len(seen) == 5 and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return right.losses(ids, segments)

    stopped.task, seen = Task(losses, right.normaliser), []
    with pytest.raises(Stopped, match="SIGTERM"):
        read(stopped.steps(LongAgo(tmp_path / "resume")), seen)
    assert seen == expected[:5] and signal.getsignal(signal.SIGTERM) is before
    resumed = Run(store, reference, optimizer)
    steps = resumed.steps(LongAgo(tmp_path / "resume"))
    assert list(islice(steps, 6)) == expected[:6], "the saved records come first, step 6 among them"
    assert list(steps) == expected[6:]
    assert resumed.same_weights(whole)


def test_a_finished_training_is_only_read_again(store: Store, reference: ReferenceCache, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "resume", seconds_between=0)
    whole = Run(store, reference, "adamw")
    expected = list(whole.steps(checkpoint))
    again = Run(store, reference, "adamw")
    again.task = Task(lambda ids, segments: pytest.fail("a step was taken"), len)
    assert list(again.steps(checkpoint)) == expected and again.same_weights(whole)


def keeper_of(run: Run, folder: Path) -> WeightsKeeper:
    """Checkpoints of steps 4 and 8 of `run`; its tokenizer is a folder with one file."""
    (folder.parent / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder.parent / "tokenizer/tokenizer.json").write_text("{}")
    return WeightsKeeper(folder, (4, 8), run.model, folder.parent / "tokenizer")


def published(keeper: WeightsKeeper, folder: Path) -> dict[str, bytes]:
    """Every file of the checkpoints, by name."""
    keeper.publish(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("saved_at", [3, 4, 5, 8, 12])
def test_kept_checkpoints_are_those_of_an_undisturbed_training(
    saved_at: int, store: Store, reference: ReferenceCache, tmp_path: Path
) -> None:
    """The last state before the process vanished is of a step before, at, and after a checkpoint."""

    class SavedAt(Checkpoint):
        def due(self) -> bool:
            return len(taken) + 1 == saved_at

    whole, killed, resumed = (Run(store, reference, "adamw") for _ in range(3))
    taken = list(whole.steps(keeper=(keeper := keeper_of(whole, tmp_path / "whole"))))
    expected = published(keeper, tmp_path / "expected")
    assert {name.split("/")[0] for name in expected} == {"4", "8"} and "4/model.safetensors" in expected
    assert expected["4/model.safetensors"] != expected["8/model.safetensors"]
    taken, steps = [], killed.steps(SavedAt(tmp_path / "resume"), keeper_of(killed, tmp_path / "resume/checkpoints"))
    for step in islice(steps, min(saved_at + 2, STEPS)):
        taken.append(step)
    steps.close()
    keeper = keeper_of(resumed, tmp_path / "resume/checkpoints")
    list(resumed.steps(LongAgo(tmp_path / "resume"), keeper))
    assert published(keeper, tmp_path / "found") == expected


def test_a_training_stopped_at_a_kept_step_has_kept_it(store: Store, reference: ReferenceCache, tmp_path: Path) -> None:
    """SIGTERM in the middle of step 4: the record is not yielded, the state is saved, and so is the checkpoint."""
    whole, stopped, resumed = (Run(store, reference, "adamw") for _ in range(3))
    list(whole.steps(keeper=(keeper := keeper_of(whole, tmp_path / "whole"))))
    right = stopped.task.task(0)

    def losses(ids, segments):
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return right.losses(ids, segments)

    stopped.task, seen = Task(losses, right.normaliser), []
    with pytest.raises(Stopped):
        read(stopped.steps(LongAgo(tmp_path / "resume"), keeper_of(stopped, tmp_path / "resume/checkpoints")), seen)
    again = keeper_of(resumed, tmp_path / "resume/checkpoints")
    list(resumed.steps(LongAgo(tmp_path / "resume"), again))
    assert published(again, tmp_path / "found") == published(keeper, tmp_path / "expected")


@pytest.mark.parametrize("lost", ["optimizer", "model"])
def test_a_checkpoint_that_loses_state_is_caught(
    lost: str, store: Store, reference: ReferenceCache, tmp_path: Path
) -> None:
    """The broken twins: moments that start from nothing again, weights that start from the beginning again."""

    class Forgetful(Checkpoint):
        def load(self):
            state = super().load()
            fresh = tiny(dtype=torch.float32).state_dict()
            return state | {"model": fresh} if lost == "model" else _without_moments(state)

    whole, killed, resumed = (Run(store, reference, "adamw") for _ in range(3))
    list(whole.steps())
    list(islice(killed.steps(Checkpoint(tmp_path / "resume", seconds_between=0)), 5))
    list(resumed.steps(Forgetful(tmp_path / "resume")))
    assert not resumed.same_weights(whole)


def _without_moments(state: dict) -> dict:
    return state | {"optimizer": state["optimizer"] | {"state": {}}}


def test_a_checkpoint_is_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that dies half-way leaves the one before it in place."""
    checkpoint = Checkpoint(tmp_path / "resume")
    assert checkpoint.load() is None and not checkpoint.due()
    checkpoint.save({"history": [1]})

    def half_way(state: object, path: Path) -> None:
        path.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", half_way)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save({"history": [1, 2]})
    assert checkpoint.load() == {"history": [1]}


@pytest.mark.parametrize("damage", ["one bit", "cut", "empty", "no zip"])
def test_a_damaged_state_is_a_sentence(damage: str, tmp_path: Path) -> None:
    """A bit in the middle of a tensor: torch reads another number there and says nothing."""
    checkpoint = Checkpoint(tmp_path / "resume")
    checkpoint.save({"history": [1, 2], "model": torch.zeros(50_000)})
    assert checkpoint.last_good() == f"the last good state is step 2's, {checkpoint.path}"
    data = bytearray(checkpoint.path.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = {"one bit": data, "cut": data[:-100], "empty": b"", "no zip": b"state" * 1000}
    checkpoint.path.write_bytes(damaged[damage])
    if damage == "one bit":
        assert torch.load(checkpoint.path, weights_only=True)["model"].sum() != 0
    with pytest.raises(UserError, match=f"{checkpoint.path}: .* is damaged; delete {tmp_path}/resume and rerun: the"):
        checkpoint.load()


@pytest.mark.parametrize("damage", ["one bit", "gone"])
def test_damaged_kept_weights_are_a_sentence(damage: str, store: Store, reference: ReferenceCache, tmp_path: Path):
    run = Run(store, reference, "adamw")
    keeper = keeper_of(run, tmp_path / "resume/checkpoints")
    keeper(4)
    keeper(8)
    path = tmp_path / "resume/checkpoints/8/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    if damage == "gone":
        path.unlink()
    with pytest.raises(UserError, match=f"{path.parent}: .* missing or damaged; delete {tmp_path}/resume and rerun"):
        keeper.publish(tmp_path / "published")


def test_signals_are_noted_by_name_and_handlers_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_requested() as noted:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert noted == ["SIGINT", "SIGTERM"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
