"""Preference pairs against a reference policy."""

from typing import Literal

from pydantic import Field

from prefdag.config.objectives.entry import Objective
from prefdag.config.section import Positive


class DPO(Objective):
    """Direct preference optimization."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290, eq. 7"
    formula = "-log s(beta D)"
    reads = frozenset({"reference"})
    method: Literal["dpo"]
    beta: Positive = 0.1


class CDPO(Objective):
    """Conservative DPO: labels are wrong with probability `label_smoothing`."""

    paper = "Mitchell 2023, A note on DPO with noisy preferences, eq. 3"
    formula = "-(1-e) log s(beta D) - e log s(-beta D)"
    reads = frozenset({"reference"})
    method: Literal["cdpo"]
    beta: Positive = 0.1
    label_smoothing: float = Field(0.1, ge=0, le=0.5)


class IPO(Objective):
    """Identity preference optimization. Tools disagree on sums or means, so `logprob` has no default."""

    paper = "Azar et al. 2023, arXiv 2310.12036, eq. 17"
    formula = "(D - 1/(2 beta))^2, D of summed or averaged log-ratios"
    reads = frozenset({"reference"})
    method: Literal["ipo"]
    beta: Positive = 0.1
    logprob: Literal["summed", "averaged"]
