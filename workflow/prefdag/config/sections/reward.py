"""The reward model: its loss, its ensemble, and how values become rewards."""

import re
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from prefdag.config.model import Origin
from prefdag.config.reward_source import RewardSource
from prefdag.config.sections.training import AdaptableTraining
from prefdag.schema import Count, NonNegative, Positive, Seed, wording

VARIANT = re.compile(r"(?!.*(?:^|_)(?:low|high|se)$)[A-Za-z0-9][\w-]*")


class Reward(AdaptableTraining):
    """Scalar heads on the SFT policy, trained on comparisons."""

    learning_rate: Positive = 1e-5
    head_std: NonNegative = Field(0.02, description="standard deviation of the head's initial weights")
    loss: Literal["bradley_terry", "plackett_luce"] = Field(
        "bradley_terry", description="`bradley_terry` of every ordered pair, or `plackett_luce` of the whole ranking"
    )
    label_smoothing: float = Field(0.0, ge=0, le=0.5, description="share of wrong labels (Bradley-Terry)")
    margin: Literal["none", "scores"] = Field(
        "none", description="what a pair's rewards must differ by: nothing, or as the data's scores (Bradley-Terry)"
    )
    centring: Literal["none", "pair_sum", "each"] = Field(
        "none", description="penalty on (r_w + r_l)^2 of a pair (`pair_sum`, TRL) or on r^2 (`each`, align-anything)"
    )
    centring_coefficient: Positive | None = Field(None, description="its weight; TRL 0.01, align-anything 0.001")
    length_normalisation: NonNegative | None = Field(None, description="alpha of the reward r / (alpha + tokens)")
    length_penalty: NonNegative = Field(
        0.0, description="the loss compares r + length_penalty * tokens (R-DPO's), so that r itself is free of length"
    )
    heads: Count = Field(1, description="heads on one trunk, each with its own initial weights")
    seeds: tuple[Seed, ...] = Field((), description="one training for each, in place of `seed`: an ensemble of them")
    combine: Literal["mean", "mean_minus_deviation", "minimum"] = Field(
        "mean", description="the reward of an ensemble: `mean`, `mean_minus_deviation` or `minimum` over its heads"
    )
    normalise: Literal["none", "train", "validation"] = Field(
        "none", description="subtract each head's mean reward over the responses of this split, after training"
    )
    half: Literal["first", "second"] | None = Field(
        None,
        exclude_if=lambda half: half is None,  # the config of a job without it is what it was before the key existed
        description="train on the comparisons of a random half of the prompts; the two halves share none",
    )
    variants: dict[str, dict[str, Any]] = Field(
        {},
        exclude_if=lambda variants: not variants,
        description="further reward models, which score every answer too: name -> the keys that differ from these",
    )

    source: RewardSource | None = Field(
        None, description="a reward model that is not trained here: its source, or a section with further keys"
    )

    @field_validator("source", mode="before")
    @classmethod
    def _source_alone(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _not_trained(self) -> "Reward":
        read = {"source", "seed", "threads", "tokens_per_batch"}
        if self.source is not None:
            for key in sorted(self.model_fields_set - read):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key}: nothing trains the reward model that `source` names; remove it")
        return self

    @model_validator(mode="after")
    def _variants_are_reward_models(self) -> "Reward":
        for name, keys in self.variants.items():
            if not VARIANT.fullmatch(name):
                raise ValueError(
                    f"variants: {name!r}: use letters, digits, `_` and `-`, not `low`, `high` or `se` at the end"
                )
            if other := {"variants", "source", "seeds"} & keys.keys():
                raise ValueError(f"variants.{name}.{min(other)}: belongs to the section `reward`; remove it")
            try:
                self.variant(name)
            except ValidationError as error:
                lines = wording().explain(error.errors(), type(self), "", f"variants.{name}").split("\n")
                raise ValueError("\n".join(line.removeprefix(": ") for line in lines)) from None
        return self

    def variant(self, name: str) -> "Reward":
        """Return the settings of a further reward model: these, with the keys that differ."""
        stated = self.model_dump(exclude={"variants"}, exclude_unset=True)
        return type(self)(**{**stated, **self.variants[name]})

    @model_validator(mode="after")
    def _nothing_goes_unread(self) -> "Reward":
        if self.loss == "plackett_luce":
            for key, unused in (("label_smoothing", 0.0), ("margin", "none")):
                if getattr(self, key) != unused:
                    raise ValueError(f"{key}: the loss plackett_luce does not read it; take bradley_terry or remove it")
        if self.centring == "none" and self.centring_coefficient is not None:
            raise ValueError("centring_coefficient: read only with centring `pair_sum` or `each`; state one")
        if self.centring != "none" and self.centring_coefficient is None:
            raise ValueError(
                f"centring_coefficient: missing; centring `{self.centring}` needs its weight, such as 0.01"
            )
        if self.combine != "mean" and self.heads * len(self.trainings) == 1:
            raise ValueError(
                f"combine: there is one head, so `{self.combine}` is not read; state several heads or seeds"
            )
        if self.heads > 1 and not self.head_std:
            raise ValueError("head_std: 0 starts every head equal, so they stay equal; state a number above 0")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different whole numbers, got {list(self.seeds)}")
        return self

    @property
    def origin(self) -> Origin | None:
        """Where a reward model that is not trained here comes from."""
        return self.source.origin if self.source else None

    def as_job(self) -> dict[str, Any]:
        """Return the config of the job; without a source, the keys of the training alone."""
        return self.model_dump(mode="json", exclude={"variants"} if self.source else {"variants", "source"})

    @property
    def trainings(self) -> tuple[int, ...]:
        """The seed of each training."""
        return self.seeds or (self.seed,)
