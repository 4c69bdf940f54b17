"""Comparisons sampled from the SFT policy and labelled by a reward."""

from typing import Literal

from pydantic import Field

from prefdag.config.sections.ground_truths import GROUND_TRUTHS
from prefdag.config.sections.sampling import Sampling
from prefdag.schema import Count


class Pairs(Sampling):
    """The DPO paper's controlled protocol: 4 samples per prompt, all 6 pairs labelled by the ground truth."""

    num_samples: int = Field(4, ge=2)
    max_prompts: Count | None = Field(None, description="only the first distinct prompts of each split")
    reward: Literal[(*GROUND_TRUTHS, "trained")] = Field(  # type: ignore[valid-type]
        "vader",
        description="what labels: `vader`, P(positive) of the `classifier`, or `trained`, the model of `reward.source`",
    )
