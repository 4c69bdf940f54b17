"""The training loop: a generator of step records; the journal, the progress line and the tests are its readers.

A step's loss is a sum over its comparisons divided by the step's global normaliser, never a mean of means, so how the
step is packed into micro-batches does not change it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefdag.batches import members, micro_batches, num_steps
from prefdag.checkpoint import Checkpoint, told_to_stop
from prefdag.config.training import Training
from prefdag.errors import Stopped, UserError
from prefdag.models import autocast
from prefdag.segments import Segments, pack
from prefdag.store import Store

PROBES = 10
Losses = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """What a training minimises: the sum of `losses` over a step's comparisons, divided by `normaliser`.

    losses(ids, segments) returns one value per comparison, [B], and further per-comparison metrics, each [B];
    normaliser(ids) is the step's global count (of comparisons, or of tokens).
    """

    losses: Callable[[Sequence[int], Segments], Losses]
    normaliser: Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class Step:
    """One optimizer step. `metrics` are means over the step's comparisons."""

    number: int
    loss: float
    learning_rate: float
    grad_norm: float
    num_comparisons: int
    num_tokens: int
    metrics: dict[str, float]

    def values(self) -> dict[str, float]:
        """Everything measured, flat."""
        record = asdict(self)
        metrics = record.pop("metrics")
        del record["number"]
        return {**record, **metrics}


def total_steps(store: Store, settings: Training) -> int:
    return num_steps(len(store), settings.batch_size, settings.epochs, settings.max_steps)


def train(
    model: nn.Module,
    store: Store,
    settings: Training,
    task: Task,
    checkpoint: Checkpoint | None = None,
    probe: Callable[[], dict[str, float]] | None = None,
) -> Iterator[Step]:
    """Train `model` in place, yielding a record after each optimizer step.

    probe: further metrics of the model, measured about PROBES times in a training, the last step included.
    With a checkpoint the saved records are yielded again first, then the training goes on where it stopped.
    Raises `Stopped` after saving when told to stop, and `UserError` at a loss that is not finite.
    """
    optimizer = _optimizer(model, settings)
    lengths = store.lengths()
    history: list[dict[str, Any]] = []
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
        yield from (Step(**record) for record in history)
    steps = total_steps(store, settings)
    with told_to_stop() as stop:
        for number in range(len(history), steps):
            ids = members(number, len(store), settings.batch_size, settings.seed)
            rate = settings.learning_rate * schedule(number, steps, settings)
            record = _step(model, optimizer, store, ids, settings, task, number + 1, rate, lengths)
            if probe is not None and (number % max(1, steps // PROBES) == 0 or number + 1 == steps):
                record.metrics.update(probe())
            history.append(asdict(record))
            if checkpoint is not None and (stop or checkpoint.due()):
                checkpoint.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history})
            if stop:
                raise Stopped(stop[0])
            yield record


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    store: Store,
    ids: NDArray[np.int64],
    settings: Training,
    task: Task,
    number: int,
    rate: float,
    lengths: NDArray[np.int64],
) -> Step:
    device = next(model.parameters()).device
    normaliser = task.normaliser(ids.tolist())
    loss, sums = 0.0, dict[str, float]()
    for taken, rows in micro_batches(ids.tolist(), lengths, settings.tokens_per_batch):
        segments = pack([store[index] for index in taken], rows).to(device)
        with autocast(device):
            losses, metrics = task.losses(taken, segments)
        part = losses.sum() / normaliser
        part.backward()
        loss += part.item()
        for name, values in metrics.items():
            sums[name] = sums.get(name, 0.0) + values.sum().item()
    if not math.isfinite(loss):
        named = ", ".join(str(int(store.rows[index])) for index in ids)
        raise UserError(f"step {number}: the loss is {loss}; the step's source rows are {named}; lower learning_rate")
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm).item()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    means = {name: value / len(ids) for name, value in sums.items()}
    return Step(number, loss, rate, grad_norm, len(ids), int(lengths[ids].sum()), means)


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
