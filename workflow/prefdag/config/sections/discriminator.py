"""A reward model that is trained again in every round of a run."""

from typing import Literal

from pydantic import Field

from prefdag.schema import Count, Section


class Discriminator(Section):
    """The reward model of discriminator-guided DPO (D2PO), trained in each round on all gold labels so far.

    Reference: Singhal et al. 2024, D2PO, arXiv 2405.01511, algorithm 1.
    """

    gold_pairs: Count = Field(description="pairs of samples that get a gold label in each round, ties included")
    gold: str = Field(
        "ground_truth",
        description="what labels them: `ground_truth`, one of them by its name, `judge:<name>` of `judge.judges`, or a "
        "function of yours as file.py:function",
    )
    labels: Literal["hard", "bradley_terry"] = Field(
        "hard", description="the better gold score is chosen; or with probability s(difference of gold scores)"
    )
    start: Literal["sft", "previous"] = Field(
        "sft",
        description="of its training: SFT with new heads, or the reward model of the round before, which for round 1 "
        "is that of the section `reward`",
    )
