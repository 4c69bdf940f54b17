"""One optimizer step of preference alignment: what a loss reads is gathered, and its gradient is brought to the policy.

A loss whose comparisons do not meet goes one micro-batch at a time. A loss of the whole step sees it at once, however
it is packed, by gradient caching (Gao et al. 2021, arXiv 2101.06983): a first pass without gradient finds the log-probs
of every micro-batch, the loss gives the gradient with respect to them, and a second pass carries it to the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.config.objectives import Objective
from prefdag.data.token_store import Indexed, Store
from prefdag.data.views import Mismatched, Unpaired
from prefdag.distributed.collectives import all_gather_objects, gather_concat
from prefdag.distributed.ranks import rank
from prefdag.errors import UserError
from prefdag.losses.registry import loss_of
from prefdag.models.loading import autocast
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.ops.device import to_device
from prefdag.models.packing import Segments, iter_packed
from prefdag.models.token_stats import PER_TOKEN, TokenStats, token_stats
from prefdag.seeds import generator
from prefdag.training.loop import Batch, Losses, MicroBatch, Outcome, Task
from prefdag.training.metrics import Sums, to_means
from prefdag.training.preference_metrics import preference_metrics

Reference = Callable[[Sequence[int], Segments | LogProbs], LogProbs]
State = dict[str, float]
OF_THE_STEP = frozenset({"state", "noise", "mismatched"})  # who reads these sees the whole step


@dataclass(frozen=True)
class PreferenceTask:
    """One objective on one view of comparisons, as the loop trains it.

    reference: cached log-probs; live: the reference policy itself, frozen; mismatched: see `MismatchedRatios`. Each is
    given where the objective reads it (`divergence` reads `live`). seed: of the noise. start: nats per token by which
    the policy may differ from the reference at the first step; None where they are not compared.
    """

    objective: Objective
    model: PreTrainedModel
    store: Store | Unpaired
    reference: Reference | None = None
    live: PreTrainedModel | None = None
    mismatched: Callable[[Sequence[int]], Tensor] | None = None
    seed: int = 0
    start: float | None = None

    @cached_property
    def of_whole_steps(self) -> bool:
        return self.objective.scope == "step" or bool(self.objective.reads & OF_THE_STEP)

    def accumulate(self, batch: Batch, state: State) -> Outcome:
        """Add the gradient of the step's loss, the mean of its comparisons' values, to the parameters'."""
        if self.of_whole_steps:
            return self._of_whole_step(batch, state)
        return self.task(batch.number).accumulate(batch, state)

    def task(self, number: int) -> Task:
        """A loss whose comparisons do not meet, at optimizer step `number` (from 0)."""

        def losses(ids: Sequence[int], segments: Segments) -> Losses:
            return self.values(ids, self._read(segments), {}, number)[:2]

        return Task(losses, len)

    def _of_whole_step(self, batch: Batch, state: State) -> Outcome:
        parts = [*batch.micro_batches(), *batch.idle]
        once = len(parts) == 1
        with torch.set_grad_enabled(once):
            reads = [self._read(segments) for _, segments in parts]
        layout = Layout.of(batch.ids, parts, idle=len(batch.idle))
        step = layout.join(reads)
        leaves = [leaf.requires_grad_() for leaf in _differentiable(step)]
        values, metrics, state = self.values(batch.ids, step, state, batch.number)
        loss = values.sum() / len(batch.ids)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        shares = zip(*(layout.parted(gradient) for gradient in gradients), strict=True)
        for (_, segments), found, share in zip(parts, reads, shares, strict=True):
            torch.autograd.backward(_differentiable(found if once else self._read(segments)), share)
        sums = Sums()
        sums.add(metrics)
        return Outcome(loss.item(), to_means(sums.to_floats()), state)

    def values(
        self, ids: Sequence[int], found: TokenStats, state: State, step: int | str
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        """The loss of each comparison [B], what people watch of each, and the state after them.

        step: the optimizer step's number from 0, or another name of the noise's stream. Raises `UserError` where the
        policy is not the reference at the first step.
        """
        given = self._inputs(ids, found, state, step)
        reference = given.get("reference")
        if step == 0 and reference is not None and self.start is not None:
            check_start(found.policy - reference, self.start)
        with torch.autocast(found.policy.tokens.device.type, enabled=False):
            values = self._compute(found.policy, **given)
            if "state" in self.objective.reads:
                values, state = values
            assert values.shape == (len(ids),)
            return values, preference_metrics(found.policy, reference, self._labels(ids)), state

    @torch.no_grad()
    def evaluate(self, tokens_per_batch: int, state: State) -> dict[str, float]:
        """Means of the loss and of every metric over all comparisons; of a loss of whole steps, they are one step.

        state: as the training left it; it is read and not changed.
        """
        sums, parts = Sums(), []
        device = next(self.model.parameters()).device
        for ids, segments in iter_packed(self.store, tokens_per_batch):
            parts.append((ids, segments.to(device)))
            if not self.of_whole_steps:
                sums.add(self._measured(ids, self._read(parts.pop()[1]), state))
        if parts:
            everything = list(range(len(self.store)))
            step = Layout.of(everything, parts, dealt=False).join([self._read(segments) for _, segments in parts])
            sums.add(self._measured(everything, step, state))
        return to_means(sums.to_floats())

    def _measured(self, ids: Sequence[int], found: TokenStats, state: State) -> dict[str, Tensor]:
        values, metrics, _ = self.values(ids, found, state, "held out")
        return {name: value.double() for name, value in {"loss": values, **metrics}.items()}

    @cached_property
    def _compute(self) -> Callable[..., Any]:
        return loss_of(self.objective)

    def _read(self, segments: Segments) -> TokenStats:
        with autocast(segments.owner.device):
            return token_stats(self.model, segments, self.objective.reads & PER_TOKEN, self.live)

    def _inputs(self, ids: Sequence[int], found: TokenStats, state: State, step: int | str) -> dict[str, Any]:
        """What the objective reads beside the policy's log-probs, of comparisons `ids` in that order."""
        reads, tokens, given = self.objective.reads, found.policy.tokens, dict[str, Any](found.extras)
        if "reference" in reads:
            assert self.reference is not None
            given["reference"] = self.reference(ids, found.policy)
        if "scores" in reads:
            assert self.store.scores is not None
            scores = torch.from_numpy(self.store.scores[list(ids)])
            given["scores"] = to_device(scores.to(tokens.dtype), tokens.device)
        if "labels" in reads:
            given["labels"] = self._labels(ids)
        if "mismatched" in reads:
            assert self.mismatched is not None
            given["mismatched"] = self.mismatched(ids).to(tokens)
        if "noise" in reads:
            drawn = generator(self.seed, "noise", step).random(len(ids))
            given["noise"] = to_device(torch.from_numpy(drawn), tokens.device)
        if "state" in reads:
            given["state"] = state
        return given

    def _labels(self, ids: Sequence[int]) -> Tensor | None:
        if not isinstance(self.store, Unpaired):
            return None
        return to_device(torch.from_numpy(self.store.labels[list(ids)]), next(self.model.parameters()).device)


@dataclass(frozen=True)
class Layout:
    """Where a step's response tokens stand in its micro-batches laid end to end, one rank's after the other's.

    order [T]: the place there of each token of the step; owner [T]: its response, comparisons in the step's order;
    shape: (B, K) of the step; sizes: response tokens of each of this rank's micro-batches; start: the place of their
    first; idle: response tokens of each micro-batch of this rank that is no part of the step; dealt: whether each rank
    has micro-batches of its own, or all have the same ones.
    """

    order: Tensor
    owner: Tensor
    shape: tuple[int, int]
    sizes: list[int]
    start: int = 0
    idle: tuple[int, ...] = ()
    dealt: bool = True

    @classmethod
    def of(cls, ids: Sequence[int], parts: Sequence[MicroBatch], idle: int = 0, dealt: bool = True) -> Self:
        """idle: how many of the micro-batches, the last ones, are no part of the step."""
        num_responses = parts[0][1].shape[1]
        place = {index: number for number, index in enumerate(ids)}
        owners = []
        for taken, segments in parts:
            places = torch.tensor([place[index] for index in taken], device=segments.owner.device)
            owners.append(places[segments.owner // num_responses] * num_responses + segments.owner % num_responses)
        sizes = [len(part) for part in owners]
        own = len(owners) - idle
        num = sum(sizes[:own])
        owner = torch.cat(owners)[:num]
        owner, start = (gather_concat(owner), sum(all_gather_objects(num)[: rank()])) if dealt else (owner, 0)
        order = owner.argsort(stable=True)
        return cls(order, owner[order], (len(ids), num_responses), sizes[:own], start, tuple(sizes[own:]), dealt)

    def join(self, parts: Sequence[TokenStats]) -> TokenStats:
        """What was read of the micro-batches, every rank's, as of one batch in the step's order; without gradient."""
        policy = LogProbs(self._joined([part.policy.tokens for part in parts]), self.owner, self.shape)
        extras = {name: self._joined([part.extras[name] for part in parts]) for name in parts[0].extras}
        return TokenStats(policy, extras)

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        own = torch.cat([value.detach() for value in values[: len(self.sizes)]] or [values[0].detach()[:0]])
        return (gather_concat(own) if self.dealt else own).index_select(0, self.order)

    def parted(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values [T] of the step's tokens, as those of each micro-batch of this rank: the inverse of joining.

        What is no part of the step has zeros.
        """
        own = torch.empty_like(values).index_copy(0, self.order, values)[self.start :][: sum(self.sizes)]
        return (*own.split(self.sizes), *(values.new_zeros(size) for size in self.idle))


def _differentiable(found: TokenStats) -> list[Tensor]:
    """What carries gradient to the policy: log-probs and, where it was read, the divergence."""
    return [found.policy.tokens, *(value for name, value in found.extras.items() if name == "divergence")]


def check_start(ratio: LogProbs, allowed: float) -> None:
    """Policy and reference are one at the first step: every log-ratio is 0 within `allowed` nats per token.

    Then DPO's loss is ln 2 and IPO's (1 / (2 beta))^2. Raises `UserError` when it is not so.
    """
    off = (ratio.total.abs() / ratio.count).max().item()
    if not off <= allowed:
        raise UserError(
            f"step 1: the policy is not the reference (log-ratios of {off:.2g} nats per token); "
            "delete the reference cache's manifest and rerun"
        )


class MismatchedRatios:
    """Summed log-ratio of policy to reference of another prompt's response after each prompt, without gradient.

    The reference is the policy as it is when this is made: before any training, and before any state is loaded.
    """

    def __init__(self, model: PreTrainedModel, view: Unpaired, seed: int, tokens_per_batch: int) -> None:
        self.model, self.tokens_per_batch = model, tokens_per_batch
        self.comparisons = Mismatched(view, seed)
        self.start = self._totals(self.comparisons)

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Nats, of the examples `ids` of the view in that order: [B], float64."""
        return self._totals([self.comparisons[index] for index in ids]) - self.start[list(ids)]

    @torch.no_grad()
    def _totals(self, comparisons: Indexed) -> Tensor:
        device = next(self.model.parameters()).device
        totals = torch.zeros(len(comparisons), dtype=torch.float64)
        for places, segments in iter_packed(comparisons, self.tokens_per_batch):
            with autocast(device):
                found = logprobs(self.model, segments.to(device))
            # Summed in float64: float32 sums near -3,700 are 2.4e-4 apart.
            totals[places] = found.summed(found.tokens.double())[:, 0].cpu()
        return totals
