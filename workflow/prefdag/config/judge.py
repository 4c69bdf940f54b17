"""Win rates of one set of answers against another, by rewards, by a language model, or by people."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from prefdag.schema import Count, Positive, Section, Seed

PROMPTS = ("summarisation-simple", "summarisation-concise", "dialogue-helpfulness")
NAME = re.compile(r"[\w./:-]+", re.ASCII)
SHEET = re.compile(r"(?!/)[\w./+ -]+\.csv")
USER_PROMPT = re.compile(r"(?!/)[\w./+ -]+\.txt")


class LLM(Section):
    """An entry that is a mapping: a model at the endpoint that OPENAI_BASE_URL and OPENAI_API_KEY name."""

    model: str = Field(min_length=1, description="as the endpoint calls it")
    name: str = Field("", description="as verdicts and tables call it; empty: the model's name")
    prompt: str = Field(description=f"the question: {', '.join(PROMPTS)}, or your own `<file>.txt`")
    max_tokens: Count = Field(512, description="of an answer; the temperature is 0")
    concurrency: Count = Field(4, description="concurrent requests of one job")
    requests_per_minute: Positive | None = Field(None, description="of one job; default: no limit")
    max_requests: Count = Field(
        10_000, description="of one job, retries included; a job that needs more is refused before its first request"
    )
    attempts: Count = Field(6, description="per question, if the endpoint is busy, fails or does not answer")
    timeout: Positive = Field(120, description="seconds to wait for an answer")

    @field_validator("prompt")
    @classmethod
    def _known_prompt(cls, name: str) -> str:
        if name not in PROMPTS and not USER_PROMPT.fullmatch(name):
            known = ", ".join(PROMPTS)
            raise ValueError(f"expected one of {known}, or <file>.txt relative to the suite's file, got {name!r}")
        return name

    def user_files(self) -> tuple[Path, ...]:
        """Return the prompt's file if it is the user's."""
        return () if self.prompt in PROMPTS else (Path(self.prompt),)


class People(Section):
    """An entry that names a file: the preferences of people, on a sheet written by `prefdag sheet`."""

    people: str = Field(description="a `<file>.csv` with `prompt`, `response_a`, `response_b` and `preferred`")
    name: str = Field("people", description="as verdicts and tables call them")

    @field_validator("people")
    @classmethod
    def _a_sheet(cls, name: str) -> str:
        if not SHEET.fullmatch(name):
            raise ValueError(f"expected <file>.csv relative to the suite's file, got {name!r}")
        return name


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "column"
    return "people" if isinstance(value, People) or (isinstance(value, dict) and "people" in value) else "model"


ByColumn = Annotated[str, Field(min_length=1), Tag("column")]
OneJudge = Annotated[ByColumn | Annotated[LLM, Tag("model")] | Annotated[People, Tag("people")], Discriminator(_kind)]


class Judge(Section):
    """Which answers are compared, who judges them, and the bootstrap of the win rates."""

    seed: Seed = 0
    against: Literal["sft", "chosen"] = Field(
        "sft", description="the opponent: the SFT policy's answers, or the test split's chosen responses"
    )
    bootstrap: Count = Field(2000, description="resamples of the prompts for each interval")
    judges: tuple[OneJudge, ...] = Field(
        ("reward",),
        min_length=1,
        description="columns of scores.csv (higher wins), models and sheets of people; the first is the headline",
    )

    @field_validator("judges")
    @classmethod
    def _named_once(cls, judges: tuple[OneJudge, ...]) -> tuple[OneJudge, ...]:
        names = [name_of(judge) for judge in judges]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"duplicate judge {name}; give each model or sheet its own `name`")
            if not NAME.fullmatch(name):  # trackers take no other
                raise ValueError(f"{name!r}: state a `name` of letters, digits and . _ / : - for this judge")
        return judges

    @property
    def models(self) -> tuple[LLM, ...]:
        return tuple(judge for judge in self.judges if isinstance(judge, LLM))

    @property
    def sheets(self) -> tuple[People, ...]:
        return tuple(judge for judge in self.judges if isinstance(judge, People))

    @property
    def reads_answers(self) -> bool:
        """Whether a judge reads answers: a column is read from the scores."""
        return bool(self.models or self.sheets)

    def user_files(self) -> tuple[Path, ...]:
        """Return the user's prompts and sheets, which a job counts as its code."""
        prompts = [path for judge in self.models for path in judge.user_files()]
        return (*prompts, *(Path(sheet.people) for sheet in self.sheets))


def name_of(judge: str | LLM | People) -> str:
    """Return a judge's name in verdicts and tables."""
    if isinstance(judge, LLM):
        return judge.name or judge.model
    return judge if isinstance(judge, str) else judge.name


def with_relative_paths(values: Any, suite: str) -> Any:
    """Make paths relative to the suite's file relative to the working directory."""
    if not isinstance(values, dict) or not isinstance(values.get("judges"), list):
        return values
    return {**values, "judges": [_located(judge, suite) for judge in values["judges"]]}


def _located(judge: Any, suite: str) -> Any:
    for key, form in (("prompt", USER_PROMPT), ("people", SHEET)):
        name = judge.get(key) if isinstance(judge, dict) else None
        if isinstance(name, str) and form.fullmatch(name):
            return {**judge, key: os.path.relpath(Path(suite).parent / name)}
    return judge
