"""Best-of-N from the pool of SFT's samples; the pool itself is `generate.best_of`."""

from pydantic import Field

from prefdag.schema import Count, Section, Seed


class BestOfN(Section):
    """The reward that selects from the pool, and the bootstrap of the intervals: all taken from `score`."""

    selected_by: str = Field(description="the headline reward's column in scores.csv")
    seed: Seed = 0
    bootstrap: Count = Field(1000, description="resamples of the prompts behind each interval")
