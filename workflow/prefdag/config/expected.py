"""Published results, shown in the report beside what was measured."""

from typing import Literal

from pydantic import Field

from prefdag.config.section import Section

Measured = Literal["reward", "kl", "length", "win_rate", "trained", "accuracy", "accuracy_untrained"]


class Expected(Section):
    """One published number, and what of this suite it is to be compared with."""

    run: str = Field(
        description="the run that it belongs to (seeds are averaged), `base`, `sft`, or `reward` its model"
    )
    measure: str = Field(description="what was published, in the paper's words")
    value: float
    source: str = Field(description="paper and table")
    measured: Measured | None = Field(
        None,
        description="column of runs.csv it stands beside, or the reward model's `accuracy` and `accuracy_untrained`; "
        "none: this project does not measure it",
    )
