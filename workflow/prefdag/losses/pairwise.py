"""Pairs against a reference: losses of D alone, the difference of the two log-ratios."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prefdag.errors import UserError
from prefdag.losses.decorator import loss
from prefdag.losses.functional import box_cox, logistic
from prefdag.models.logprobs import LogProbs, margin
from prefdag.schema import LabelSmoothing, NonNegative, Positive


@loss(
    title="DPO",
    paper="Rafailov et al. 2023, arXiv 2305.18290, eq. 7",
    formula="-log s(beta D)",
    first_step="log(2)",
)
def dpo(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """Direct preference optimization."""
    return -F.logsigmoid(beta * margin((policy - reference).total))


@loss(
    title="cDPO",
    paper="Mitchell 2023, A note on DPO with noisy preferences, eq. 3",
    formula="-(1-e) log s(beta D) - e log s(-beta D)",
    first_step="log(2)",
    conventions="TRL 1 accepts a label smoothing with its sigmoid loss and returns plain DPO.",
)
def cdpo(
    policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1, label_smoothing: LabelSmoothing = 0.1
) -> Tensor:
    """Conservative DPO: labels are wrong with probability `label_smoothing`."""
    return logistic(beta * margin((policy - reference).total), label_smoothing)


@loss(
    title="Robust DPO",
    paper="Chowdhury et al. 2024, arXiv 2403.00409",
    formula="(-(1-e) log s(beta D) + e log s(-beta D)) / (1 - 2e)",
    first_step="log(2)",
)
def robust(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[
        float, Field(ge=0, lt=0.5, description="the fraction of labels known to be wrong, below 0.5")
    ] = 0.1,
) -> Tensor:
    """Robust DPO: unbiased under labels flipped with a known probability."""
    logit = beta * margin((policy - reference).total)
    noisy = -(1 - label_smoothing) * F.logsigmoid(logit) + label_smoothing * F.logsigmoid(-logit)
    return noisy / (1 - 2 * label_smoothing)


@loss(
    title="DPO-norm",
    paper="open-instruct, dpo_norm",
    formula="-log s(beta (d_w / n_w - d_l / n_l))",
    first_step="log(2)",
)
def dpo_norm(policy: LogProbs, reference: LogProbs, *, beta: Positive = 5.0) -> Tensor:
    """DPO on average log-ratios."""
    return -F.logsigmoid(beta * margin((policy - reference).mean))


@loss(
    title="IPO",
    paper="Azar et al. 2023, arXiv 2310.12036, eq. 17",
    formula="(D - 1/(2 beta))^2, D of summed or averaged log-ratios",
    first_step="(1 / (2 * beta))**2",
    conventions="The DPO repository and OpenRLHF sum, TRL and HALOs average; the same beta means different things.",
)
def ipo(
    policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1, logprob: Literal["summed", "averaged"]
) -> Tensor:
    """Identity preference optimization. Tools disagree on sums or means, so `logprob` has no default."""
    ratio = policy - reference
    return (margin(ratio.total if logprob == "summed" else ratio.mean) - 1 / (2 * beta)) ** 2


@loss(
    title="Hinge",
    paper="Liu et al. 2023, RSO, arXiv 2309.06657",
    formula="max(0, 1 - beta D)",
    first_step="1",
)
def hinge(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """The hinge on DPO's logit."""
    return F.relu(1 - beta * margin((policy - reference).total))


@loss(
    title="ODPO",
    paper="Amini et al. 2024, arXiv 2402.10571",
    formula="-log s(beta D - alpha log(r_w - r_l)); 0 for a tied pair",
    conventions="In the authors' code a pair whose chosen response has the lower score is NaN; here it is an error.",
)
def odpo(
    policy: LogProbs,
    reference: LogProbs,
    *,
    scores: Tensor,
    beta: Annotated[
        float, Field(gt=0, description="the authors' 0.7 for sentiment, 0.05 for toxicity, 0.5 for summaries")
    ] = 0.5,
    alpha: NonNegative = 1.0,
) -> Tensor:
    """DPO with an offset: the required margin grows with the difference of the scores.

    Raises:
        UserError: a chosen response has the lower score.
    """
    gap = margin(scores)
    if not (gap >= 0).all():
        raise UserError("odpo: a chosen response has a lower score than the rejected one; leave such pairs out")
    offset = alpha * torch.where(gap > 0, gap, 1.0).log()
    return torch.where(gap > 0, -F.logsigmoid(beta * margin((policy - reference).total) - offset), 0.0)


@loss(
    title="REBEL",
    paper="Gao et al. 2024, arXiv 2404.16767",
    formula="(D - eta (r_w - r_l))^2",
    conventions="The authors' reference is the previous iterate; over one round it is the SFT policy.",
)
def rebel(policy: LogProbs, reference: LogProbs, *, scores: Tensor, eta: Positive = 1.0) -> Tensor:
    """Regression of the difference of rewards on the difference of log-ratios."""
    return (margin((policy - reference).total) - eta * margin(scores)) ** 2


@loss(
    title="EXO",
    paper="Ji et al. 2024, arXiv 2402.00856, eq. 16",
    formula="q (log q - log(1-e)) + (1-q) (log(1-q) - log e), q = s(beta D)",
    read_with={"label_smoothing": ("target", "smoothed")},
    conventions="The authors' code leaves out log(1-e) and fixes log e at -10: `target: authors`.",
)
def exo_pair(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Field(gt=0, le=0.5, description="above 0, at most 0.5")] = 0.001,
    target: Literal["smoothed", "authors"] = "smoothed",
) -> Tensor:
    """Exact optimization: the reverse KL of the policy's preference to the smoothed label.

    With `target: authors`, log(1 - e) is 0 and log e is -10.
    """
    e = torch.tensor(label_smoothing, dtype=torch.float64)
    log_right, log_wrong = (0.0, -10.0) if target == "authors" else (torch.log1p(-e).item(), e.log().item())
    logit = beta * margin((policy - reference).total)
    log_q, log_rest = F.logsigmoid(logit), F.logsigmoid(-logit)
    return log_q.exp() * (log_q - log_right) + log_rest.exp() * (log_rest - log_wrong)


@loss(
    title="DiscoPOP",
    paper="Lu et al. 2024, arXiv 2406.08414, eq. 5",
    formula="-log s(z) (1 - s(z/tau)) + exp(-z) s(z/tau), z = beta D",
    first_step="(log(2) + 1) / 2",
)
def discopop(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.05,
    tau: Annotated[float, Field(gt=0, le=1, description="above 0, at most 1, beyond which the loss overflows")] = 0.05,
) -> Tensor:
    """The loss that a language model discovered: logistic and exponential, blended by the logit."""
    logit = beta * margin((policy - reference).total)
    modulation = logit / tau
    return -F.logsigmoid(logit) * torch.sigmoid(-modulation) + torch.exp(-logit + F.logsigmoid(modulation))


@loss(
    title="f-DPO",
    paper="Wang et al. 2023, arXiv 2309.16240",
    formula="-log s(beta (f'(u_w) - f'(u_l))), u = exp(d); f'(u) = -1/u, log(u/(1+u)) or (1 - u^-alpha)/alpha",
    first_step="log(2)",
    read_with={"alpha": ("divergence", "alpha")},
    conventions="TRL's coefficient of the alpha divergence is 1 - alpha.",
)
def f_dpo(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.1,
    divergence: Literal["forward_kl", "jensen_shannon", "alpha"],
    alpha: Annotated[
        float, Field(gt=0, lt=1, description="of the alpha divergence; 0 would be DPO, 1 the forward KL")
    ] = 0.5,
) -> Tensor:
    """DPO under another divergence than the reverse KL.

    f'(u), up to a constant: forward KL -1 / u, Jensen-Shannon log(u / (1 + u)), alpha (1 - u^-alpha) / alpha.
    """
    ratio = (policy - reference).total
    derivative = F.logsigmoid(ratio) if divergence == "jensen_shannon" else box_cox(ratio, alpha)
    if divergence == "forward_kl":
        derivative = box_cox(ratio, 1.0)
    return -F.logsigmoid(beta * margin(derivative))


@loss(
    title="Log-ratio",
    paper="Rafailov et al. 2023, arXiv 2305.18290, section 4",
    formula="-beta D",
    first_step="0",
)
def log_ratio(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """DPO's gradient without its weight, under which the DPO paper saw models degenerate."""
    return -beta * margin((policy - reference).total)
