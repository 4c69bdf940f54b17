"""One set of answers: all that a job of `generate` is told."""

from pydantic import Field

from prefdag.config.sampling import Sampling
from prefdag.config.section import Count


class Generation(Sampling):
    """Which prompts, how many responses to each, and how they are drawn."""

    max_prompts: Count | None = Field(None, description="only this many of the test split's prompts")
