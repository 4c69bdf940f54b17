"""What people watch of a preference training, per comparison and whatever the loss: log-probs, log-ratios, margins."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.data.token_store import Store
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.ops.device import autocast
from prefdag.models.packing import iter_packed

PROBED = 48  # held-out comparisons that are watched during training


def sides(values: Tensor) -> tuple[Tensor, Tensor]:
    """The best response's value and the mean of the others', for a pair the chosen and the rejected: [B, K] -> [B]."""
    return values[:, 0], values[:, 1] if values.shape[1] == 2 else values[:, 1:].mean(1)


@torch.no_grad()
def preference_metrics(policy: LogProbs, reference: LogProbs | None, labels: Tensor | None) -> dict[str, Tensor]:
    """Metrics, each of the comparisons that have it.

    Of K >= 2 responses: summed log-probs of chosen (the best) and rejected (the mean of the others), and with a
    reference their log-ratios, the margin and whether it is positive; without one, margin and accuracy are of average
    log-probs. Of single responses: log-probs and log-ratios of the desirable and of the undesirable ones, and with a
    reference whether the log-ratio has the sign of the label.
    """
    totals = {"logprob": policy.total} | ({} if reference is None else {"logratio": (policy - reference).total})
    metrics: dict[str, Tensor] = {}
    if labels is not None:
        for name, total in totals.items():
            metrics |= {f"desirable_{name}": total[labels, 0], f"undesirable_{name}": total[~labels, 0]}
        if reference is not None:
            ratio = totals["logratio"][:, 0]
            metrics["accuracy"] = _won(torch.where(labels, ratio, -ratio))
        return metrics
    for name, total in totals.items():
        metrics[f"chosen_{name}"], metrics[f"rejected_{name}"] = sides(total)
    chosen, rejected = sides(policy.mean if reference is None else totals["logratio"])
    gap = chosen - rejected
    return {**metrics, "margin": gap, "accuracy": _won(gap)}


def _won(gap: Tensor) -> Tensor:
    """1 where positive, a tie counting half."""
    return (gap > 0) + 0.5 * (gap == 0)


def displacement(model: PreTrainedModel, store: Store, tokens_per_batch: int) -> Callable[[], dict[str, float]]:
    """How far the first held-out comparisons have moved from where the policy starts, whatever the loss reads.

    The start is measured here, from the policy itself; a resumed training has moved on, so it measures again from the
    weights that it was given before any state is loaded.
    """
    watching = [store[index] for index in range(min(PROBED, len(store)))]

    def measure() -> list[LogProbs]:
        device = next(model.parameters()).device
        with torch.no_grad(), autocast(device):
            return [logprobs(model, segments.to(device)) for _, segments in iter_packed(watching, tokens_per_batch)]

    start = measure()

    def probe() -> dict[str, float]:
        ratio = torch.cat([(now - then).total for now, then in zip(measure(), start, strict=True)])
        chosen, rejected = sides(ratio)
        gap = chosen - rejected
        named = {"chosen_logratio": chosen, "rejected_logratio": rejected, "margin": gap}
        named |= {"accuracy": _won(gap), "chosen_fell": (chosen < 0).float()}
        return {f"held_out_{name}": value.double().mean().item() for name, value in named.items()}

    return probe
