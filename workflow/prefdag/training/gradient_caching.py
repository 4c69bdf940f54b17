"""Gradient caching: the exact gradient of a loss over a whole step, one micro-batch in memory at a time.

A first pass without gradient reads the log-probs of every micro-batch; the loss of all of them gives its gradient with
respect to the log-probs; a second pass carries that gradient to the weights.

Reference: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv 2101.06983.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from prefdag.distributed.collectives import all_gather_objects, gather_concat
from prefdag.distributed.ranks import rank
from prefdag.models.logprobs import LogProbs
from prefdag.models.packing import Segments
from prefdag.models.token_stats import TokenStats
from prefdag.training.loop import Batch, MicroBatch, Outcome
from prefdag.training.records import Sums, to_means

Evaluate = Callable[[TokenStats], tuple[Tensor, dict[str, Tensor], dict[str, float]]]


def accumulate_whole_step(batch: Batch, read: Callable[[Segments], TokenStats], evaluate: Evaluate) -> Outcome:
    """Add the gradient of a whole step's loss, the mean of its comparisons' values, to the parameters' `.grad`.

    A step of one micro-batch needs one pass.

    Args:
        batch: the step.
        read: the policy's log-probs and further statistics of one micro-batch.
        evaluate: maps the statistics of the whole step, on every rank, to the loss of each comparison [B], its
            metrics, and the state after the step.
    """
    parts = [*batch.micro_batches(), *batch.padding]
    single = len(parts) == 1
    with torch.set_grad_enabled(single):
        stats = [read(segments) for _, segments in parts]
    layout = TokenLayout.of(batch.ids, parts, num_padding=len(batch.padding))
    step = layout.join(stats)
    leaves = [leaf.requires_grad_() for leaf in _differentiable(step)]
    values, metrics, state = evaluate(step)
    loss = values.sum() / len(batch.ids)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    per_part = zip(*(layout.split(gradient) for gradient in gradients), strict=True)
    for (_, segments), first_pass, gradient in zip(parts, stats, per_part, strict=True):
        torch.autograd.backward(_differentiable(first_pass if single else read(segments)), gradient)
    sums = Sums()
    sums.add(metrics)
    return Outcome(loss.item(), to_means(sums.to_floats()), state)


def _differentiable(stats: TokenStats) -> list[Tensor]:
    """Return what carries gradient to the policy, each [T]: log-probs and, if it was read, the divergence."""
    return [stats.policy.tokens, *(value for name, value in stats.extras.items() if name == "divergence")]


@dataclass(frozen=True)
class TokenLayout:
    """The mapping between a step's T response tokens and its micro-batches, concatenated rank after rank.

    order [T]: index of each token of the step in the concatenation; owner [T]: its response as b * K + k, comparisons
    in the step's order; shape: (B, K) of the step; sizes: response tokens of each of this rank's micro-batches; start:
    index of their first in the concatenation; padding: response tokens of each padding micro-batch; distributed:
    whether every rank has micro-batches of its own (else all ranks hold the same ones).
    """

    order: Tensor
    owner: Tensor
    shape: tuple[int, int]
    sizes: list[int]
    start: int = 0
    padding: tuple[int, ...] = ()
    distributed: bool = True

    @classmethod
    def of(
        cls, ids: Sequence[int], parts: Sequence[MicroBatch], num_padding: int = 0, distributed: bool = True
    ) -> Self:
        """Build the layout of a step's `ids`. The last `num_padding` of this rank's `parts` do not belong to it."""
        num_responses = parts[0][1].shape[1]
        place = {index: number for number, index in enumerate(ids)}
        owners = []
        for members, segments in parts:
            places = torch.tensor([place[index] for index in members], device=segments.owner.device)
            owners.append(places[segments.owner // num_responses] * num_responses + segments.owner % num_responses)
        sizes = [len(part) for part in owners]
        num_parts = len(owners) - num_padding
        num_tokens = sum(sizes[:num_parts])
        owner, start = torch.cat(owners)[:num_tokens], 0
        if distributed:
            owner, start = gather_concat(owner), sum(all_gather_objects(num_tokens)[: rank()])
        order = owner.argsort(stable=True)  # stable: the tokens of a response stay in their order
        shape, padding = (len(ids), num_responses), tuple(sizes[num_parts:])
        return cls(order, owner[order], shape, sizes[:num_parts], start, padding, distributed)

    def join(self, parts: Sequence[TokenStats]) -> TokenStats:
        """Return every rank's micro-batches as one batch in the step's order, without gradient."""
        policy = LogProbs(self._join([part.policy.tokens for part in parts]), self.owner, self.shape)
        extras = {name: self._join([part.extras[name] for part in parts]) for name in parts[0].extras}
        return TokenStats(policy, extras)

    def _join(self, values: Sequence[Tensor]) -> Tensor:
        local = torch.cat([value.detach() for value in values[: len(self.sizes)]] or [values[0].detach()[:0]])
        return (gather_concat(local) if self.distributed else local).index_select(0, self.order)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return values [T] of the step's tokens as those of this rank's micro-batches, the inverse of `join`.

        Padding micro-batches get zeros.
        """
        local = torch.empty_like(values).index_copy(0, self.order, values)[self.start :][: sum(self.sizes)]
        return (*local.split(self.sizes), *(values.new_zeros(size) for size in self.padding))
