"""Win rates of one set of answers against another, by rewards or by a language model."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from prefdag.config.section import Count, Positive, Section, Seed

PROMPTS = ("summarisation-simple", "summarisation-concise", "dialogue-helpfulness")
NAME = re.compile(r"[\w./:-]+", re.ASCII)
OWN_PROMPT = re.compile(r"(?!/)[\w./+ -]+\.txt")


class LLM(Section):
    """An entry that is no column's name: a model behind the endpoint that OPENAI_BASE_URL and OPENAI_API_KEY name."""

    model: str = Field(min_length=1, description="as the endpoint calls it")
    name: str = Field("", description="as verdicts and tables call it; empty: the model's name")
    prompt: str = Field(description=f"what it is asked: {', '.join(PROMPTS)}, or a `<file>.txt` of your own")
    max_tokens: Count = Field(512, description="of an answer; the temperature is 0")
    concurrency: Count = Field(4, description="requests under way at a time, in one job")
    requests_per_minute: Positive | None = Field(None, description="of one job; none: as many as it takes")
    max_requests: Count = Field(10_000, description="of one job, repeated ones among them; refused before it asks more")
    attempts: Count = Field(6, description="at one question where the endpoint is busy, broken or silent")
    timeout: Positive = Field(120, description="seconds until an answer counts as lost")

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, name: str) -> str:
        if name not in PROMPTS and not OWN_PROMPT.fullmatch(name):
            known = ", ".join(PROMPTS)
            raise ValueError(f"expected one of {known}, or <file>.txt relative to the suite's file, got {name!r}")
        return name

    def own_code(self) -> tuple[Path, ...]:
        """The prompt's file where it is the user's own."""
        return () if self.prompt in PROMPTS else (Path(self.prompt),)


def _kind(value: Any) -> str:
    return "column" if isinstance(value, str) else "model"


ByColumn = Annotated[str, Field(min_length=1), Tag("column")]
OneJudge = Annotated[ByColumn | Annotated[LLM, Tag("model")], Discriminator(_kind)]


class Judge(Section):
    """Who is held against whom, by whom, and how the interval of a win rate is drawn."""

    seed: Seed = 0
    against: Literal["sft", "chosen"] = Field(
        "sft", description="the other side: the SFT policy's answers, or the test split's chosen responses"
    )
    bootstrap: Count = Field(2000, description="resamples of the prompts behind each interval")
    judges: tuple[OneJudge, ...] = Field(
        ("reward",),
        min_length=1,
        description="columns of scores.csv (higher wins) and models; the first is the headline",
    )

    @field_validator("judges")
    @classmethod
    def _named_once(cls, judges: tuple[OneJudge, ...]) -> tuple[OneJudge, ...]:
        names = [name_of(judge) for judge in judges]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} stands twice; give each model a `name` of its own")
            if not NAME.fullmatch(name):  # trackers take no other
                raise ValueError(f"{name!r}: state a `name` of letters, digits and . _ / : - for this judge")
        return judges

    @property
    def models(self) -> tuple[LLM, ...]:
        return tuple(judge for judge in self.judges if isinstance(judge, LLM))

    def own_code(self) -> tuple[Path, ...]:
        """Prompts of the user's own; a job counts them as its code."""
        return tuple(path for judge in self.models for path in judge.own_code())


def name_of(judge: str | LLM) -> str:
    """What verdicts and tables call a judge."""
    return judge if isinstance(judge, str) else judge.name or judge.model


def prompts_located(values: Any, suite: str) -> Any:
    """The section as jobs know it: prompts taken from the suite's file become paths from the working directory."""
    if not isinstance(values, dict) or not isinstance(values.get("judges"), list):
        return values
    return {**values, "judges": [_located(judge, suite) for judge in values["judges"]]}


def _located(judge: Any, suite: str) -> Any:
    prompt = judge.get("prompt") if isinstance(judge, dict) else None
    if not isinstance(prompt, str) or not OWN_PROMPT.fullmatch(prompt):
        return judge
    return {**judge, "prompt": os.path.relpath(Path(suite).parent / prompt)}
