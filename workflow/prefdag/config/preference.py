"""Preference training: the settings that all runs of a suite share unless a row says otherwise."""

from pydantic import Field, model_validator

from prefdag.config.training import Training


class Preference(Training):
    """Training of one aligned policy."""

    checkpoints: int = Field(
        0, ge=0, description="weights kept on the way, evenly spaced, each sampled and scored; needs `max_steps`"
    )

    @model_validator(mode="after")
    def _steps_are_known(self) -> "Preference":
        """A checkpoint is named by its step, and names are known before any data is."""
        if self.checkpoints and self.max_steps is None:
            raise ValueError("checkpoints: state max_steps as well, which their steps are counted from")
        if self.max_steps is not None and self.checkpoints >= self.max_steps:
            raise ValueError(f"checkpoints: {self.max_steps} steps have room for {self.max_steps - 1} before the last")
        return self

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """Steps whose weights are kept: evenly between the start, which is SFT, and the last, which is the run."""
        return tuple((self.max_steps or 0) * k // (self.checkpoints + 1) for k in range(1, self.checkpoints + 1))
