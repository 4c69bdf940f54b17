"""One preference-training step: collect the loss's inputs, evaluate it, backpropagate into the policy.

A loss that treats each comparison separately runs one micro-batch at a time (`prefdag.training.loop.Task`); a loss over
the whole step runs by `prefdag.training.gradient_caching`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.config.objectives import Objective
from prefdag.data.token_store import Store
from prefdag.data.views import Unpaired
from prefdag.errors import UserError
from prefdag.losses.registry import loss_of
from prefdag.losses.soft_labels import both_orders
from prefdag.models.logprobs import LogProbs
from prefdag.models.ops.device import autocast, to_device
from prefdag.models.packing import Segments
from prefdag.models.repeats import iter_packed
from prefdag.models.token_stats import PER_TOKEN, TokenStats, token_stats
from prefdag.seeds import generator
from prefdag.training.gradient_caching import TokenLayout, accumulate_whole_step
from prefdag.training.loop import Batch, Losses, Outcome, Task
from prefdag.training.preference_metrics import preference_metrics
from prefdag.training.records import Sums, to_means

Reference = Callable[[Sequence[int], Segments | LogProbs], LogProbs]
State = dict[str, float]
OF_THE_STEP = frozenset({"state", "noise", "mismatched"})  # inputs that only a loss over the whole step may read


@dataclass(frozen=True)
class PreferenceTask:
    """One objective on one view of comparisons, as the loop trains it.

    Attributes:
        objective: the loss and its options.
        model: the policy.
        store: the comparisons.
        reference: returns the reference's log-probs of comparisons; needed if the objective reads `reference`.
        live: the frozen reference policy; needed if the objective reads `divergence`.
        mismatched: see `MismatchedRatios`; needed if the objective reads `mismatched`.
        seed: of the noise that the objective may read.
        start: nats per token by which the policy may differ from the reference at the first step; None: no check.
        soft: whether each pair counts in both orders, weighted by s(difference of its scores).
    """

    objective: Objective
    model: PreTrainedModel
    store: Store | Unpaired
    reference: Reference | None = None
    live: PreTrainedModel | None = None
    mismatched: Callable[[Sequence[int]], Tensor] | None = None
    seed: int = 0
    start: float | None = None
    soft: bool = False

    @cached_property
    def needs_whole_step(self) -> bool:
        return self.objective.scope == "step" or bool(self.objective.reads & OF_THE_STEP)

    def accumulate(self, batch: Batch, state: State) -> Outcome:
        """Add the gradient of the step's loss, the mean of its comparisons' values, to the parameters' `.grad`."""
        if not self.needs_whole_step:
            return self.task(batch.number).accumulate(batch, state)
        return accumulate_whole_step(
            batch, self._read, lambda stats: self.values(batch.ids, stats, state, batch.number)
        )

    def task(self, number: int) -> Task:
        """Return the loss of step `number` (from 0) as a sum over comparisons."""

        def losses(ids: Sequence[int], segments: Segments) -> Losses:
            return self.values(ids, self._read(segments), {}, number)[:2]

        return Task(losses, len)

    def values(
        self, ids: Sequence[int], stats: TokenStats, state: State, step: int | str
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        """Evaluate the loss.

        Args:
            ids: the comparisons.
            stats: the policy's statistics of their response tokens, in this order.
            state: the loss's adaptive numbers; {} at the first step.
            step: the step's number from 0, or another name of the noise's random stream.

        Returns:
            The loss of each comparison [B], metrics (each of the comparisons that have it), and the state after them.

        Raises:
            UserError: if the policy is not the reference at the first step.
        """
        inputs = self._inputs(ids, stats, state, step)
        reference = inputs.get("reference")
        if step == 0 and reference is not None and self.start is not None:
            check_start(stats.policy - reference, self.start)
        with torch.autocast(stats.policy.tokens.device.type, enabled=False):
            if self.soft:
                return self._soft(ids, stats, reference), preference_metrics(stats.policy, reference, None), state
            values = self._loss(stats.policy, **inputs)
            if "state" in self.objective.reads:
                values, state = values
            assert values.shape == (len(ids),)
            return values, preference_metrics(stats.policy, reference, self._labels(ids)), state

    def _soft(self, ids: Sequence[int], stats: TokenStats, reference: LogProbs | None) -> Tensor:
        """Return the loss of pairs in both orders, weighted by the probability of each: [B]."""
        assert self.store.scores is not None

        def loss(policy: LogProbs, other: LogProbs) -> Tensor:
            values: Tensor = self._loss(policy) if reference is None else self._loss(policy, reference=other)
            return values

        scores = torch.from_numpy(self.store.scores[list(ids)]).double()
        labels = to_device((scores[:, 0] - scores[:, 1]).sigmoid(), stats.policy.tokens.device)
        return both_orders(loss, stats.policy, reference or stats.policy, labels)

    @torch.no_grad()
    def evaluate(self, tokens_per_batch: int, state: State) -> dict[str, float]:
        """Return the means of loss and metrics over the whole store; a loss over whole steps sees it as one step.

        state: as the training left it; it is not changed.
        """
        sums, parts = Sums(), []
        device = next(self.model.parameters()).device
        for ids, segments in iter_packed(self.store, tokens_per_batch):
            parts.append((ids, segments.to(device)))
            if not self.needs_whole_step:
                sums.add(self._measure(ids, self._read(parts.pop()[1]), state))
        if parts:
            ids = list(range(len(self.store)))
            layout = TokenLayout.of(ids, parts, distributed=False)
            sums.add(self._measure(ids, layout.join([self._read(segments) for _, segments in parts]), state))
        return to_means(sums.to_floats())

    def _measure(self, ids: Sequence[int], stats: TokenStats, state: State) -> dict[str, Tensor]:
        values, metrics, _ = self.values(ids, stats, state, "held out")
        return {name: value.double() for name, value in {"loss": values, **metrics}.items()}

    @cached_property
    def _loss(self) -> Callable[..., Any]:
        return loss_of(self.objective)

    def _read(self, segments: Segments) -> TokenStats:
        with autocast(segments.owner.device):
            return token_stats(self.model, segments, self.objective.reads & PER_TOKEN, self.live)

    def _inputs(self, ids: Sequence[int], stats: TokenStats, state: State, step: int | str) -> dict[str, Any]:
        """Return the arguments of the loss after the policy's log-probs, for comparisons `ids` in that order."""
        reads, tokens, inputs = self.objective.reads, stats.policy.tokens, dict[str, Any](stats.extras)
        if "reference" in reads:
            assert self.reference is not None
            inputs["reference"] = self.reference(ids, stats.policy)
        if "scores" in reads:
            assert self.store.scores is not None
            scores = torch.from_numpy(self.store.scores[list(ids)])
            inputs["scores"] = to_device(scores.to(tokens.dtype), tokens.device)
        if "labels" in reads:
            inputs["labels"] = self._labels(ids)
        if "mismatched" in reads:
            assert self.mismatched is not None
            inputs["mismatched"] = self.mismatched(ids).to(tokens)
        if "noise" in reads:
            noise = generator(self.seed, "noise", step).random(len(ids))
            inputs["noise"] = to_device(torch.from_numpy(noise), tokens.device)
        if "state" in reads:
            inputs["state"] = state
        return inputs

    def _labels(self, ids: Sequence[int]) -> Tensor | None:
        if not isinstance(self.store, Unpaired):
            return None
        return to_device(torch.from_numpy(self.store.labels[list(ids)]), next(self.model.parameters()).device)


def check_start(ratio: LogProbs, allowed: float) -> None:
    """Check that the policy equals the reference at the first step: DPO's loss is then ln 2, IPO's (1 / (2 beta))^2.

    Args:
        ratio: log-ratios of policy to reference.
        allowed: nats per token by which a response's log-ratio may differ from 0.

    Raises:
        UserError: if one differs by more.
    """
    largest = (ratio.total.abs() / ratio.count).max().item()
    if not largest <= allowed:  # NaN fails too
        raise UserError(
            f"step 1: the policy is not the reference (log-ratios of {largest:.2g} nats per token); "
            "delete the reference cache's manifest and rerun"
        )
