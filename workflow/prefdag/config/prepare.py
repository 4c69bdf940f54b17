"""Raw rows to comparisons of token ids. What `auto` comes to is printed and stated in the manifest."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from prefdag.config.adapters import ADAPTERS, USER_ADAPTER, adapter_files
from prefdag.schema import Count, Fraction, Section, Seed

AUTO: Literal["auto"] = "auto"
TEMPLATES = ("continuation", "plain", "tldr", "chat")
JINJA = re.compile(r"(?!/)[\w./+ -]+\.jinja")


def known_adapter(name: str) -> str:
    """Return the name of an adapter. Raises `ValueError` if there is none of this name."""
    if name not in ADAPTERS and not USER_ADAPTER.fullmatch(name):
        known = ", ".join(ADAPTERS)
        raise ValueError(f"expected one of {known}, or <file>.py:<function> relative to the suite's file, got {name!r}")
    return name


def known_template(name: str) -> str:
    """Return the name of a template. Raises `ValueError` if there is none of this name."""
    if name not in (*TEMPLATES, AUTO) and not JINJA.fullmatch(name):
        known = ", ".join(TEMPLATES)
        raise ValueError(f"expected one of {known}, or <file>.jinja relative to the suite's file, got {name!r}")
    return name


class HeldOut(Section):
    """The shares of prompts held out of train where a split has no file."""

    seed: Seed = 0
    validation: Fraction = 0
    test: Fraction = 0


class Prepare(Section):
    """How rows become comparisons, and comparisons tokens."""

    seed: Seed = 0
    adapter: str = Field(
        "pairs",
        description=f"how rows are read as comparisons: {', '.join(ADAPTERS)}, or your own `<file>.py:<function>`",
    )
    template: str = Field(
        AUTO,
        description=f"how prompt and response are written: {', '.join(TEMPLATES)}, or your own `<file>.jinja`; "
        "`auto`: `chat`, with the system prompt that it adds by itself, if the tokenizer has a template, else `plain`",
    )
    system: str | None = Field(None, description="system prompt of `chat` and Jinja templates; none: no system prompt")
    counted: Literal["last", "all"] = Field(
        "last", description="assistant turns of a demonstration that are counted: the last, or all (a comparison each)"
    )
    rejected: Literal["second", "worst", "random"] = Field(
        "second", description="which of K > 2 responses is paired with the best"
    )
    bos: Literal[True, False, "auto"] = Field(
        AUTO,
        description="one beginning-of-sequence token before the prompt; `auto`: as the tokenizer adds one to text, "
        "unless the template writes it",
    )
    end_of_turn: str = Field(
        AUTO,
        description="the token that ends, and is counted with, each response: `eos`, `none`, or the token itself; "
        "`auto`: the one that the chat template writes after a response, else `eos`",
    )
    over_long: Literal["drop", "cut-prompt-start", "cut-response-end", "error"] = Field(
        "drop",
        description="what happens to a row over the limits below; a response cut at its end has no end-of-turn",
    )
    max_prompt_tokens: Count = 512
    max_response_tokens: Count = 512
    validation_fraction: Fraction | None = Field(
        None,
        description="share of prompts held out of train, if there is no file; default: a twentieth, 1 to 500 prompts",
    )
    test_fraction: Fraction | None = Field(
        None,
        description="share of prompts held out of train for test, if there is no file; default: a tenth, 2 to 1000",
    )
    leakage: Literal["error", "drop", "unseen", "allow"] = Field(
        "error",
        description="prompts shared between splits, or between SFT's training and held-out comparisons; drop: rows of "
        "train, then of validation, whose prompt a later split holds are left out and counted; unseen: no held-out "
        "prompt begins a text that pre-training or SFT reads: `pretrain` leaves out the rows that are held out, and "
        "`pairs` samples other prompts in place of those that begin a remaining row",
    )

    @property
    def unseen(self) -> "HeldOut | None":
        """What pre-training leaves out, if no held-out prompt may begin a text that it reads."""
        if self.leakage != "unseen":
            return None
        return HeldOut(seed=self.seed, validation=self.validation_fraction or 0, test=self.test_fraction or 0)

    @field_validator("adapter")
    @classmethod
    def _known_adapter(cls, name: str) -> str:
        return known_adapter(name)

    @field_validator("template")
    @classmethod
    def _known_template(cls, name: str) -> str:
        return known_template(name)

    @field_validator("end_of_turn")
    @classmethod
    def _some_token(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("expected `eos`, `none`, or the text of one special token, got an empty text")
        return name

    def user_files(self) -> tuple[Path, ...]:
        """Return the user's files that the section names, which a job counts as its code."""
        adapter = adapter_files(self.adapter)
        return adapter if self.template in (*TEMPLATES, AUTO) else (*adapter, Path(self.template))


def with_relative_paths(values: Any, suite: str) -> Any:
    """Make paths relative to the suite's file relative to the working directory."""
    if not isinstance(values, dict):
        return values
    located = dict(values)
    for key, form in (("adapter", USER_ADAPTER), ("template", JINJA)):
        if isinstance(name := values.get(key), str) and form.fullmatch(name):
            located[key] = os.path.relpath(Path(suite).parent / name)
    return located
