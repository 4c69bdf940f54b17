"""Pairs against a reference: losses in which the pairs of a step meet."""

from typing import Literal

from pydantic import Field

from prefdag.config.objectives.entry import Objective
from prefdag.config.objectives.pairs import REFERENCE, Wrong
from prefdag.schema import Fraction, NonNegative, Positive


class AOT(Objective):
    """Alignment by optimal transport: the step's gaps, sorted, against the reference's, sorted."""

    title = "AOT"
    paper = "Melnyk et al. 2024, arXiv 2406.05882"
    formula = "cdpo(beta (sort(S_w - S_l) - sort(R_w - R_l)))"
    reads = REFERENCE
    scope = "step"
    first_step = "log(2)"
    conventions = "TRL sorts each device's micro-batch; here the whole step is sorted, so packing changes nothing."
    method: Literal["aot"]
    beta: Positive = 0.1
    label_smoothing: Wrong = 0.0


class AOTUnpaired(Objective):
    """Alignment by optimal transport: the chosen responses' log-ratios, sorted, against the rejected ones', sorted."""

    title = "AOT (unpaired)"
    paper = "Melnyk et al. 2024, arXiv 2406.05882"
    formula = "cdpo(beta (sort(d_w) - sort(d_l)))"
    reads = REFERENCE
    scope = "step"
    first_step = "log(2)"
    conventions = "TRL sorts each device's micro-batch; here the whole step is sorted, so packing changes nothing."
    method: Literal["aot_unpaired"]
    beta: Positive = 0.1
    label_smoothing: Wrong = 0.0


class BetaDPO(Objective):
    """DPO with a beta of each step's own, over the pairs whose gap lies near the running mean."""

    title = "β-DPO"
    paper = "Wu et al. 2024, arXiv 2407.08639"
    formula = "-log s(b D) over the pairs kept, b = max(0.001, beta (1 + a (mean D - running mean)))"
    reads = frozenset({"reference", "noise", "state"})
    scope = "step"
    conventions = (
        "The authors' running moments start at 0, which fails at policy = reference; here at the first step's."
    )
    method: Literal["beta_dpo"]
    beta: Positive = 0.1
    a: NonNegative = 0.6
    mode_weight: Fraction = Field(0.2, description="the fraction of a step's pairs left out")
    momentum: Fraction = Field(0.9, description="of the running mean and deviation of D")
