"""Log-ratios of mismatched pairs, from which KTO estimates the KL divergence of policy and reference."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.data.token_store import Indexed
from prefdag.data.views import Mismatched, Unpaired
from prefdag.models.logprobs import logprobs
from prefdag.models.ops.device import autocast
from prefdag.models.repeats import iter_packed


class MismatchedRatios:
    """Log-ratios of policy to reference of another prompt's response after each prompt, without gradient.

    The reference is the model at construction, so construct this before training and before loading a saved state; or
    it is `reference`, which is read at construction alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        view: Unpaired,
        seed: int,
        tokens_per_batch: int,
        reference: PreTrainedModel | None = None,
    ) -> None:
        self.model, self.tokens_per_batch = model, tokens_per_batch
        self.comparisons = Mismatched(view, seed)
        self.start = self._totals(self.comparisons, model if reference is None else reference)

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Return the summed log-ratio of each of the view's examples `ids`, in nats: [B], float64."""
        return self._totals([self.comparisons[index] for index in ids], self.model) - self.start[list(ids)]

    @torch.no_grad()
    def _totals(self, comparisons: Indexed, model: PreTrainedModel) -> Tensor:
        device = next(model.parameters()).device
        totals = torch.zeros(len(comparisons), dtype=torch.float64)
        for places, segments in iter_packed(comparisons, self.tokens_per_batch):
            with autocast(device):
                policy = logprobs(model, segments.to(device))
            # Summed in float64: neighbouring float32 numbers near -3,700 are 2.4e-4 apart.
            totals[places] = policy.summed(policy.tokens.double())[:, 0].cpu()
        return totals
