"""Supervised fine-tuning on demonstrations."""

from pydantic import Field

from prefdag.config.sections.training import Training
from prefdag.schema import Positive


class SFT(Training):
    """Next-token prediction on the counted tokens of the first response."""

    learning_rate: Positive = 2e-5
    max_steps: int | None = Field(
        None,
        ge=0,
        description="optimizer steps, whatever `epochs` states; 0: the base model is the SFT policy as it is",
    )
