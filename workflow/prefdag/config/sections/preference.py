"""Preference training: settings that all runs of a suite share unless a row overrides them."""

from pydantic import Field, model_validator

from prefdag.config.sections.training import AdaptableTraining
from prefdag.schema import Positive


class Preference(AdaptableTraining):
    """Training of one aligned policy."""

    learning_rate: Positive = 1e-6
    checkpoints: int = Field(
        0,
        ge=0,
        description="checkpoints saved during training, evenly spaced, each sampled and scored; needs `max_steps`",
    )

    @model_validator(mode="after")
    def _steps_are_known(self) -> "Preference":
        """A checkpoint is named by its step, and names are known before any data is."""
        if self.checkpoints and self.max_steps is None:
            raise ValueError("checkpoints: state max_steps as well; their steps are fractions of it")
        if self.max_steps is not None and self.checkpoints >= self.max_steps:
            raise ValueError(f"checkpoints: {self.max_steps} steps have room for {self.max_steps - 1} before the last")
        return self

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints, evenly spaced between the start (SFT) and the end (the run)."""
        return tuple((self.max_steps or 0) * k // (self.checkpoints + 1) for k in range(1, self.checkpoints + 1))
