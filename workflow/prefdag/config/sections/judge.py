"""Win rates of one set of answers against another, by rewards, by a language model, or by people."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from prefdag.errors import UserError
from prefdag.schema import Count, Positive, Section, Seed

PROMPTS = ("summarisation-simple", "summarisation-concise", "dialogue-helpfulness")
READERS = ("prefdag", "mt-bench", "alpaca-eval", "arena-hard", "json")
NAME = re.compile(r"[\w./:-]+", re.ASCII)
SHEET = re.compile(r"(?!/)[\w./+ -]+\.csv")
USER_PROMPT = re.compile(r"(?!/)[\w./+ -]+\.txt")
REQUEST = ("temperature", "max_tokens", "max_completion_tokens", "reasoning_effort")  # keys of a request


class LLM(Section):
    """An entry that is a mapping: a model at the endpoint that OPENAI_BASE_URL and OPENAI_API_KEY name."""

    model: str = Field(min_length=1, description="as the endpoint calls it")
    name: str = Field("", description="as verdicts and tables call it; empty: the model's name")
    prompt: str = Field(description=f"the question: {', '.join(PROMPTS)}, or your own `<file>.txt`")
    reader: str = Field(
        "prefdag",
        description=f"how an answer is read: {', '.join(READERS)}, or a regular expression with one group that "
        "captures A, B or tie, or with groups named A, B and tie; the last match counts",
    )
    max_tokens: Count | None = Field(512, description="of an answer, its reasoning included; null: not sent")
    max_completion_tokens: Count | None = Field(None, description="the same for models that refuse max_tokens")
    temperature: float | None = Field(0.0, ge=0, description="of an answer; null: not sent, for models that refuse it")
    reasoning_effort: str = Field("", description="such as low; empty: not sent")
    extra_body: dict[str, Any] = Field({}, description="further keys of a request, as the endpoint documents them")
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

    @field_validator("reader")
    @classmethod
    def _known_reader(cls, reader: str) -> str:
        if reader in READERS:
            return reader
        expected = f"expected one of {', '.join(READERS)}, or a regular expression"
        try:
            expression = re.compile(reader)
        except re.error as error:
            raise ValueError(f"{expected}, and {reader!r} is neither ({error})") from None
        if set(expression.groupindex) - {"A", "B", "tie"} or (not expression.groupindex and expression.groups != 1):
            raise ValueError(f"{expected} with one group (...), or with groups named A, B and tie; got {reader!r}")
        return reader

    @field_validator("extra_body")
    @classmethod
    def _keys_of_its_own(cls, body: dict[str, Any]) -> dict[str, Any]:
        if taken := [key for key in body if key in ("model", "messages", "stream", "n", *REQUEST)]:
            raise ValueError(f"{taken[0]} is set by prefdag or by the judge's key of that name; remove it")
        return body

    @model_validator(mode="before")
    @classmethod
    def _one_limit_is_sent(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("max_completion_tokens") is not None:
            return {"max_tokens": None, **values}
        return values

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError(
                "max_completion_tokens: the same limit as max_tokens; set only the one that the model takes"
            )
        return self

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

    def model_named(self, name: str, key: str = "judge") -> LLM:
        """Return a model by its name. Raises `UserError` if no model has it. key: what names it, for the message."""
        by_name = {name_of(judge): judge for judge in self.models}
        if name not in by_name:
            models = f"the models there are {', '.join(by_name)}" if by_name else "no model is there"
            raise UserError(f"{key}: judge:{name}: no model of `judge.judges` has this name; {models}")
        return by_name[name]

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
