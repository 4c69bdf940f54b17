"""Win rates of one policy against another."""

from pydantic import Field

from prefdag.config.section import Count, Section, Seed


class Judge(Section):
    """How the interval of a win rate is drawn. The verdict itself is the headline reward's: higher wins."""

    seed: Seed = 0
    bootstrap: Count = Field(2000, description="resamples of the prompts behind each interval")
