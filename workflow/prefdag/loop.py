"""The training loop: a generator of step records; the journal, the progress line and the tests are its readers.

A step's loss is never a mean of means: it is a sum over the step's comparisons divided by a global count, or one number
of the whole step (`prefdag.alignment`); how the step is packed into micro-batches does not change it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefdag.batches import members, micro_batches, num_steps
from prefdag.checkpoint import Checkpoint, told_to_stop
from prefdag.config.training import Training
from prefdag.errors import Stopped, UserError
from prefdag.gradients import in_place
from prefdag.models import autocast
from prefdag.recompute import recomputed
from prefdag.segments import Segments, pack
from prefdag.store import Comparisons

PROBES = 10
Losses = tuple[Tensor, dict[str, Tensor]]
MicroBatch = tuple[list[int], Segments]


@dataclass(frozen=True)
class Batch:
    """What one optimizer step sees: its comparisons in the seed's order, and the same ones packed into micro-batches.

    number: of the step, from 0. micro_batches(): (ids, segments) of each, on the model's device.
    """

    number: int
    ids: list[int]
    micro_batches: Callable[[], Iterator[MicroBatch]]


class Sums:
    """Metrics summed over the comparisons that have them: a metric's tensor holds one value of each of those."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        for name, values in metrics.items():
            total, num = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + values.sum().item(), num + len(values))

    def means(self) -> dict[str, float]:
        """Per metric the mean over the comparisons that have it; a metric that none has is left out."""
        return {name: total / num for name, (total, num) in self._sums.items() if num}


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
        normaliser, loss, sums = self.normaliser(batch.ids), 0.0, Sums()
        for ids, segments in batch.micro_batches():
            with autocast(segments.owner.device):
                losses, metrics = self.losses(ids, segments)
            part = losses.sum() / normaliser
            part.backward()
            loss += part.item()
            sums.add(metrics)
        return Outcome(loss, sums.means(), state)


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
    With a checkpoint the saved records are yielded again first, then the training goes on where it stopped.
    Raises `Stopped` after saving when told to stop, and `UserError` at a loss or a gradient that is not finite.
    """
    optimizer = _optimizer(model, settings)
    lengths = store.lengths()
    history: list[dict[str, Any]] = []
    state: dict[str, float] = {}
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        history = saved["history"]
        state = history[-1]["state"]
        yield from (Step(**record) for record in history)
    steps = total_steps(store, settings)
    with told_to_stop() as stop, recomputed(model, settings.activation_gb):
        for number in range(len(history), steps):
            batch = _batch(model, store, lengths, settings, number)
            with in_place():
                outcome = task.accumulate(batch, state)
            state = outcome.state
            rate = settings.learning_rate * schedule(number, steps, settings)
            last_good = checkpoint.last_good() if checkpoint is not None else "no state was saved"
            grad_norm = _updated(model, optimizer, store, batch, outcome, settings, rate, last_good)
            num = len(batch.ids), int(lengths[batch.ids].sum())
            record = Step(number + 1, outcome.loss, rate, grad_norm, *num, outcome.metrics, state)
            if probe is not None and (number % max(1, steps // PROBES) == 0 or number + 1 == steps):
                record.metrics.update(probe())
            history.append(asdict(record))
            if keep is not None:
                keep(record.number)
            if checkpoint is not None and (stop or checkpoint.due()):
                checkpoint.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history})
            if stop:
                raise Stopped(stop[0])
            yield record


def _batch(model: nn.Module, store: Comparisons, lengths: NDArray[np.int64], settings: Training, number: int) -> Batch:
    device = next(model.parameters()).device
    ids = members(number, len(store), settings.batch_size, settings.seed).tolist()

    def packings() -> Iterator[MicroBatch]:
        for taken, rows in micro_batches(ids, lengths, settings.tokens_per_batch):
            yield taken, pack([store[index] for index in taken], rows).to(device)

    return Batch(number, ids, packings)


def _updated(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
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
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm).item()
    for what, value in (("loss", outcome.loss), ("gradient's norm", grad_norm)):
        if not math.isfinite(value):
            ids, rows = (", ".join(str(int(one)) for one in some) for some in (batch.ids, store.rows[batch.ids]))
            raise UserError(
                f"step {batch.number + 1}: the {what} is {value}; the step's comparisons are {ids} (source rows "
                f"{rows}); {last_good}; lower learning_rate, or look at these rows"
            )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
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


def _optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
