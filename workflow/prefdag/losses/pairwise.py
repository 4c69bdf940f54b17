"""Pairs against a reference: losses of D alone, the difference of the two log-ratios."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdag.errors import UserError
from prefdag.losses.functional import box_cox, logistic
from prefdag.models.logprobs import LogProbs, margin


def dpo(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Rafailov et al. 2023, eq. 7: -log s(beta D)."""
    return -F.logsigmoid(beta * margin((policy - reference).total))


def cdpo(policy: LogProbs, reference: LogProbs, *, beta: float, label_smoothing: float) -> Tensor:
    """Mitchell 2023, eq. 3: -(1 - e) log s(beta D) - e log s(-beta D)."""
    return logistic(beta * margin((policy - reference).total), label_smoothing)


def robust(policy: LogProbs, reference: LogProbs, *, beta: float, label_smoothing: float) -> Tensor:
    """Chowdhury et al. 2024: (-(1 - e) log s(beta D) + e log s(-beta D)) / (1 - 2e)."""
    logit = beta * margin((policy - reference).total)
    noisy = -(1 - label_smoothing) * F.logsigmoid(logit) + label_smoothing * F.logsigmoid(-logit)
    return noisy / (1 - 2 * label_smoothing)


def dpo_norm(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """DPO on average log-ratios: -log s(beta (d_w / n_w - d_l / n_l))."""
    return -F.logsigmoid(beta * margin((policy - reference).mean))


def ipo(policy: LogProbs, reference: LogProbs, *, beta: float, logprob: str) -> Tensor:
    """Azar et al. 2023, eq. 17: (D - 1 / (2 beta))^2, of summed or of averaged log-ratios."""
    ratio = policy - reference
    return (margin(ratio.total if logprob == "summed" else ratio.mean) - 1 / (2 * beta)) ** 2


def hinge(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Liu et al. 2023 (RSO): max(0, 1 - beta D)."""
    return F.relu(1 - beta * margin((policy - reference).total))


def odpo(policy: LogProbs, reference: LogProbs, *, scores: Tensor, beta: float, alpha: float) -> Tensor:
    """Amini et al. 2024: -log s(beta D - alpha log(r_w - r_l)); a tied pair has loss and gradient 0.

    Raises `UserError` where the chosen response's score is the lower one.
    """
    gap = margin(scores)
    if not (gap >= 0).all():
        raise UserError("odpo: a chosen response has a lower score than the rejected one; leave such pairs out")
    offset = alpha * torch.where(gap > 0, gap, 1.0).log()
    return torch.where(gap > 0, -F.logsigmoid(beta * margin((policy - reference).total) - offset), 0.0)


def rebel(policy: LogProbs, reference: LogProbs, *, scores: Tensor, eta: float) -> Tensor:
    """Gao et al. 2024 (REBEL): (D - eta (r_w - r_l))^2, the reference being the previous iterate."""
    return (margin((policy - reference).total) - eta * margin(scores)) ** 2


def exo_pair(policy: LogProbs, reference: LogProbs, *, beta: float, label_smoothing: float, target: str) -> Tensor:
    """Ji et al. 2024, eq. 16: KL(q || (1 - e, e)) with q = s(beta D).

    The authors' code has 0 for log(1 - e) and -10 for log e.
    """
    e = torch.tensor(label_smoothing, dtype=torch.float64)
    log_right, log_wrong = (0.0, -10.0) if target == "authors" else (torch.log1p(-e).item(), e.log().item())
    logit = beta * margin((policy - reference).total)
    log_q, log_rest = F.logsigmoid(logit), F.logsigmoid(-logit)
    return log_q.exp() * (log_q - log_right) + log_rest.exp() * (log_rest - log_wrong)


def discopop(policy: LogProbs, reference: LogProbs, *, beta: float, tau: float) -> Tensor:
    """Lu et al. 2024, eq. 5: -log s(z) (1 - s(z / tau)) + exp(-z) s(z / tau) with z = beta D."""
    logit = beta * margin((policy - reference).total)
    modulation = logit / tau
    return -F.logsigmoid(logit) * torch.sigmoid(-modulation) + torch.exp(-logit + F.logsigmoid(modulation))


def f_dpo(policy: LogProbs, reference: LogProbs, *, beta: float, divergence: str, alpha: float) -> Tensor:
    """Wang et al. 2023: -log s(beta (f'(u_w) - f'(u_l))) with u = exp(d).

    f'(u), up to a constant: forward KL -1 / u, Jensen-Shannon log(u / (1 + u)), alpha (1 - u^-alpha) / alpha.
    """
    ratio = (policy - reference).total
    derivative = F.logsigmoid(ratio) if divergence == "jensen_shannon" else box_cox(ratio, alpha)
    if divergence == "forward_kl":
        derivative = box_cox(ratio, 1.0)
    return -F.logsigmoid(beta * margin(derivative))


def log_ratio(policy: LogProbs, reference: LogProbs, *, beta: float) -> Tensor:
    """Rafailov et al. 2023, section 4: -beta D, DPO's gradient without its weight, under which models degenerate."""
    return -beta * margin((policy - reference).total)
