"""Preference pairs without a reference policy."""

from typing import Literal

from pydantic import Field

from prefdag.config.objectives.entry import Objective
from prefdag.config.section import Positive


class SimPO(Objective):
    """Simple preference optimization: average log-probs, a target margin, no reference."""

    paper = "Meng et al. 2024, arXiv 2405.14734, eq. 6"
    formula = "-log s(beta (A_w - A_l) - gamma), gamma = beta * gamma_beta_ratio"
    method: Literal["simpo"]
    beta: Positive = 2.0
    gamma_beta_ratio: float = Field(0.25, ge=0, description="gamma / beta, as the authors' code has it")


class PreferredFT(Objective):
    """Supervised fine-tuning on the chosen responses only, the DPO paper's Preferred-FT."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290, section 6"
    formula = "-S_w"
    method: Literal["preferred_ft"]


class Unlikelihood(Objective):
    """The DPO paper's Unlikelihood baseline: raise the chosen, lower alpha times the rejected log-prob."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290, section 6"
    formula = "-S_w + alpha S_l"
    method: Literal["unlikelihood"]
    alpha: float = Field(0.5, ge=0, le=1)
