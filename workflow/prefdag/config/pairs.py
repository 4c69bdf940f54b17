"""Comparisons sampled from the SFT policy and labelled by a reward."""

from typing import Literal

from pydantic import Field

from prefdag.config.sampling import Sampling


class Pairs(Sampling):
    """The DPO paper's controlled protocol: 4 samples per prompt, all 6 pairs labelled by the ground truth."""

    num_samples: int = Field(4, ge=2)
    reward: Literal["vader"] = "vader"
