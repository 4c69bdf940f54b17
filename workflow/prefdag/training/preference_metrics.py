"""Metrics of preference training, the same for every loss: log-probs, log-ratios, margins, accuracy."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.data.token_store import Store
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.ops.device import autocast
from prefdag.models.repeats import iter_packed

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


class Displacement:
    """A probe of how far the first held-out comparisons have moved from the starting policy.

    The start is measured when it is made, so make it before a saved state is loaded.

    Args:
        model: the policy.
        store: held-out comparisons, of which PROBED are measured.
        tokens_per_batch: budget of a micro-batch.
    """

    def __init__(self, model: PreTrainedModel, store: Store, tokens_per_batch: int) -> None:
        self._model, self._tokens_per_batch = model, tokens_per_batch
        self._probed = [store[index] for index in range(min(PROBED, len(store)))]
        self._prompts = [int(prompt) for prompt in store.prompts[: len(self._probed)]]
        self._start = self._measure()

    def _measure(self) -> list[tuple[list[int], LogProbs]]:
        device = next(self._model.parameters()).device
        with torch.no_grad(), autocast(device):
            return [
                (list(ids), logprobs(self._model, segments.to(device)))
                for ids, segments in iter_packed(self._probed, self._tokens_per_batch)
            ]

    def _ratio(self) -> tuple[list[int], Tensor]:
        """Return the numbers of the comparisons, in the order of the batches, and their log-ratios [N, K]."""
        pairs = list(zip(self._measure(), self._start, strict=True))
        return [index for (ids, _), _ in pairs for index in ids], torch.cat(
            [(now - then).total for (_, now), (_, then) in pairs]
        )

    def __call__(self) -> dict[str, float]:
        """Return the means over the comparisons."""
        chosen, rejected = sides(self._ratio()[1])
        gap = chosen - rejected
        named = {"chosen_logratio": chosen, "rejected_logratio": rejected, "margin": gap}
        named |= {"accuracy": _win(gap), "chosen_fell": (chosen < 0).float()}
        return {f"held_out_{name}": value.double().mean().item() for name, value in named.items()}

    def rows(self) -> list[dict[str, float]]:
        """Return each comparison's prompt and the log-ratios of its sides."""
        ids, ratio = self._ratio()
        chosen, rejected = (side.double().tolist() for side in sides(ratio))
        rows = {
            index: {"prompt": self._prompts[index], "chosen_logratio": better, "rejected_logratio": worse}
            for index, better, worse in zip(ids, chosen, rejected, strict=True)
        }
        return [rows[index] for index in sorted(rows)]
