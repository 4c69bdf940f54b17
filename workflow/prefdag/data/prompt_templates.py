"""Templates: how a prompt and a response are written as text, the prompt being exactly what stands before the response.

`continuation`  text as it is; the response carries its own leading space
`plain`         a dialogue as HH writes it, up to and including "Assistant:"; text is taken as its own transcript
`tldr`          a post up to and including "TL;DR:", then the summary after one space (Stiennon et al. 2020)
`chat`          the tokenizer's own chat template; a Jinja file is one in its place (transformers' sandbox runs both)
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jinja2
from transformers import PreTrainedTokenizerBase

from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import Prompt, Turn, Unusable, as_text
from prefdag.errors import UserError

TURN = re.compile(r"\n\n(Human|Assistant):")
TLDR = "\n\nTL;DR:"
ROLES = {"Human": "user", "Assistant": "assistant"}


class Template(Protocol):
    """closes: whether a response's text carries its end-of-turn itself; else the token is appended after tokenising."""

    closes: bool

    def prompt(self, prompt: Prompt) -> str:
        """The text up to where the response begins. Raises `Unusable` for a prompt that it cannot write."""

    def response(self, prompt: Prompt, written: str, response: str) -> str:
        """The text of a response after its prompt, which is `written`; with whatever the template puts behind it."""


class TextTemplate:
    """`continuation`, `plain` and `tldr`: prompt and response one after the other."""

    closes = False

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def prompt(self, prompt: Prompt) -> str:
        if self.kind == "tldr":
            body = as_text(prompt) if isinstance(prompt, str) else prompt[-1][1]
            return body.rstrip().removesuffix("TL;DR:").rstrip() + TLDR
        if self.kind == "continuation" and not isinstance(prompt, str):
            raise Unusable("a dialogue, which `continuation` cannot write")
        return as_text(prompt)

    def response(self, prompt: Prompt, written: str, response: str) -> str:
        if self.kind == "tldr":
            return f" {response.strip()}"
        apart = not isinstance(prompt, str) and not response[:1].isspace()
        return f" {response}" if apart else response


class ChatTemplate:
    """A chat template: the tokenizer's own, or a Jinja file's text."""

    closes = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str | None, system: str | None) -> None:
        self.tokenizer, self.source, self.system = tokenizer, source, system
        self.special = re.compile("|".join(re.escape(text) for text in tokenizer.all_special_tokens if text) or r"(?!)")
        if system is None and (own := self._own_system()) is not None:
            raise UserError(
                f"prepare.system: the template adds a system prompt of its own, {own!r}; state it, or another, here"
            )

    def prompt(self, prompt: Prompt) -> str:
        return self._written(self._messages(prompt), opened=True)

    def response(self, prompt: Prompt, written: str, response: str) -> str:
        whole = self._written([*self._messages(prompt), ("assistant", response)], opened=False)
        if not whole.startswith(written):
            raise UserError(
                "prepare.template: a prompt is not the beginning of its own dialogue as the template writes it "
                f"({written[-40:]!r}); use a template that leaves earlier turns alone"
            )
        return whole[len(written) :]

    def _messages(self, prompt: Prompt) -> list[Turn]:
        turns = list(parse_dialogue(prompt) or [("user", str(prompt))]) if isinstance(prompt, str) else list(prompt)
        if self.system is not None and turns[0][0] != "system":
            turns = [("system", self.system), *turns]
        return turns

    def _written(self, turns: Sequence[Turn], opened: bool) -> str:
        for _, content in turns:
            if self.special.search(content):
                raise Unusable("a special token in the text")
        return self._rendered(turns, opened)

    def _rendered(self, turns: Sequence[Turn], opened: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, chat_template=self.source, tokenize=False, add_generation_prompt=opened
                )
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"prepare.template: not a valid Jinja template ({error})") from None
        except (jinja2.TemplateError, TypeError) as error:
            raise Unusable(f"the template refuses it ({' '.join(str(error).split())})") from None

    def _own_system(self) -> str | None:
        """The system prompt that the template puts in where nobody gave one, None where it puts none."""
        user, system = "\x01USER\x01", "\x01SYSTEM\x01"
        try:
            bare = self._rendered([("user", user)], opened=True).partition(user)[0]
            given = self._rendered([("system", system), ("user", user)], opened=True).partition(user)[0]
        except Unusable:
            return None  # a template that takes no system prompt adds none
        before, found, after = given.partition(system)
        if not found or not bare.startswith(before) or not bare.endswith(after) or len(bare) < len(before + after):
            return None
        own = bare[len(before) : len(bare) - len(after)]
        return own if own or after else None


def parse_dialogue(text: str) -> tuple[Turn, ...] | None:
    """The turns of a transcript as HH writes it, an open "Assistant:" at its end left out; None for other text."""
    if not TURN.match(text):
        return None
    _, *parts = TURN.split(text)
    turns = [(ROLES[name], content.strip()) for name, content in zip(parts[::2], parts[1::2], strict=True)]
    return tuple(turns[:-1] if turns[-1] == ("assistant", "") else turns)


def assistant_turns(prompt: Prompt) -> list[tuple[Prompt, str]]:
    """Every assistant's turn that a dialogue already holds, with the prompt before it, in the dialogue's own form."""
    if not isinstance(prompt, str):
        return [(prompt[:at], content) for at, (role, content) in enumerate(prompt) if role == "assistant" and at]
    if not TURN.match(prompt):
        return []
    marks = [*TURN.finditer(prompt)]
    ends = [mark.start() for mark in marks[1:]]  # the last mark opens the response itself
    return [
        (prompt[: mark.end()], prompt[mark.end() : end])
        for mark, end in zip(marks, ends)
        if mark[1] == "Assistant" and prompt[mark.end() : end].strip()
    ]


def load_template(tokenizer: PreTrainedTokenizerBase, prepare: Prepare) -> Template:
    """The template that a suite names.

    Raises `UserError` where the tokenizer has no chat template, a Jinja file is missing, or a choice has no meaning.
    """
    if prepare.template in ("continuation", "plain", "tldr"):
        if prepare.system is not None:
            raise UserError(f"prepare.system: `{prepare.template}` writes no system prompt; remove it")
        return TextTemplate(prepare.template)
    if prepare.end_of_turn == "none":
        raise UserError(f"prepare.end_of_turn: `{prepare.template}` ends each turn with a token; name it, not `none`")
    if prepare.template == "chat":
        if not tokenizer.chat_template:
            raise UserError("prepare.template: the tokenizer brings no chat template; name a Jinja file in its place")
        return ChatTemplate(tokenizer, None, prepare.system)
    path = Path(prepare.template)
    if not path.is_file():
        raise UserError(f"prepare.template: {path}: no such file; its path is taken from the suite's")
    return ChatTemplate(tokenizer, path.read_text(encoding="utf-8"), prepare.system)
