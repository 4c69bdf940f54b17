"""Rewards, KL and text statistics of generations."""

from typing import Literal

from pydantic import Field

from prefdag.config.sections.ground_truths import GROUND_TRUTHS
from prefdag.schema import Compute, Count

_CHOICES = " or ".join(f"`{name}`" for name in GROUND_TRUTHS)


class Score(Compute):
    """What `reward` means in this suite, and the bootstrap of the intervals."""

    reward: Literal[(*GROUND_TRUTHS, "trained")] = Field(  # type: ignore[valid-type]
        "trained",
        description=f"the headline reward: ground truth ({_CHOICES}), or the reward model (`trained`); default: the "
        "suite's `classifier`, `vader` in the embedded world, else `trained`",
    )
    implicit: tuple[str, ...] = Field(
        (), description="runs whose implicit reward, beta times the log-ratio to SFT, scores every generation as well"
    )
    tokens_per_batch: Count = 4096
    bootstrap: Count = Field(1000, description="resamples of the prompts for each interval")
