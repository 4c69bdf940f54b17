"""Metrics of preference training, the same for every loss: log-probs, log-ratios, margins, accuracy."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.data.token_store import Store
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.ops.device import autocast
from prefdag.models.packing import iter_packed

PROBED = 48  # held-out comparisons measured during training


def sides(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best response's value and the mean of the others' (in a pair: chosen, rejected), each [B]."""
    return values[:, 0], values[:, 1] if values.shape[1] == 2 else values[:, 1:].mean(1)


@torch.no_grad()
def preference_metrics(policy: LogProbs, reference: LogProbs | None, labels: Tensor | None) -> dict[str, Tensor]:
    """Compute the metrics of a batch.

    Pairs and rankings: summed log-probs of chosen (the best) and rejected (the mean of the others), with a reference
    also log-ratios; margin and accuracy are of log-ratios, without a reference of average log-probs. Single responses:
    log-probs and log-ratios of desirable and undesirable ones; accuracy is whether the log-ratio has the label's sign.

    Args:
        policy: log-probs of B x K responses.
        reference: the same of the reference, if the loss reads it.
        labels: [B] bool, desirable or not, if responses are single.

    Returns:
        name -> one value per comparison that has the metric, in nats.
    """
    totals = {"logprob": policy.total} | ({} if reference is None else {"logratio": (policy - reference).total})
    metrics: dict[str, Tensor] = {}
    if labels is not None:
        for name, total in totals.items():
            metrics |= {f"desirable_{name}": total[labels, 0], f"undesirable_{name}": total[~labels, 0]}
        if reference is not None:
            ratio = totals["logratio"][:, 0]
            metrics["accuracy"] = _win(torch.where(labels, ratio, -ratio))
        return metrics
    for name, total in totals.items():
        metrics[f"chosen_{name}"], metrics[f"rejected_{name}"] = sides(total)
    chosen, rejected = sides(policy.mean if reference is None else totals["logratio"])
    gap = chosen - rejected
    return {**metrics, "margin": gap, "accuracy": _win(gap)}


def _win(gap: Tensor) -> Tensor:
    """Return 1 where the gap is positive, 0.5 where it is zero."""
    return (gap > 0) + 0.5 * (gap == 0)


def displacement(model: PreTrainedModel, store: Store, tokens_per_batch: int) -> Callable[[], dict[str, float]]:
    """Return a probe of how far the first held-out comparisons have moved from the starting policy.

    The start is measured in this call, so make it before a saved state is loaded.

    Args:
        model: the policy.
        store: held-out comparisons, of which PROBED are measured.
        tokens_per_batch: budget of a micro-batch.
    """
    probed = [store[index] for index in range(min(PROBED, len(store)))]

    def measure() -> list[LogProbs]:
        device = next(model.parameters()).device
        with torch.no_grad(), autocast(device):
            return [logprobs(model, segments.to(device)) for _, segments in iter_packed(probed, tokens_per_batch)]

    start = measure()

    def probe() -> dict[str, float]:
        ratio = torch.cat([(now - then).total for now, then in zip(measure(), start, strict=True)])
        chosen, rejected = sides(ratio)
        gap = chosen - rejected
        named = {"chosen_logratio": chosen, "rejected_logratio": rejected, "margin": gap}
        named |= {"accuracy": _win(gap), "chosen_fell": (chosen < 0).float()}
        return {f"held_out_{name}": value.double().mean().item() for name, value in named.items()}

    return probe
