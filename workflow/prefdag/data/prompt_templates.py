"""Templates: write a prompt and a response as text, so that the prompt ends exactly where the response begins.

`continuation`  text as it is; the response starts with its own space
`plain`         a dialogue in HH's format, up to and including "Assistant:"; text is used as it is
`tldr`          a post up to and including "TL;DR:", then the summary after one space (Stiennon et al. 2020)
`chat`          the tokenizer's chat template; a Jinja file can replace it (transformers' sandbox runs both)
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
    """Writes prompts and responses.

    Attributes:
        writes_end_of_turn: whether the text of a response includes its end-of-turn; else the token is appended to ids.
    """

    writes_end_of_turn: bool

    def prompt(self, prompt: Prompt) -> str:
        """Return the text up to the response. Raises `Unusable` for a prompt that the template cannot write."""

    def response(self, prompt: Prompt, rendered: str, response: str) -> str:
        """Return the text that follows `rendered`, the text of the prompt: the response and what the template adds."""


class TextTemplate:
    """`continuation`, `plain` and `tldr`: the response follows the prompt."""

    writes_end_of_turn = False

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def prompt(self, prompt: Prompt) -> str:
        if self.kind == "tldr":
            body = as_text(prompt) if isinstance(prompt, str) else prompt[-1][1]
            return body.rstrip().removesuffix("TL;DR:").rstrip() + TLDR
        if self.kind == "continuation" and not isinstance(prompt, str):
            raise Unusable("a dialogue, which `continuation` cannot write")
        return as_text(prompt)

    def response(self, prompt: Prompt, rendered: str, response: str) -> str:
        if self.kind == "tldr":
            return f" {response.strip()}"
        needs_space = not isinstance(prompt, str) and not response[:1].isspace()
        return f" {response}" if needs_space else response


class ChatTemplate:
    """The chat template of a tokenizer, or `source`, the text of a Jinja file."""

    writes_end_of_turn = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str | None, system: str | None) -> None:
        self.tokenizer, self.source, self.system = tokenizer, source, system
        self.special = re.compile("|".join(re.escape(text) for text in tokenizer.all_special_tokens if text) or r"(?!)")
        if system is None and (default := self.default_system()) is not None:
            raise UserError(
                f"prepare.system: the template adds the system prompt {default!r} by default; state this or another one"
            )

    def prompt(self, prompt: Prompt) -> str:
        return self._render_checked(self._messages(prompt), opened=True)

    def response(self, prompt: Prompt, rendered: str, response: str) -> str:
        whole = self._render_checked([*self._messages(prompt), ("assistant", response)], opened=False)
        if not whole.startswith(rendered):
            raise UserError(
                "prepare.template: the template changes earlier turns when a response follows them, at "
                f"{rendered[-40:]!r}; use a template that does not"
            )
        return whole[len(rendered) :]

    def _messages(self, prompt: Prompt) -> list[Turn]:
        turns = list(parse_dialogue(prompt) or [("user", str(prompt))]) if isinstance(prompt, str) else list(prompt)
        if self.system is not None and turns[0][0] != "system":
            turns = [("system", self.system), *turns]
        return turns

    def _render_checked(self, turns: Sequence[Turn], opened: bool) -> str:
        for _, content in turns:
            if self.special.search(content):
                raise Unusable("a special token in the text")
        return self._render(turns, opened)

    def _render(self, turns: Sequence[Turn], opened: bool) -> str:
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

    def default_system(self) -> str | None:
        """Return the system prompt that the template adds to a dialogue without one, or None."""
        user, system = "\x01USER\x01", "\x01SYSTEM\x01"
        try:
            bare = self._render([("user", user)], opened=True).partition(user)[0]
            stated = self._render([("system", system), ("user", user)], opened=True).partition(user)[0]
        except Unusable:
            return None  # a template that accepts no system prompt adds none
        before, separator, after = stated.partition(system)
        if not separator or not bare.startswith(before) or not bare.endswith(after) or len(bare) < len(before + after):
            return None
        default = bare[len(before) : len(bare) - len(after)]
        return default if default or after else None


def parse_dialogue(text: str) -> tuple[Turn, ...] | None:
    """Return the turns of a transcript in HH's format, without an open "Assistant:" at its end; None for other text."""
    if not TURN.match(text):
        return None
    _, *parts = TURN.split(text)
    turns = [(ROLES[name], content.strip()) for name, content in zip(parts[::2], parts[1::2], strict=True)]
    return tuple(turns[:-1] if turns[-1] == ("assistant", "") else turns)


def assistant_turns(prompt: Prompt) -> list[tuple[Prompt, str]]:
    """Return (prompt before it, content) for each assistant's turn in a dialogue, in the form of the dialogue."""
    if not isinstance(prompt, str):
        return [(prompt[:at], content) for at, (role, content) in enumerate(prompt) if role == "assistant" and at]
    if not TURN.match(prompt):
        return []
    marks = [*TURN.finditer(prompt)]
    ends = [mark.start() for mark in marks[1:]]  # the last mark starts the response
    return [
        (prompt[: mark.end()], prompt[mark.end() : end])
        for mark, end in zip(marks, ends)
        if mark[1] == "Assistant" and prompt[mark.end() : end].strip()
    ]


def load_template(tokenizer: PreTrainedTokenizerBase, prepare: Prepare) -> Template:
    """Return the template that a suite names.

    Raises `UserError` if the tokenizer has no chat template, a Jinja file is missing, or two settings contradict.
    """
    if prepare.template in ("continuation", "plain", "tldr"):
        if prepare.system is not None:
            raise UserError(f"prepare.system: `{prepare.template}` writes no system prompt; remove it")
        return TextTemplate(prepare.template)
    if prepare.end_of_turn == "none":
        raise UserError(f"prepare.end_of_turn: `{prepare.template}` ends each turn with a token; name it, not `none`")
    if prepare.template == "chat":
        if not tokenizer.chat_template:
            raise UserError("prepare.template: the tokenizer has no chat template; name a Jinja file instead")
        return ChatTemplate(tokenizer, None, prepare.system)
    path = Path(prepare.template)
    if not path.is_file():
        raise UserError(f"prepare.template: {path}: no such file; its path is taken from the suite's")
    return ChatTemplate(tokenizer, path.read_text(encoding="utf-8"), prepare.system)
