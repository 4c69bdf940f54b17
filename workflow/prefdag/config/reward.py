"""The Bradley-Terry reward model."""

from pydantic import Field

from prefdag.config.section import NonNegative
from prefdag.config.training import Training


class Reward(Training):
    """A scalar head on the SFT policy, trained on comparisons."""

    head_std: NonNegative = Field(0.02, description="standard deviation of the head's initial weights")
