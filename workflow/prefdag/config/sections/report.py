"""The figures and the page of a suite."""

from typing import Literal

from pydantic import Field, field_validator

from prefdag.schema import Count, Positive, Section


class Report(Section):
    """What the page shows in addition to what every page has."""

    compare: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="runs shown next to base and SFT in lengths, reward scores (the first) and samples; "
        "default: the setting of largest reward of DPO, then of the two best other methods",
    )
    samples: Count = Field(8, description="test prompts whose generations are shown side by side")
    reward_label: str = Field("reward (mean per generation)", description="the reward's name and unit on figures")
    matched_kl: tuple[Positive, ...] = Field(
        (), max_length=3, description="KLs in nats at which the league compares methods' rewards; none: no league"
    )
    gold: str | None = Field(
        None,
        exclude_if=lambda gold: gold is None,  # the config of a report without it is what it was before the key existed
        description="a further reward model (`reward.variants`) that no training saw: the reward model's gains against "
        "this one's, over KL and at matched KL",
    )
    hidden_map: Count | None = Field(
        None,
        exclude_if=lambda pairs: pairs is None,
        description="at most so many held-out pairs are mapped by t-SNE of the last hidden states; none: no map",
    )
    step_times: bool = Field(
        False, description="the league also shows time per step, which differs between otherwise equal runs"
    )

    @field_validator("matched_kl")
    @classmethod
    def _each_kl_once(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            raise ValueError(f"{twice[0]:g} is there twice; state each KL once")
        return values


Measured = Literal["reward", "kl", "length", "win_rate", "trained", "accuracy", "accuracy_untrained"]


class Expected(Section):
    """One published number, and the measurement to compare it with."""

    run: str = Field(
        description="the run that it belongs to (seeds are averaged), `base`, `sft`, or `reward` its model"
    )
    measure: str = Field(description="what was published, in the paper's words")
    value: float
    source: str = Field(description="paper and table")
    measured: Measured | None = Field(
        None,
        description="column of runs.csv to compare with, or the reward model's `accuracy` and `accuracy_untrained`; "
        "none: not measured here",
    )
