"""Preference pairs without a reference policy."""

from typing import Literal

from pydantic import Field

from prefdag.config.objectives.entry import Objective, StepIfPerToken
from prefdag.config.objectives.pairs import REFERENCE, Wrong
from prefdag.schema import NonNegative, Positive


class SimPO(Objective):
    """Simple preference optimization: average log-probs, a target margin, no reference."""

    title = "SimPO"
    paper = "Meng et al. 2024, arXiv 2405.14734, eq. 6"
    formula = "-log s(beta (A_w - A_l) - gamma), gamma = beta * gamma_beta_ratio; or its hinge, or smoothed as cdpo"
    conventions = "The authors, HALOs and open-instruct state gamma / beta, TRL and LLaMA-Factory gamma."
    read_with = (("label_smoothing", "loss", "sigmoid"),)
    method: Literal["simpo"]
    beta: Positive = 2.0
    gamma_beta_ratio: float = Field(0.25, ge=0, description="gamma / beta, as the authors' code has it")
    label_smoothing: Wrong = 0.0
    loss: Literal["sigmoid", "hinge"] = "sigmoid"


class AlphaPO(Objective):
    """SimPO on a reward (1 - p^-alpha) / alpha of the average probability p; alpha 0 is SimPO."""

    title = "AlphaPO"
    paper = "Gupta et al. 2025, arXiv 2501.03884"
    formula = "-log s(beta (q_w - q_l) - gamma), q = (1 - exp(-alpha A)) / alpha"
    conventions = (
        "exp(-alpha A) of an average below -700 / alpha is no number in float64; its tangent stands in for it."
    )
    method: Literal["alphapo"]
    beta: Positive = 2.5
    alpha: float = 0.25
    gamma: NonNegative = 0.1


class ORPO(Objective):
    """Odds ratio preference optimization: SFT and a log odds ratio at once, from the base model."""

    title = "ORPO"
    paper = "Hong et al. 2024, arXiv 2403.07691, eqs. 4 and 7"
    formula = "NLL - lam log s(log odds_w - log odds_l), odds = p/(1-p), p = exp(A)"
    scope = StepIfPerToken()
    conventions = "The authors' NLL is -A_w (per_response); TRL's a token mean that counts the prompt too."
    method: Literal["orpo"]
    lam: NonNegative = 0.1
    nll: Literal["per_response", "per_token", "none"] = "per_response"


class CPO(Objective):
    """Contrastive preference optimization: DPO under a uniform reference, and the chosen response's likelihood."""

    title = "CPO"
    paper = "Xu et al. 2024, arXiv 2401.08417, eq. 3"
    formula = "-log s(beta (S_w - S_l)) + cpo_alpha NLL; or its hinge, or smoothed as cdpo"
    scope = StepIfPerToken()
    conventions = "The authors and TRL average the NLL over the step's tokens; turbo-alignment adds the sum -S_w."
    read_with = (("label_smoothing", "loss", "sigmoid"),)
    method: Literal["cpo"]
    beta: Positive = 0.1
    cpo_alpha: NonNegative = 1.0
    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    label_smoothing: Wrong = 0.0
    nll: Literal["per_token", "per_response"] = "per_token"


class SLiC(Objective):
    """Sequence likelihood calibration with human feedback; `lam: 0` is the calibration alone."""

    title = "SLiC"
    paper = "Zhao et al. 2023, arXiv 2305.10425"
    formula = "max(0, delta - S_w + S_l) - lam A_w"
    conventions = "HALOs averages the regulariser over padding too; turbo-alignment's `lam` is a margin."
    method: Literal["slic"]
    delta: NonNegative = 1.0
    lam: NonNegative = 0.1


class PreferredFT(Objective):
    """Supervised fine-tuning on the chosen responses only, the DPO paper's Preferred-FT."""

    title = "Preferred-FT"
    paper = "Rafailov et al. 2023, arXiv 2305.18290, section 6"
    formula = "-S_w"
    method: Literal["preferred_ft"]


class Unlikelihood(Objective):
    """The DPO paper's Unlikelihood baseline: raise the chosen, lower alpha times the rejected log-prob."""

    title = "Unlikelihood"
    paper = "Rafailov et al. 2023, arXiv 2305.18290, section 6"
    formula = "-S_w + alpha S_l"
    conventions = "Not Welleck's unlikelihood, which is `unlikelihood_tokens`."
    method: Literal["unlikelihood"]
    alpha: float = Field(0.5, ge=0, le=1)


class UnlikelihoodTokens(Objective):
    """Unlikelihood training: every token of the rejected response made unlikely, the chosen likely."""

    title = "Token unlikelihood"
    paper = "Welleck et al. 2019, arXiv 1908.04319"
    formula = "-S_w - alpha sum_t log(1 - p_t) over the rejected tokens, 1 - p_t held at 1e-20 or more"
    method: Literal["unlikelihood_tokens"]
    alpha: NonNegative = 1.0


class CPL(Objective):
    """Contrastive preference learning: discounted log-probs as advantages."""

    title = "CPL"
    paper = "Hejna et al. 2023, arXiv 2310.13639"
    formula = "-log s(alpha (G_w - bias G_l)), G = sum_t discount^t log p_t"
    conventions = "The authors' code has no discount, hence 1; their lambda is `bias`."
    method: Literal["cpl"]
    alpha: Positive = 0.1
    bias: float = Field(0.5, gt=0, le=1)
    discount: float = Field(1.0, gt=0, le=1)


class CPLRef(Objective):
    """Contrastive preference learning of log-ratios to a reference."""

    title = "CPL-KL"
    paper = "Hejna et al. 2023, arXiv 2310.13639"
    formula = "-log s(alpha (G_w - bias G_l)), G = sum_t discount^t log(p_t / p_ref_t)"
    reads = REFERENCE
    first_step = "log(2)"
    conventions = "The authors' cpl_kl."
    method: Literal["cpl_ref"]
    alpha: Positive = 0.2
    bias: float = Field(0.75, gt=0, le=1)
    discount: float = Field(1.0, gt=0, le=1)
