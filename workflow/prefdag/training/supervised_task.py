"""Maximum likelihood of the first response: SFT, and pre-training, where a document is the response."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from prefdag.data.token_store import Store
from prefdag.models.logprobs import logprobs
from prefdag.models.ops.device import autocast
from prefdag.models.packing import Segments
from prefdag.models.repeats import iter_packed
from prefdag.training.loop import Losses, Task


def supervised_task(model: PreTrainedModel, store: Store) -> Task:
    """Return the loss: negative log-likelihood per response token of the step, in nats."""
    num_tokens = store.offsets[:, 2] - store.offsets[:, 1]

    def losses(ids: Sequence[int], segments: Segments) -> Losses:
        policy = logprobs(model, segments)
        # Summed in float64: neighbouring float32 numbers near a long response's sum are 2.4e-4 apart.
        return -policy.summed(policy.tokens.double())[:, 0], {}

    return Task(losses, lambda ids: float(num_tokens[ids].sum()))


@torch.no_grad()
def mean_nll(model: PreTrainedModel, store: Store, tokens_per_batch: int) -> float:
    """Return the negative log-likelihood per response token over a store, in nats."""
    device = next(model.parameters()).device
    total, num = 0.0, 0
    for _, segments in iter_packed(store, tokens_per_batch):
        with autocast(device):
            values = logprobs(model, segments.to(device))
        total -= values.tokens.double().sum().item()
        num += len(values.tokens)
    return total / max(1, num)
