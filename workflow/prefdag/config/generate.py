"""Responses of a policy to held-out prompts."""

from pydantic import Field

from prefdag.config.sampling import Sampling
from prefdag.config.section import Count


class Generate(Sampling):
    """Which prompts, and how many responses to each."""

    max_prompts: Count | None = Field(None, description="only this many of the test split's prompts")
