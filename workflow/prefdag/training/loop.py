"""The training loop: a generator of step records; the journal, the progress line and the tests are its readers.

A step's loss is never a mean of means: it is a sum over the step's comparisons divided by a global count, or one number
of the whole step (`prefdag.training.preference_task`); how the step is packed into micro-batches does not change it.

Several processes (ranks) deal a step's comparisons out among them, and add up gradients and losses before the update,
which each of them then makes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefdag.config.training import Training
from prefdag.data.token_store import Comparisons
from prefdag.distributed.collectives import all_gather_objects
from prefdag.distributed.fsdp import ShardedOptimizer, clip_gradients, full_tensor, reduce_gradients, shard
from prefdag.distributed.ranks import is_first, num_ranks, rank
from prefdag.errors import Stopped, UserError
from prefdag.models.loading import autocast
from prefdag.models.ops.recompute import recompute_blocks
from prefdag.models.ops.sparse_grad import sparse_embedding
from prefdag.models.packing import Segments, deal, micro_batches, num_steps, pack, step_members
from prefdag.training.checkpoint import Checkpoint, stop_requested
from prefdag.training.metrics import Sums, add_sums, to_floats, to_means

PROBES = 10
Losses = tuple[Tensor, dict[str, Tensor]]
MicroBatch = tuple[list[int], Segments]


@dataclass(frozen=True)
class Batch:
    """What one optimizer step sees: its comparisons in the seed's order, and this rank's packed into micro-batches.

    number: of the step, from 0. micro_batches(): (ids, segments) of each, on the model's device. idle: what this rank
    passes through beside its own, to add nothing, so that all ranks make the same number of passes.
    """

    number: int
    ids: list[int]
    micro_batches: Callable[[], Iterator[MicroBatch]]
    idle: Sequence[MicroBatch] = ()


@dataclass(frozen=True)
class Outcome:
    """What a backward pass through a step found. state: adaptive numbers as the next step is to be given them."""

    loss: float
    metrics: dict[str, float]
    state: dict[str, float]


class Trainable(Protocol):
    """What a training minimises."""

    def accumulate(self, batch: Batch, state: dict[str, float]) -> Outcome:
        """Add the gradient of the step's loss to the parameters'. state: {} at the first step."""
        ...


@dataclass(frozen=True)
class Task:
    """A loss that is a sum of `losses` over a step's comparisons, divided by `normaliser`; it has no state.

    losses(ids, segments) returns one value per comparison, [B], and metrics, each of the comparisons that have it;
    normaliser(ids) is the step's global count (of comparisons, or of tokens).
    """

    losses: Callable[[Sequence[int], Segments], Losses]
    normaliser: Callable[[Sequence[int]], float]

    def accumulate(self, batch: Batch, state: dict[str, float]) -> Outcome:
        """One pass: each micro-batch's part of the loss goes backward by itself."""
        normaliser, parts, sums = self.normaliser(batch.ids), list[Tensor](), Sums()
        for ids, segments in batch.micro_batches():
            with autocast(segments.owner.device):
                losses, metrics = self.losses(ids, segments)
            part = losses.sum() / normaliser
            part.backward()
            parts.append(part.detach())
            sums.add(metrics)
        for ids, segments in batch.idle:
            with autocast(segments.owner.device):
                (0 * self.losses(ids, segments)[0].sum()).backward()
        own = sum(to_floats(parts)), sums.to_floats()
        losses_of_ranks, sums_of_ranks = zip(*all_gather_objects(own), strict=True)
        return Outcome(sum(losses_of_ranks), to_means(add_sums(sums_of_ranks)), state)


@dataclass(frozen=True)
class Step:
    """One optimizer step. `metrics` are means over the step's comparisons; `state` is the loss's own after it."""

    number: int
    loss: float
    learning_rate: float
    grad_norm: float
    num_comparisons: int
    num_tokens: int
    metrics: dict[str, float]
    state: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Everything measured, flat."""
        record = asdict(self)
        metrics, state = record.pop("metrics"), record.pop("state")
        del record["number"]
        return {**record, **metrics, **{f"state_{name}": value for name, value in state.items()}}


def total_steps(store: Comparisons, settings: Training) -> int:
    return num_steps(len(store), settings.batch_size, settings.epochs, settings.max_steps)


def train(
    model: nn.Module,
    store: Comparisons,
    settings: Training,
    task: Trainable,
    checkpoint: Checkpoint | None = None,
    probe: Callable[[], dict[str, float]] | None = None,
    keep: Callable[[int], None] | None = None,
) -> Iterator[Step]:
    """Train `model` in place, yielding a record after each optimizer step.

    probe: further metrics of the model, measured about PROBES times in a training, the last step included.
    keep: called with the number of each step that was taken, before its state is saved: a training that goes on from
    there does not come by again.
    Several ranks each give their own copy of the same model, and get the same records; `sharded` leaves each of them
    its share of every layer, from then on.
    With a checkpoint the saved records are yielded again first, then the training goes on where it stopped.
    Raises `Stopped` after saving when told to stop, and `UserError` at a loss or a gradient that is not finite.
    """
    lengths = store.lengths()
    optimizer, history = _begun(model, settings, checkpoint)
    state = history[-1]["state"] if history else {}
    yield from (Step(**record) for record in history)
    steps = total_steps(store, settings)
    with stop_requested() as stop, recompute_blocks(model, settings.activation_gb):
        for number in range(len(history), steps):
            batch = _batch(model, store, lengths, settings, number)
            with sparse_embedding():
                outcome = task.accumulate(batch, state)
            state = outcome.state
            rate = settings.learning_rate * schedule(number, steps, settings)
            last_good = checkpoint.last_good() if checkpoint is not None else "no state was saved"
            grad_norm = _updated(optimizer, store, batch, outcome, settings, rate, last_good)
            num = len(batch.ids), int(lengths[batch.ids].sum())
            record = Step(number + 1, outcome.loss, rate, grad_norm, *num, outcome.metrics, state)
            if probe is not None and (number % max(1, steps // PROBES) == 0 or number + 1 == steps):
                record.metrics.update(probe())
            history.append(asdict(record))
            if keep is not None:
                keep(record.number)
            wishes = all_gather_objects((stop[:1], checkpoint is not None and checkpoint.due()))
            if checkpoint is not None and any(told or due for told, due in wishes):
                _save(model, optimizer, history, checkpoint)
            for told, _ in wishes:
                if told:
                    raise Stopped(told[0])
            yield record


def _begun(
    model: nn.Module, settings: Training, checkpoint: Checkpoint | None
) -> tuple[ShardedOptimizer, list[dict[str, Any]]]:
    """The optimizer, and the records of the steps that were taken before; the model as it was after them."""
    saved = None if checkpoint is None else checkpoint.load()
    if len(set(all_gather_objects(len(saved["history"]) if saved else 0))) > 1:
        raise UserError("the nodes find different saved states of this training; keep results on a disk that all share")
    if saved is not None:
        model.load_state_dict(saved["model"])
    if settings.sharding == "sharded":
        assert isinstance(model, PreTrainedModel)
        shard(model)
    optimizer = _optimizer(model, settings)
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
    return optimizer, [] if saved is None else saved["history"]


def _save(model: nn.Module, optimizer: ShardedOptimizer, history: list[dict[str, Any]], checkpoint: Checkpoint) -> None:
    """Save the state of the whole model; the ranks go on together."""
    state = {"model": full_tensor(model.state_dict()), "optimizer": optimizer.state_dict(), "history": history}
    if is_first():
        checkpoint.save(state)
    all_gather_objects("saved")


def _batch(model: nn.Module, store: Comparisons, lengths: NDArray[np.int64], settings: Training, number: int) -> Batch:
    device = next(model.parameters()).device
    ids = step_members(number, len(store), settings.batch_size, settings.seed).tolist()

    shares = deal(ids, lengths, num_ranks())
    planned = [list(micro_batches(share, lengths, settings.tokens_per_batch)) for share in shares]
    own, most = planned[rank()], max(map(len, planned))

    def packings() -> Iterator[MicroBatch]:
        for taken, rows in own:
            yield taken, pack([store[index] for index in taken], rows).to(device)

    shortest = min(ids, key=lambda index: lengths[index])
    idle = [([shortest], pack([store[shortest]]).to(device)) for _ in range(most - len(own))]
    return Batch(number, ids, packings, idle)


def _updated(
    optimizer: ShardedOptimizer,
    store: Comparisons,
    batch: Batch,
    outcome: Outcome,
    settings: Training,
    rate: float,
    last_good: str,
) -> float:
    """Take the step that the accumulated gradient asks for; returns the gradient's norm before it was clipped.

    A gradient that is not finite would leave no weight as it was, even where the loss is finite.
    """
    reduce_gradients(optimizer.parameters)
    grad_norm = clip_gradients(optimizer.parameters, settings.max_grad_norm)
    for what, value in (("loss", outcome.loss), ("gradient's norm", grad_norm)):
        if not math.isfinite(value):
            ids, rows = (", ".join(str(int(one)) for one in some) for some in (batch.ids, store.rows[batch.ids]))
            raise UserError(
                f"step {batch.number + 1}: the {what} is {value}; the step's comparisons are {ids} (source rows "
                f"{rows}); {last_good}; lower learning_rate, or look at these rows"
            )
    optimizer.step(rate)
    return grad_norm


def schedule(step: int, steps: int, settings: Training) -> float:
    """The factor on the learning rate at optimizer step `step` (from 0): linear warm-up, then the schedule to zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    match settings.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - progress
        case "constant":
            return 1.0


def _optimizer(model: nn.Module, settings: Training) -> ShardedOptimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    betas = (settings.adam_beta1, settings.adam_beta2)

    def make(parts: list[Tensor]) -> torch.optim.Optimizer:
        if settings.optimizer == "rmsprop":
            return torch.optim.RMSprop(parts, lr=rate, weight_decay=decay)
        return torch.optim.AdamW(parts, lr=rate, betas=betas, weight_decay=decay, fused=True)

    return ShardedOptimizer([parameter for parameter in model.parameters() if parameter.requires_grad], make)
