"""Responses of a policy to held-out prompts."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prefdag.config.answer_sets import NUMBERED, POOL
from prefdag.config.data import Data
from prefdag.config.prepare import Prepare
from prefdag.config.runs import checked_name
from prefdag.config.sections.generation import Generation
from prefdag.config.sections.run_names import check_names
from prefdag.errors import Mistakes, UserError
from prefdag.schema import Count, NonNegative, Positive, Section, Seed


class Variant(Section):
    """One more set of answers, `<policy>@<name>`: the settings that differ from `generate`."""

    policies: tuple[str, ...] | None = Field(None, min_length=1, description="whose answers; default: every policy's")
    seed: Seed | None = None
    num_samples: Count | None = None
    temperature: NonNegative | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: Count | None = None
    max_prompts: Count | None = None
    prompts: Literal["test", "ood"] = Field(
        "test", description="`ood`: those of `data.ood`, another input distribution, in place of the test split's"
    )


class Generate(Generation):
    """Which prompts, how many responses to each, and further sets of answers."""

    variants: dict[str, Variant] = Field(
        {}, description="further settings by name, each stating what differs; null: none, where a file below states one"
    )
    best_of: int | None = Field(None, ge=2, description="samples per prompt of `sft@pool`, which Best-of-N picks from")
    best_of_prompts: Count | None = Field(None, description="prompts of the pool; default: those of `max_prompts`")
    best_of_temperature: Positive | None = Field(None, description="of the pool; default: `temperature`")
    chosen: bool = Field(False, description="the test split's best responses as one more set of answers, `chosen`")

    @field_validator("variants", mode="before")
    @classmethod
    def _without_removed(cls, variants: Any) -> Any:
        """Leave out what a file on top sets to null: merging files adds keys and removes none."""
        if not isinstance(variants, dict):
            return variants
        return {name: variant for name, variant in variants.items() if variant is not None}

    @model_validator(mode="after")
    def _every_set_differs(self) -> "Generate":
        known = {"generate": (self.prompts_of(""), self.settings(""))}
        for name in (*self.variants, *([POOL] if self.best_of else [])):
            try:
                checked_name(name)
            except ValueError as error:
                raise ValueError(f"variants: {error}") from None
            if name in self.variants and (name == POOL or NUMBERED.fullmatch(name)):
                raise ValueError(f"variants.{name}: this name is taken by other answers; choose another")
            settings = (self.prompts_of(name), self.settings(name))
            equal = next((other for other, others_settings in known.items() if others_settings == settings), None)
            if equal is not None:
                raise ValueError(f"{_key(name)}: its settings are those of {equal}; state what differs or remove it")
            known[_key(name)] = settings
        for key in ("best_of_prompts", "best_of_temperature"):
            if getattr(self, key) and not self.best_of:
                raise ValueError(f"{key}: there is no pool; state `best_of`, its samples per prompt")
        if self.best_of and not (self.best_of_temperature or self.temperature):
            raise ValueError("best_of: samples at temperature 0 are all equal; state best_of_temperature above 0")
        return self

    def settings(self, variant: str) -> Generation:
        """Return how one set of answers is sampled. variant: its name, `pool`, or empty for a policy's own answers."""
        stated = self.model_dump(include=set(Generation.model_fields))
        if variant == POOL:
            prompts = self.best_of_prompts or self.max_prompts
            heat = self.best_of_temperature or self.temperature
            of_pool = {"num_samples": self.best_of, "max_prompts": prompts, "temperature": heat}
            return Generation(**{**stated, **of_pool})
        if variant in self.variants:
            stated |= self.variants[variant].model_dump(exclude_none=True, exclude={"policies", "prompts"})
        return Generation(**stated)

    def prompts_of(self, variant: str) -> str:
        """Return which prompts a variant answers: `test` or `ood`."""
        return self.variants[variant].prompts if variant in self.variants else "test"

    def check_policies(self, known: Sequence[str]) -> None:
        """Raise `UserError` for variants of unknown policies, and those whose win rate would have no opponent."""
        mistakes = Mistakes()
        for name, variant in self.variants.items():
            key = f"generate.variants.{name}.policies"
            mistakes.attempt(check_names, variant.policies or (), known, key, "policy", "policies")
            other = [key for key in ("num_samples", "max_prompts") if getattr(variant, key) is not None]
            other += ["prompts"] if variant.prompts != "test" else []
            if other and "sft" not in (variant.policies or known):
                mistakes.add(
                    f"generate.variants.{name}: {other[0]} differs, so SFT's own answers are no match for these in a "
                    "win rate; add sft to its policies"
                )
        mistakes.check()


def check_prompts(generate: Generate, data: Data, prepare: Prepare) -> None:
    """Raise `UserError` if no prompt is tested, if an interval has one prompt, or `ood` prompts are absent or unread.

    Intervals resample prompts, so they need two at least.
    """
    sources = (*data.sources, data)
    named = data.source == "world" or any(source.test for source in sources)
    if not named and prepare.test_fraction == 0:
        raise UserError(
            "prepare.test_fraction: 0, and data.test names no file, so no prompt would be tested; leave the key "
            "out to hold some of train out"
        )
    there = any(source.ood for source in sources)
    asking = [name for name, variant in generate.variants.items() if variant.prompts == "ood"]
    if asking and not there:
        raise UserError(f"data.ood: missing; generate.variants.{asking[0]} answers these prompts")
    if there and not asking:
        raise UserError("data.ood: nothing reads it; a variant with `prompts: ood` in generate would")
    for key in ("max_prompts", "best_of_prompts"):
        if getattr(generate, key) == 1:
            raise UserError(f"generate.{key}: intervals need at least 2 prompts, got 1")
    for name, variant in generate.variants.items():
        if variant.max_prompts == 1:
            raise UserError(f"generate.variants.{name}.max_prompts: intervals need at least 2 prompts, got 1")


def _key(name: str) -> str:
    return "best_of" if name == POOL else f"variants.{name}"
