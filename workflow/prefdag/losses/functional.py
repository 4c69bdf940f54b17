"""Terms that several losses share, in forms that stay finite where the textbook's overflow."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.models.logprobs import LogProbs


def logistic(logit: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mitchell 2023, eq. 3: -(1 - e) log s(z) - e log s(-z), elementwise."""
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


def preference(logit: Tensor, loss: str, label_smoothing: float) -> Tensor:
    """Of a pair's logit z: "sigmoid", `logistic`, or "hinge", max(0, 1 - z)."""
    return F.relu(1 - logit) if loss == "hinge" else logistic(logit, label_smoothing)


def chosen_nll(policy: LogProbs, reduction: str) -> Tensor:
    """Negative log-likelihood of the chosen response: [B], whose mean is

    "per_response": the mean over responses of -A_w;
    "per_token": that over all chosen tokens together, -sum S_w / sum n_w, which couples the comparisons.
    """
    total, count = policy.total[:, 0], policy.count[:, 0]
    return -total / (count if reduction == "per_response" else count.mean())


def log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0; at x = 0 it is the log of the smallest normal number and its gradient 0."""
    values = values.clamp(max=-torch.finfo(values.dtype).tiny)
    near = torch.log(-torch.expm1(values))
    far = torch.log1p(-torch.exp(values.clamp(max=-math.log(2))))
    return torch.where(values > -math.log(2), near, far)


def expm1(values: Tensor) -> Tensor:
    """exp(x) - 1, continued by its tangent from 20 nats below where it overflows: finite, and so is its gradient."""
    limit = math.log(torch.finfo(values.dtype).max) - 20
    return torch.expm1(values.clamp(max=limit)) + math.exp(limit) * F.relu(values - limit)


def box_cox(logs: Tensor, alpha: float) -> Tensor:
    """(1 - u^-alpha) / alpha of u = exp(logs); at alpha 0 it is its limit, the log."""
    return logs if alpha == 0 else -expm1(-alpha * logs) / alpha
