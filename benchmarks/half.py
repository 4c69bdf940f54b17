"""Errors of half precision against float64, and those of padded rows in the same precision."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.data.token_store import Comparison
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.naive import float64_norms, naive_logprobs
from prefdag.models.packing import pack


def errors_in_half(model: PreTrainedModel, pairs: Sequence[Comparison]) -> dict[str, float]:
    """Under autocast to bf16, packed against padded: `logprobs` and `gradients`, norms of the errors against float64,
    over those of padded rows; `mean`, the mean error of a log-prob in standard errors of that mean.

    model: float32 weights, which are left as they are. Two comparisons share a row.
    """
    exact = copy.deepcopy(model).double()
    rows = [list(range(first, min(first + 2, len(pairs)))) for first in range(0, len(pairs), 2)]
    segments = pack(pairs, rows).to(next(model.parameters()).device)
    with float64_norms():
        truth = _found(exact, lambda: naive_logprobs(exact, pairs), half=False)
    naive = _found(model, lambda: naive_logprobs(model, pairs), half=True)
    ours = _found(model, lambda: logprobs(model, segments), half=True)
    off = [
        [(one.double() - true).norm().item() for one, true in zip(some, truth, strict=True)] for some in (ours, naive)
    ]
    logprob, gradient = (one / other for one, other in zip(*off, strict=True))
    each = ours[0].double() - truth[0]
    return {"logprobs": logprob, "gradients": gradient, "mean": (each.mean() / each.std() * len(each) ** 0.5).item()}


def _found(model: PreTrainedModel, compute: Callable[[], LogProbs], half: bool) -> list[Tensor]:
    """Log-probs of every response token, and the gradient of an uneven sum of them with respect to all weights."""
    model.zero_grad()
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=half):
        values = compute().tokens
    (values * torch.linspace(-1, 1, len(values), device=values.device).to(values)).sum().backward()
    result = [values.detach(), torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])]
    model.zero_grad()
    return result
