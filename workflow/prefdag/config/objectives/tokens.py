"""Pairs against a reference: losses of the tokens one by one, or of the distributions they were drawn from."""

from typing import Literal

from pydantic import Field

from prefdag.config.objectives.entry import Objective
from prefdag.config.objectives.pairs import REFERENCE, Wrong
from prefdag.schema import NonNegative, Positive


class LDDPO(Objective):
    """Length-desensitised DPO: tokens beyond the shorter response's length count less."""

    title = "LD-DPO"
    paper = "Liu et al. 2024, arXiv 2409.06411"
    formula = "-log s(beta D), D of S = sum of the first min(n_w, n_l) tokens + alpha times the rest"
    reads = REFERENCE
    first_step = "log(2)"
    conventions = "LLaMA-Factory and older TRL weigh the policy alone; here, as in TRL 1, the reference too."
    method: Literal["ld_dpo"]
    beta: Positive = 0.1
    alpha: float = Field(ge=0, le=1, description="weight of a token beyond the shared length; 1 is DPO")


class WPO(Objective):
    """Weighted preference optimization: cDPO, weighted by how likely the policy is to have written the pair."""

    title = "WPO"
    paper = "Zhou et al. 2024, arXiv 2406.11827, eq. 2"
    formula = "w cdpo(beta D), w = min(1, exp(mean_w + mean_l)), means over tokens of log p_t - log sum_v p_v^2"
    reads = frozenset({"reference", "collision"})
    conventions = "TRL leaves out min(1, .); open-instruct weighs by sums."
    method: Literal["wpo"]
    beta: Positive = 0.01
    label_smoothing: Wrong = 0.0


class TDPO1(Objective):
    """Token-level DPO: sequential KL in the margin."""

    title = "TDPO1"
    paper = "Zeng et al. 2024, arXiv 2404.11999"
    formula = "-log s(beta (D - (K_l - K_w))), K = sum_t KL(reference_t || policy_t)"
    reads = frozenset({"reference", "divergence"})
    first_step = "log(2)"
    method: Literal["tdpo1"]
    beta: Positive = 0.1


class TDPO2(Objective):
    """Token-level DPO, the chosen response's KL without gradient."""

    title = "TDPO2"
    paper = "Zeng et al. 2024, arXiv 2404.11999"
    formula = "-log s(beta (D - alpha (K_l - sg K_w))), K = sum_t KL(reference_t || policy_t)"
    reads = frozenset({"reference", "divergence"})
    first_step = "log(2)"
    method: Literal["tdpo2"]
    beta: Positive = 0.1
    alpha: NonNegative = 0.5
