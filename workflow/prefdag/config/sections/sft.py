"""Supervised fine-tuning on demonstrations."""

from typing import Self

from pydantic import Field, model_validator

from prefdag.config.sections.training import AdaptableTraining
from prefdag.schema import Positive


class SFT(AdaptableTraining):
    """Next-token prediction on the counted tokens of the first response."""

    learning_rate: Positive = 2e-5
    max_steps: int | None = Field(
        None,
        ge=0,
        description="optimizer steps, whatever `epochs` states; 0: the base model is the SFT policy as it is",
    )

    @model_validator(mode="after")
    def _adapter_is_trained(self) -> Self:
        if self.adapter is not None and self.max_steps == 0:
            raise ValueError("adapter: max_steps is 0, so nothing is trained; remove one of the two")
        return self
