"""The figures and the page at the end of a suite."""

from pydantic import Field

from prefdag.config.section import Count, Positive, Section


class Report(Section):
    """What the page shows beside what is always there."""

    compare: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="runs shown beside base and SFT in lengths, reward scores (the first) and samples; "
        "default: the middle beta of DPO, then of each other method, three at most",
    )
    samples: Count = Field(8, description="test prompts whose generations are shown side by side")
    reward_label: str = Field("reward (mean per generation)", description="the reward's name and unit on figures")
    matched_kl: tuple[Positive, ...] = Field(
        (), max_length=3, description="KLs in nats at which the league compares methods' rewards; none: no league"
    )
    step_times: bool = Field(
        False, description="the league also shows time per step, which differs between otherwise equal runs"
    )
