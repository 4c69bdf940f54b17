"""Losses of preference pairs without a reference policy."""

import math

import torch.nn.functional as F
from torch import Tensor

from prefdag.losses.functional import box_cox, chosen_nll, log1mexp, preference
from prefdag.models.logprobs import LogProbs, margin


def simpo(
    policy: LogProbs, *, beta: float, gamma_beta_ratio: float, label_smoothing: float = 0.0, loss: str = "sigmoid"
) -> Tensor:
    """Meng et al. 2024, eq. 6: -log s(beta (A_w - A_l) - gamma), with gamma = beta * gamma_beta_ratio."""
    return preference(beta * (margin(policy.mean) - gamma_beta_ratio), loss, label_smoothing)


def alphapo(policy: LogProbs, *, beta: float, alpha: float, gamma: float) -> Tensor:
    """Gupta et al. 2025: -log s(beta (q_w - q_l) - gamma), with q = (1 - exp(-alpha A)) / alpha."""
    return -F.logsigmoid(beta * margin(box_cox(policy.mean, alpha)) - gamma)


def orpo(policy: LogProbs, *, lam: float, nll: str) -> Tensor:
    """Hong et al. 2024, eqs. 4 and 7: NLL - lam log s(log odds_w - log odds_l), odds = p / (1 - p), p = exp(A)."""
    log_odds = policy.mean - log1mexp(policy.mean)
    ratio = -lam * F.logsigmoid(margin(log_odds))
    return ratio if nll == "none" else chosen_nll(policy, nll) + ratio


def cpo(policy: LogProbs, *, beta: float, cpo_alpha: float, loss: str, label_smoothing: float, nll: str) -> Tensor:
    """Xu et al. 2024, eq. 3: -log s(beta (S_w - S_l)) + cpo_alpha NLL of the chosen response."""
    return preference(beta * margin(policy.total), loss, label_smoothing) + cpo_alpha * chosen_nll(policy, nll)


def slic(policy: LogProbs, *, delta: float, lam: float) -> Tensor:
    """Zhao et al. 2023: max(0, delta - S_w + S_l) - lam A_w."""
    return F.relu(delta - margin(policy.total)) + lam * chosen_nll(policy, "per_response")


def preferred_ft(policy: LogProbs) -> Tensor:
    """Rafailov et al. 2023, section 6: maximum likelihood on the chosen response, -S_w."""
    return -policy.total[:, 0]


def unlikelihood(policy: LogProbs, *, alpha: float) -> Tensor:
    """Rafailov et al. 2023, section 6: raise the chosen, lower the rejected log-prob, -S_w + alpha S_l."""
    return -policy.total[:, 0] + alpha * policy.total[:, 1]


def unlikelihood_tokens(policy: LogProbs, *, alpha: float) -> Tensor:
    """Welleck et al. 2019: -S_w - alpha sum_t log(1 - p_t) over the rejected response's tokens."""
    return -policy.total[:, 0] + alpha * token_unlikelihood(policy)[:, 1]


def token_unlikelihood(policy: LogProbs) -> Tensor:
    """-sum_t log(1 - p_t) of every response, 1 - p_t held at 1e-20 or more: [B, K]."""
    return -policy.summed(log1mexp(policy.tokens).clamp(min=math.log(1e-20)))


def cpl(policy: LogProbs, *, alpha: float, bias: float, discount: float) -> Tensor:
    """Hejna et al. 2023: -log s(alpha (G_w - bias G_l)), with G = sum_t discount^t log p_t."""
    discounted = policy.summed(policy.tokens * discount ** policy.position.to(policy.tokens.dtype))
    return -F.logsigmoid(alpha * (discounted[:, 0] - bias * discounted[:, 1]))


def cpl_ref(policy: LogProbs, reference: LogProbs, *, alpha: float, bias: float, discount: float) -> Tensor:
    """Hejna et al. 2023, with KL: the same of log-ratios to a reference."""
    return cpl(policy - reference, alpha=alpha, bias=bias, discount=discount)
