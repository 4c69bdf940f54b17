"""Losses of preference pairs without a reference policy."""

import torch.nn.functional as F
from torch import Tensor

from prefdag.logprobs import LogProbs, margin


def simpo(policy: LogProbs, *, beta: float, gamma_beta_ratio: float) -> Tensor:
    """Meng et al. 2024, eq. 6: -log s(beta (A_w - A_l) - gamma), with gamma = beta * gamma_beta_ratio."""
    return -F.logsigmoid(beta * (margin(policy.mean) - gamma_beta_ratio))


def preferred_ft(policy: LogProbs) -> Tensor:
    """Rafailov et al. 2023, section 6: maximum likelihood on the chosen response, -S_w."""
    return -policy.total[:, 0]


def unlikelihood(policy: LogProbs, *, alpha: float) -> Tensor:
    """Rafailov et al. 2023, section 6: raise the chosen, lower the rejected log-prob, -S_w + alpha S_l."""
    return -policy.total[:, 0] + alpha * policy.total[:, 1]
