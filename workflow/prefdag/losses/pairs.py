"""Losses of preference pairs against a reference policy."""

import torch.nn.functional as F
from torch import Tensor

from prefdag.logprobs import LogProbs, margin


def dpo(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Rafailov et al. 2023, eq. 7: -log s(beta D)."""
    return -F.logsigmoid(beta * margin((policy - reference).total))


def cdpo(policy: LogProbs, reference: LogProbs, *, beta: float, label_smoothing: float) -> Tensor:
    """Mitchell 2023, eq. 3: -(1 - e) log s(beta D) - e log s(-beta D)."""
    logit = beta * margin((policy - reference).total)
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


def ipo(policy: LogProbs, reference: LogProbs, *, beta: float, logprob: str) -> Tensor:
    """Azar et al. 2023, eq. 17: (D - 1 / (2 beta))^2, of summed or of averaged log-ratios."""
    ratio = policy - reference
    return (margin(ratio.total if logprob == "summed" else ratio.mean) - 1 / (2 * beta)) ** 2
