"""Pairs against a reference: losses in which a response's own log-ratio counts, not the difference alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.losses.functional import chosen_nll
from prefdag.losses.pairwise import dpo
from prefdag.models.logprobs import LogProbs, margin


def caldpo(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Xiao et al. 2024: -log s(D) + ((d_w - 1 / (2 beta))^2 + (d_l + 1 / (2 beta))^2) / 2."""
    ratio = (policy - reference).total
    return -F.logsigmoid(margin(ratio)) + _squares(ratio, beta)


def sppo_hard(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Wu et al. 2024, eq. 4.7: ((d_w - 1 / (2 beta))^2 + (d_l + 1 / (2 beta))^2) / 2."""
    return _squares((policy - reference).total, beta)


def _squares(ratio: Tensor, beta: float) -> Tensor:
    return ((ratio[:, 0] - 1 / (2 * beta)) ** 2 + (ratio[:, 1] + 1 / (2 * beta)) ** 2) / 2


def dpop(policy: LogProbs, reference: LogProbs, *, beta: float, lam: float) -> Tensor:
    """Pal et al. 2024, eq. 3: -log s(beta (D - lam max(0, -d_w)))."""
    ratio = (policy - reference).total
    return -F.logsigmoid(beta * (margin(ratio) - lam * F.relu(-ratio[:, 0])))


def rpo(policy: LogProbs, reference: LogProbs, *, beta: float, w_dpo: float, w_nll: float, nll: str) -> Tensor:
    """Pang et al. 2024: w_dpo DPO + w_nll NLL of the chosen response."""
    return w_dpo * dpo(policy, reference, beta=beta) + w_nll * chosen_nll(policy, nll)


def nca_pair(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Chen et al. 2024 (NCA): -log s(beta d_w) - log s(-beta d_w) / 2 - log s(-beta d_l) / 2."""
    reward = beta * (policy - reference).total
    return -F.logsigmoid(reward[:, 0]) - F.logsigmoid(-reward).sum(1) / 2


def biased_nca(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Chen et al. 2024 (NCA), the code's biased form: -log s(beta d_w) - log s(-beta d_l)."""
    reward = beta * (policy - reference).total
    return -F.logsigmoid(reward[:, 0]) - F.logsigmoid(-reward[:, 1])


def apo_zero(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 7: 1 - s(beta d_w) + s(beta d_l)."""
    reward = beta * (policy - reference).total
    return torch.sigmoid(-reward[:, 0]) + torch.sigmoid(reward[:, 1])


def apo_down(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """D'Oosterlinck et al. 2024, eq. 8: s(beta d_w) + 1 - s(beta D)."""
    reward = beta * (policy - reference).total
    return torch.sigmoid(reward[:, 0]) + torch.sigmoid(-margin(reward))
