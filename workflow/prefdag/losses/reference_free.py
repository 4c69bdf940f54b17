"""Losses of preference pairs without a reference policy."""

import math
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from prefdag.losses.decorator import loss
from prefdag.losses.functional import box_cox, chosen_nll, log1mexp, preference
from prefdag.models.logprobs import LogProbs, margin
from prefdag.schema import LabelSmoothing, NonNegative, Positive


@loss(
    title="SimPO",
    paper="Meng et al. 2024, arXiv 2405.14734, eq. 6",
    formula="-log s(beta (A_w - A_l) - gamma), gamma = beta * gamma_beta_ratio; or its hinge, or smoothed as cdpo",
    read_with={"label_smoothing": ("loss", "sigmoid")},
    conventions="The authors, HALOs and open-instruct state gamma / beta, TRL and LLaMA-Factory gamma.",
)
def simpo(
    policy: LogProbs,
    *,
    beta: Positive = 2.0,
    gamma_beta_ratio: Annotated[float, Field(ge=0, description="gamma / beta, as the authors' code has it")] = 0.25,
    label_smoothing: LabelSmoothing = 0.0,
    loss: Literal["sigmoid", "hinge"] = "sigmoid",
) -> Tensor:
    """Simple preference optimization: average log-probs, a target margin, no reference."""
    return preference(beta * (margin(policy.mean) - gamma_beta_ratio), loss, label_smoothing)


@loss(
    title="AlphaPO",
    paper="Gupta et al. 2025, arXiv 2501.03884",
    formula="-log s(beta (q_w - q_l) - gamma), q = (1 - exp(-alpha A)) / alpha",
    conventions="exp(-alpha A) of an average below -700 / alpha overflows float64; its tangent replaces it.",
)
def alphapo(policy: LogProbs, *, beta: Positive = 2.5, alpha: float = 0.25, gamma: NonNegative = 0.1) -> Tensor:
    """SimPO on a reward (1 - p^-alpha) / alpha of the average probability p; alpha 0 is SimPO."""
    return -F.logsigmoid(beta * margin(box_cox(policy.mean, alpha)) - gamma)


@loss(
    title="ORPO",
    paper="Hong et al. 2024, arXiv 2403.07691, eqs. 4 and 7",
    formula="NLL - lam log s(log odds_w - log odds_l), odds = p/(1-p), p = exp(A)",
    step_with=("nll", "per_token"),
    conventions="The authors' NLL is -A_w (per_response); TRL's a token mean that counts the prompt too.",
)
def orpo(
    policy: LogProbs, *, lam: NonNegative = 0.1, nll: Literal["per_response", "per_token", "none"] = "per_response"
) -> Tensor:
    """Odds ratio preference optimization: SFT and a log odds ratio at once, from the base model."""
    log_odds = policy.mean - log1mexp(policy.mean)
    ratio = -lam * F.logsigmoid(margin(log_odds))
    return ratio if nll == "none" else chosen_nll(policy, nll) + ratio


@loss(
    title="CPO",
    paper="Xu et al. 2024, arXiv 2401.08417, eq. 3",
    formula="-log s(beta (S_w - S_l)) + cpo_alpha NLL; or its hinge, or smoothed as cdpo",
    step_with=("nll", "per_token"),
    read_with={"label_smoothing": ("loss", "sigmoid")},
    conventions="The authors and TRL average the NLL over the step's tokens; turbo-alignment adds the sum -S_w.",
)
def cpo(
    policy: LogProbs,
    *,
    beta: Positive = 0.1,
    cpo_alpha: NonNegative = 1.0,
    loss: Literal["sigmoid", "hinge"] = "sigmoid",
    label_smoothing: LabelSmoothing = 0.0,
    nll: Literal["per_token", "per_response"] = "per_token",
) -> Tensor:
    """Contrastive preference optimization: DPO under a uniform reference, and the chosen response's likelihood."""
    return preference(beta * margin(policy.total), loss, label_smoothing) + cpo_alpha * chosen_nll(policy, nll)


@loss(
    title="SLiC",
    paper="Zhao et al. 2023, arXiv 2305.10425",
    formula="max(0, delta - S_w + S_l) - lam A_w",
    conventions="HALOs averages the regulariser over padding too; turbo-alignment's `lam` is a margin.",
)
def slic(policy: LogProbs, *, delta: NonNegative = 1.0, lam: NonNegative = 0.1) -> Tensor:
    """Sequence likelihood calibration with human feedback; `lam: 0` is the calibration alone."""
    return F.relu(delta - margin(policy.total)) + lam * chosen_nll(policy, "per_response")


@loss(
    title="Preferred-FT",
    paper="Rafailov et al. 2023, arXiv 2305.18290, section 6",
    formula="-S_w",
)
def preferred_ft(policy: LogProbs) -> Tensor:
    """Supervised fine-tuning on the chosen responses only, the DPO paper's Preferred-FT."""
    return -policy.total[:, 0]


@loss(
    title="Unlikelihood",
    paper="Rafailov et al. 2023, arXiv 2305.18290, section 6",
    formula="-S_w + alpha S_l",
    conventions="Not Welleck's unlikelihood, which is `unlikelihood_tokens`.",
)
def unlikelihood(policy: LogProbs, *, alpha: Annotated[float, Field(ge=0, le=1)] = 0.5) -> Tensor:
    """The DPO paper's Unlikelihood baseline: raise the chosen, lower alpha times the rejected log-prob."""
    return -policy.total[:, 0] + alpha * policy.total[:, 1]


@loss(
    title="Token unlikelihood",
    paper="Welleck et al. 2019, arXiv 1908.04319",
    formula="-S_w - alpha sum_t log(1 - p_t) over the rejected tokens, 1 - p_t at least 1e-20",
)
def unlikelihood_tokens(policy: LogProbs, *, alpha: NonNegative = 1.0) -> Tensor:
    """Unlikelihood training: every token of the rejected response made unlikely, the chosen likely."""
    return -policy.total[:, 0] + alpha * token_unlikelihood(policy)[:, 1]


def token_unlikelihood(policy: LogProbs) -> Tensor:
    """Return -sum_t log(1 - p_t) of every response, with 1 - p_t at least 1e-20: [B, K]."""
    return -policy.summed(log1mexp(policy.tokens).clamp(min=math.log(1e-20)))


@loss(
    title="CPL",
    paper="Hejna et al. 2023, arXiv 2310.13639",
    formula="-log s(alpha (G_w - bias G_l)), G = sum_t discount^t log p_t",
    conventions="The authors' code has no discount, so the default is 1; their lambda is `bias`.",
)
def cpl(
    policy: LogProbs,
    *,
    alpha: Positive = 0.1,
    bias: Annotated[float, Field(gt=0, le=1)] = 0.5,
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0,
) -> Tensor:
    """Contrastive preference learning: discounted log-probs as advantages."""
    discounted = policy.summed(policy.tokens * discount ** policy.position.to(policy.tokens.dtype))
    return -F.logsigmoid(alpha * (discounted[:, 0] - bias * discounted[:, 1]))


@loss(
    title="CPL-KL",
    paper="Hejna et al. 2023, arXiv 2310.13639",
    formula="-log s(alpha (G_w - bias G_l)), G = sum_t discount^t log(p_t / p_ref_t)",
    first_step="log(2)",
    conventions="The authors' cpl_kl.",
)
def cpl_ref(
    policy: LogProbs,
    reference: LogProbs,
    *,
    alpha: Positive = 0.2,
    bias: Annotated[float, Field(gt=0, le=1)] = 0.75,
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0,
) -> Tensor:
    """Contrastive preference learning of log-ratios to a reference."""
    return cpl(policy - reference, alpha=alpha, bias=bias, discount=discount)
