"""One round on a model: measure its responses, and update policy and value head on them.

A round's first update has no pass of its own for the old log-probs: they are the update's own log-probs, detached. Only
with several minibatches, or where advantages are whitened over several micro-batches, they are measured before, in the
micro-batches of the first pass. In both cases the first ratio is exactly 1, which is checked.

Shapes: N prompts of G responses; T response tokens of the round, t of a micro-batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.config.objectives import Objective
from prefdag.config.online.settings import Online
from prefdag.data.token_store import Comparison
from prefdag.distributed.collectives import all_gather_objects
from prefdag.distributed.ranks import num_ranks, rank
from prefdag.errors import UserError
from prefdag.losses.soft_labels import PairLoss
from prefdag.models.ops.device import autocast
from prefdag.models.ops.vocabulary import in_place_gradients
from prefdag.models.packing import Segments, deal, micro_batches, num_tokens, pack
from prefdag.models.policy_stats import Measured, distribution, measured, states_of, tempered_logprobs
from prefdag.online.critic import Critic
from prefdag.online.objective import Inputs, Normaliser, micro_batch_loss
from prefdag.online.optimizers import Optimizers
from prefdag.online.rollouts import Rollouts
from prefdag.online.targets import Targets
from prefdag.seeds import generator

Plan = list[tuple[list[int], list[list[int]]]]  # of one process: prompts of each micro-batch, and their rows
Statistics = tuple[list[int], dict[str, Tensor]]  # of a micro-batch: its prompts, and values of their tokens


class PolicyChanged(UserError):
    """The policy is no longer the one that was measured, so its state is of no use."""


@dataclass(frozen=True)
class Models:
    """What a round runs. critic, reference: None where the method reads none."""

    policy: PreTrainedModel
    reference: PreTrainedModel | None
    critic: Critic | None

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device


@dataclass(frozen=True)
class Forward:
    """One micro-batch after its forward pass.

    rows: its prompts in the round; values [t], or [t + rows * G]; measured: statistics of the same pass, if asked for.
    """

    rows: list[int]
    segments: Segments
    states: Tensor
    logprobs: Tensor
    values: Tensor | None
    measured: Measured | None = None


class Round:
    """The updates of one round."""

    def __init__(
        self,
        models: Models,
        method: Objective,
        settings: Online,
        number: int,
        comparisons: Sequence[Comparison],
        pair_loss: PairLoss | None = None,
    ) -> None:
        self.models, self.method, self.settings, self.number = models, method, settings, number
        self.comparisons, self.pair_loss = comparisons, pair_loss

    @property
    def num_updates(self) -> int:
        return self.settings.epochs * self.settings.minibatches

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([num_tokens(one) for one in self.comparisons])

    def members(self, update: int) -> list[int]:
        """Return the prompts of an update: a part of a permutation of its own for every pass."""
        epoch, part = divmod(update, self.settings.minibatches)
        order = generator(self.settings.seed, "minibatches", self.number, epoch).permutation(len(self.comparisons))
        return [int(row) for row in np.array_split(order, self.settings.minibatches)[part]]

    def plans(self, update: int) -> list[Plan]:
        """Return every process's micro-batches of an update."""
        shares = deal(self.members(update), self.lengths, num_ranks())
        return [list(micro_batches(share, self.lengths, self.settings.tokens_per_batch)) for share in shares]

    @property
    def measures_in_first_update(self) -> bool:
        return self.settings.minibatches == 1 and (self._is_local or all(len(plan) <= 1 for plan in self.plans(0)))

    @property
    def _is_local(self) -> bool:
        """Return whether the loss of a prompt's responses reads no other prompt's log-probs and values."""
        return getattr(self.method, "whiten", "off") == "off"

    def measured(self, rollouts: Rollouts) -> Rollouts:
        """Measure all responses in the micro-batches of the first pass."""
        parts = []
        for update in range(self.settings.minibatches):
            for members, rows in self.plans(update)[rank()]:
                with torch.no_grad(), autocast(self.models.device):
                    parts.append(_statistics(self._forward(members, rows, measuring=True)))
        return _filled(rollouts, _of_all_ranks(parts))

    def update(
        self,
        update: int,
        rollouts: Rollouts,
        targets: Callable[[Rollouts], Targets],
        optimizers: Optimizers,
        rates: tuple[float, float],
        coefficient: float,
    ) -> tuple[Rollouts, Targets, dict[str, float]]:
        """Take one optimizer step on the members of an update.

        Args:
            update: its number in the round, from 0.
            rollouts: the scored round; measured, unless this update measures it.
            targets: computes advantages and returns of the measured round.
            optimizers: of policy and value head.
            rates: their learning rates.
            coefficient: of the KL.

        Returns:
            The measured round, its targets, and the update's metrics.

        Raises:
            UserError: a loss or gradient is not finite, or, as `PolicyChanged`, the first ratio is not 1.
        """
        plan = self.plans(update)[rank()]
        sums: list[dict[str, float]] = []
        parts: list[Statistics] = []
        with in_place_gradients():
            forwards: Iterable[Forward] = self._forwards(plan, measuring=rollouts.old is None)
            if rollouts.old is None and not self._is_local:
                assert update == 0 and len(plan) <= 1
                forwards = list(forwards)
                rollouts = _filled(rollouts, _of_all_ranks([_statistics(one) for one in forwards]))
            aims = None if rollouts.old is None else targets(rollouts)
            for one in forwards:
                known, local = rollouts, aims
                if local is None:  # of this micro-batch alone; the rest of the round is 0 and not read
                    parts.append(_statistics(one))
                    known = _filled(rollouts, parts[-1:])
                    local = targets(known)
                sums.append(self._backward(one, known, local, self.members(update), coefficient))
        if aims is None:
            rollouts = _filled(rollouts, _of_all_ranks(parts))
            aims = targets(rollouts)
        metrics = _means(_joined([each for part in all_gather_objects(sums) for each in part]))
        self._check(update, metrics)
        norms = optimizers.step(rates, self.settings.max_grad_norm)
        self._check(update, norms)
        return rollouts, aims, {**metrics, **norms}

    def _forwards(self, plan: Plan, measuring: bool) -> Iterator[Forward]:
        for members, rows in plan:
            with autocast(self.models.device):  # left before the backward pass, which it would round
                forward = self._forward(members, rows, measuring)
            yield forward

    def _forward(self, members: list[int], rows: list[list[int]], measuring: bool) -> Forward:
        segments = pack([self.comparisons[row] for row in members], rows).to(self.models.device)
        policy, critic, temperature, other = self.models.policy, self.models.critic, self.settings.temperature, None
        if measuring and self.models.reference is not None:
            with torch.no_grad():
                other = self.models.reference, states_of(self.models.reference, segments)
        states = states_of(policy, segments, critic is not None and critic.is_shared and critic.behind)
        tokens = states[: len(segments.target)]
        values = None if critic is None else critic(segments, states)
        # The head comes last: a pass in between would take its buffer of logits, which the backward pass reads.
        if not measuring:
            logprobs = tempered_logprobs(policy, tokens, segments.target, temperature)
            return Forward(members, segments, tokens, logprobs, values)
        stats = measured(policy, tokens, segments.target, temperature, other)
        return Forward(members, segments, tokens, stats.logprobs, values, stats)

    def _backward(
        self, one: Forward, rollouts: Rollouts, targets: Targets, members: list[int], coefficient: float
    ) -> dict[str, float]:
        """Backpropagate a micro-batch's share of the loss of an update's members; return its sums of metrics."""
        entropy = kl = None
        wants_kl = self.settings.kl.where == "loss" and self.settings.kl.estimator == "full"
        if getattr(self.method, "entropy", 0.0) or wants_kl:
            other = None
            with autocast(self.models.device):
                if wants_kl and self.models.reference is not None:
                    with torch.no_grad():
                        other = self.models.reference, states_of(self.models.reference, one.segments)
                sums = distribution(self.models.policy, one.states, self.settings.temperature, other)
            entropy, kl = sums.entropy, sums.kl
        inputs = Inputs(one.rows, one.segments.owner, one.logprobs, one.values, entropy, kl)
        normaliser = Normaliser.of(self.method, self.settings, targets, rollouts, members)
        aims = rollouts, targets, normaliser, coefficient, self.pair_loss
        loss, metrics = micro_batch_loss(self.method, self.settings, inputs, *aims)
        loss.backward()
        return metrics

    def _check(self, update: int, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if not np.isfinite(value):
                raise UserError(
                    f"round {self.number + 1}, update {update + 1}: {name} is {value}; lower learning_rate, or look at "
                    "the round's scores; the state before this update is saved"
                )
        if update == 0 and metrics.get("ratio_error", 0.0):
            raise PolicyChanged(
                f"round {self.number + 1}: the first ratio to the sampling policy differs from 1 by "
                f"{metrics['ratio_error']:.2g}; the policy changed between measuring and updating"
            )


def _statistics(one: Forward) -> Statistics:
    """Return a micro-batch's statistics, on the CPU."""
    assert one.measured is not None
    values: dict[str, Tensor | None] = {
        "old": one.logprobs,
        "reference": one.measured.reference,
        "entropy": one.measured.entropy,
        "kl": one.measured.kl,
    }
    if one.values is not None:
        num = len(one.segments.target)
        values["values"] = one.values[:num]
        if len(one.values) > num:
            values["last_values"] = one.values[num:].view(one.segments.shape)
    return one.rows, {name: value.detach().cpu() for name, value in values.items() if value is not None}


def _of_all_ranks(parts: list[Statistics]) -> list[Statistics]:
    return [part for each in all_gather_objects(parts) for part in each]


def _filled(rollouts: Rollouts, parts: list[Statistics]) -> Rollouts:
    """Return the round with the statistics of micro-batches, 0 elsewhere."""
    values: dict[str, Tensor] = {}
    for rows, stats in parts:
        tokens = rollouts.tokens_of(rows)
        for name, value in stats.items():
            if name == "last_values":
                values.setdefault(name, value.new_zeros(rollouts.lengths.shape))[rows] = value
            else:
                values.setdefault(name, value.new_zeros(len(rollouts.ids)))[tokens] = value
    return rollouts.with_values(**values)


def _joined(parts: list[dict[str, float]]) -> dict[str, float]:
    """Add up metrics of micro-batches; of `max_...` and errors take the largest."""
    result: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            if name.endswith(("_max", "_error")):
                result[name] = max(result.get(name, value), value)
            else:
                result[name] = result.get(name, 0.0) + value
    return result


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Divide sums over counted tokens by their number."""
    counted = sums.pop("counted")
    of_tokens = ("approx_kl", "approx_kl_k2", "clip_low", "clip_high", "clip_fraction")
    pairs = sums.pop("pairs", 1.0)
    counts = {**dict.fromkeys(of_tokens, max(1.0, counted)), "accuracy": pairs, "margin": pairs}
    return {name: value / counts.get(name, 1.0) for name, value in sums.items()}
