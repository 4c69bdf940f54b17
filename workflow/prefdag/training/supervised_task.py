"""Maximum likelihood on the first response: pre-training (the whole document is the response) and SFT."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from prefdag.data.token_store import Store
from prefdag.models.logprobs import logprobs
from prefdag.models.ops.device import autocast
from prefdag.models.packing import Segments, iter_packed
from prefdag.training.loop import Losses, Task


def supervised_task(model: PreTrainedModel, store: Store) -> Task:
    """Negative log-likelihood per counted token of the step, in nats; summed in float64, for float32's neighbours of a
    long response's sum are 2.4e-4 apart."""
    counted = store.offsets[:, 2] - store.offsets[:, 1]

    def losses(ids: Sequence[int], segments: Segments) -> Losses:
        found = logprobs(model, segments)
        return -found.summed(found.tokens.double())[:, 0], {}

    return Task(losses, lambda ids: float(counted[ids].sum()))


@torch.no_grad()
def mean_nll(model: PreTrainedModel, store: Store, tokens_per_batch: int) -> float:
    """Negative log-likelihood per counted token over a whole store, in nats."""
    device = next(model.parameters()).device
    total, num = 0.0, 0
    for _, segments in iter_packed(store, tokens_per_batch):
        with autocast(device):
            values = logprobs(model, segments.to(device))
        total -= values.tokens.double().sum().item()
        num += len(values.tokens)
    return total / max(1, num)
