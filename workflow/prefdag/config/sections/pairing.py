"""How the scored samples of a round become pairs."""

from typing import Literal

from pydantic import Field

from prefdag.schema import NonNegative, Positive, Section


class Pairing(Section):
    """How a round's scored samples become pairs."""

    law: Literal["max_min", "margin", "rso", "best_of_n"] = Field(
        description="`max_min`: the best and the worst sample; `margin`: every pair whose scores differ by more than "
        "`threshold`; `rso`: disjoint pairs of the samples that statistical rejection accepts; `best_of_n`: the best, "
        "for a loss that reads chosen responses alone"
    )
    threshold: NonNegative = Field(0.0, description="of `margin`")
    beta: Positive = Field(0.5, description="of `rso`: a sample is accepted with exp((score - largest) / beta)")
    keep: int = Field(8, ge=2, description="of `rso`: samples accepted for each prompt")
    labels: Literal["hard", "bradley_terry", "soft"] = Field(
        "hard",
        description="the better score is chosen; or with probability s(difference of scores); or the loss counts both "
        "orders, weighted by that probability",
    )
