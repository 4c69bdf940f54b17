"""The training loop: a generator of step records.

One step of a DPO run, in the order in which to read it:

1. `stages.preference.run` opens the inputs and builds a `PreferenceTask`;
2. `training.loop.train` picks the step's comparisons (`training.step_order`), and `models.packing` packs them into
   micro-batches, a response that several of them share once (`models.repeats`);
3. `training.preference_task.PreferenceTask` evaluates the loss on one micro-batch, from
4. `models.logprobs.logprobs`: hidden states of a packed batch, then log-probs by `models.ops.vocabulary`;
   attention is `models.attention.interface`;
5. `training.reference_cache.ReferenceCache`: the reference's log-probs of the same tokens;
6. `losses.pairwise.dpo`: the equation;
7. `training.loop._update`: clip the gradient and step the optimizer (`distributed.fsdp`);
8. `training.records`: means of the metrics, curves.csv and the journal; `training.checkpoint`: the resumable state.

A loss over a whole step, such as KTO's, goes through `training.gradient_caching` between 3 and 6.

A step's loss is a sum over its comparisons divided by a global count, never a mean of micro-batch means, so packing
does not change it. With several processes (ranks) each takes a share of the step's comparisons; gradients and losses
are summed over the ranks before the update.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefdag.config.sections.training import Training
from prefdag.data.token_store import Comparisons
from prefdag.distributed.collectives import all_gather_objects
from prefdag.distributed.fsdp import ShardedOptimizer, clip_gradients, full_tensor, reduce_gradients, shard
from prefdag.distributed.ranks import is_first, num_ranks, rank
from prefdag.errors import Stopped, UserError
from prefdag.models.adapters import load_trained_state, trained_state
from prefdag.models.ops.device import autocast
from prefdag.models.ops.half_linear import use_plain_linears
from prefdag.models.ops.recompute import recompute_blocks
from prefdag.models.ops.seeded_dropout import dropout_of_step
from prefdag.models.ops.vocabulary import in_place_gradients
from prefdag.models.packing import Segments, deal, micro_batches, num_steps, num_tokens, pack
from prefdag.models.repeats import pack_groups, repeat_groups
from prefdag.training.checkpoint import Checkpoint, stop_requested
from prefdag.training.records import Step, Sums, add_sums, to_floats, to_means
from prefdag.training.step_order import step_order

PROBES = 10
Losses = tuple[Tensor, dict[str, Tensor]]  # of each comparison [B], and metrics of the comparisons that have them
MicroBatch = tuple[list[int], Segments]


@dataclass(frozen=True)
class Batch:
    """The comparisons of one optimizer step.

    number: of the step, from 0. ids: every comparison of the step, in the seed's order. micro_batches(): this rank's
    share as (ids, segments) on the model's device. padding: micro-batches that this rank runs without adding to the
    gradient, because FSDP's collectives need the same number of passes on every rank.
    """

    number: int
    ids: list[int]
    micro_batches: Callable[[], Iterator[MicroBatch]]
    padding: Sequence[MicroBatch] = ()


@dataclass(frozen=True)
class Outcome:
    """The result of the backward pass of one step. state: the loss's adaptive numbers for the next step."""

    loss: float
    metrics: dict[str, float]
    state: dict[str, float]


class Trainable(Protocol):
    """A loss that `train` can minimise."""

    def accumulate(self, batch: Batch, state: dict[str, float]) -> Outcome:
        """Add the gradient of the step's loss to the parameters' `.grad`. state: {} at the first step."""
        ...


@dataclass(frozen=True)
class Task:
    """A stateless loss: the sum of `losses` over a step's comparisons, divided by `normaliser`.

    losses(ids, segments): one value per comparison [B], and metrics. normaliser(ids): the step's global count, of
    comparisons or of tokens.
    """

    losses: Callable[[Sequence[int], Segments], Losses]
    normaliser: Callable[[Sequence[int]], float]

    def accumulate(self, batch: Batch, state: dict[str, float]) -> Outcome:
        """Run one forward and one backward pass per micro-batch."""
        normaliser, parts, sums = self.normaliser(batch.ids), list[Tensor](), Sums()
        for ids, segments in batch.micro_batches():
            with autocast(segments.owner.device):
                losses, metrics = self.losses(ids, segments)
            part = losses.sum() / normaliser
            part.backward()
            parts.append(part.detach())  # no .item(): it would wait for the GPU at every micro-batch
            sums.add(metrics)
        for ids, segments in batch.padding:
            with autocast(segments.owner.device):
                (0 * self.losses(ids, segments)[0].sum()).backward()
        gathered = all_gather_objects((sum(to_floats(parts)), sums.to_floats()))
        losses_of_ranks, sums_of_ranks = zip(*gathered, strict=True)
        return Outcome(sum(losses_of_ranks), to_means(add_sums(sums_of_ranks)), state)


def total_steps(store: Comparisons, settings: Training) -> int:
    """Return the number of optimizer steps of a training."""
    return num_steps(len(store), settings.batch_size, settings.epochs, settings.max_steps)


def train(
    model: nn.Module,
    store: Comparisons,
    settings: Training,
    task: Trainable,
    checkpoint: Checkpoint | None = None,
    probe: Callable[[], dict[str, float]] | None = None,
    save_weights: Callable[[int], None] | None = None,
) -> Iterator[Step]:
    """Train a model in place, yielding a record after each optimizer step.

    Every rank calls this with a replica of the same model and gets the same records; with `sharding: sharded` each
    rank is left with its shard of every layer.

    Args:
        model: the model, on its device.
        store: the comparisons to train on.
        settings: batch size, schedule, optimizer and sharding.
        task: the loss.
        checkpoint: where to save the state. Saved records are yielded first, then the training continues after them.
        probe: measures further metrics of the model, about PROBES times in a training and at the last step.
        save_weights: called with each step's number (from 1) before the state is saved, since a resumed training does
            not repeat the step.

    Raises:
        Stopped: after SIGTERM or SIGINT, once the state is saved.
        UserError: if a loss or a gradient is not finite.
    """
    lengths, members = store.lengths(), step_order(store, settings)
    optimizer, history = _start_or_resume(model, settings, checkpoint)
    state = history[-1]["state"] if history else {}
    yield from (Step(**record) for record in history)
    steps = total_steps(store, settings)
    with stop_requested() as signals, recompute_blocks(model, settings.activation_gb):
        for number in range(len(history), steps):
            batch = _batch(model, store, lengths, settings, number, members(number).tolist())
            with in_place_gradients(), dropout_of_step(model, number):
                outcome = task.accumulate(batch, state)
            state = outcome.state
            rate = settings.learning_rate * schedule(number, steps, settings)
            last_good = checkpoint.last_good() if checkpoint is not None else "no state was saved"
            grad_norm = _update(optimizer, store, batch, outcome, settings, rate, last_good)
            num = len(batch.ids), int(lengths[batch.ids].sum())
            record = Step(number + 1, outcome.loss, rate, grad_norm, *num, outcome.metrics, state)
            if probe is not None and (number % max(1, steps // PROBES) == 0 or number + 1 == steps):
                record.metrics.update(probe())
            history.append(asdict(record))
            if save_weights is not None:
                save_weights(record.number)
            # A signal or a due time may reach one rank alone, so that all of them must agree on it.
            requests = all_gather_objects((signals[:1], checkpoint is not None and checkpoint.due()))
            if checkpoint is not None and any(names or due for names, due in requests):
                _save(model, optimizer, history, checkpoint)
            for names, _ in requests:
                if names:
                    raise Stopped(names[0])
            yield record


def _start_or_resume(
    model: nn.Module, settings: Training, checkpoint: Checkpoint | None
) -> tuple[ShardedOptimizer, list[dict[str, Any]]]:
    """Load the saved state into the model and a new optimizer; return the optimizer and the records so far."""
    saved = None if checkpoint is None else checkpoint.load()
    if len(set(all_gather_objects(len(saved["history"]) if saved else 0))) > 1:
        raise UserError(
            "training: the nodes read different saved states; put the results on a disk that all nodes share"
        )
    if saved is not None:
        load_trained_state(model, saved["model"])
    if settings.sharding == "sharded":
        assert isinstance(model, PreTrainedModel)
        use_plain_linears(model)
        shard(model)
    optimizer = optimizer_of(model, settings)
    if saved is not None:
        optimizer.load_state_dict(saved["optimizer"])
    return optimizer, [] if saved is None else saved["history"]


def _save(model: nn.Module, optimizer: ShardedOptimizer, history: list[dict[str, Any]], checkpoint: Checkpoint) -> None:
    """Gather the unsharded state on every rank, and write it on the first."""
    state = {"model": full_tensor(trained_state(model)), "optimizer": optimizer.state_dict(), "history": history}
    if is_first():
        checkpoint.save(state)
    all_gather_objects("saved")  # a barrier: no rank may end while the first one still writes


def _batch(
    model: nn.Module, store: Comparisons, lengths: NDArray[np.int64], settings: Training, number: int, ids: list[int]
) -> Batch:
    """Return the comparisons `ids` of step `number` (from 0), this rank's share planned as micro-batches."""
    device = next(model.parameters()).device
    groups = repeat_groups(ids, store, settings.tokens_per_batch)
    sizes = {first: num_tokens(group.packed) for first, group in groups.items()}
    shares = deal(list(groups), sizes, num_ranks())
    plans = [list(micro_batches(share, sizes, settings.tokens_per_batch)) for share in shares]
    plan, most = plans[rank()], max(map(len, plans))

    def packed() -> Iterator[MicroBatch]:
        for firsts, rows in plan:
            members, segments = pack_groups([groups[first] for first in firsts], rows)
            yield members, segments.to(device)

    shortest = min(ids, key=lambda index: lengths[index])
    padding = [([shortest], pack([store[shortest]]).to(device)) for _ in range(most - len(plan))]
    return Batch(number, ids, packed, padding)


def _update(
    optimizer: ShardedOptimizer,
    store: Comparisons,
    batch: Batch,
    outcome: Outcome,
    settings: Training,
    rate: float,
    last_good: str,
) -> float:
    """Take one optimizer step; return the gradient's norm before clipping."""
    reduce_gradients(optimizer.parameters)
    grad_norm = clip_gradients(optimizer.parameters, settings.max_grad_norm or math.inf)
    # The norm is checked too: a gradient may overflow where the loss is finite, and would destroy every weight.
    for what, value in (("loss", outcome.loss), ("gradient's norm", grad_norm)):
        if not math.isfinite(value):
            ids, rows = (", ".join(str(int(one)) for one in some) for some in (batch.ids, store.rows[batch.ids] + 1))
            raise UserError(
                f"step {batch.number + 1}: the {what} is {value}; the step's comparisons are {ids} (source rows "
                f"{rows}); {last_good}; lower learning_rate, or look at these rows"
            )
    optimizer.step(rate)
    return grad_norm


def schedule(step: int, steps: int, settings: Training) -> float:
    """Return the factor on the learning rate at optimizer step `step` (from 0): linear warm-up, then decay to zero."""
    warmup = settings.warmup_steps
    if settings.warmup_ratio is not None:
        warmup = math.ceil(round(settings.warmup_ratio * steps, 9))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    match settings.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - progress
        case "constant":
            return 1.0


def optimizer_of(model: nn.Module, settings: Training) -> ShardedOptimizer:
    """Return the optimizer of the parameters that are trained."""
    rate, decay = settings.learning_rate, settings.weight_decay
    betas = (settings.adam_beta1, settings.adam_beta2)

    def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
        if settings.optimizer == "rmsprop":
            return torch.optim.RMSprop(parameters, lr=rate, weight_decay=decay)
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=decay, fused=True)

    return ShardedOptimizer([parameter for parameter in model.parameters() if parameter.requires_grad], make)
