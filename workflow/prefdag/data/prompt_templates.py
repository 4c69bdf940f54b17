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
from prefdag.data.adapters.dialogues import LEADING, TURN, as_messages, as_turns
from prefdag.data.adapters.records import CALLS, TOOLS, Prompt, Turn, Unusable, as_text
from prefdag.data.template_checks import check_response, check_turns, role_left_out, special_literals
from prefdag.errors import UserError

TLDR = "\n\nTL;DR:"
USER, MARK = "\x01USER\x01", "\x01MARK\x01"  # texts that no template and no row writes
DESCRIBED = {TOOLS: "the tools", CALLS: "the tool calls", "system": "the system turn"}
SPECIAL = "a special token in the text"


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

    def __init__(self, kind: str, special: re.Pattern[str]) -> None:
        self.kind, self.special = kind, special

    def prompt(self, prompt: Prompt) -> str:
        text = self._text(prompt)
        if self.special.search(text):
            raise Unusable(SPECIAL)
        return text

    def _text(self, prompt: Prompt) -> str:
        if self.kind == "tldr" and not isinstance(prompt, str) and [role for role, _ in prompt] == ["user"]:
            prompt = prompt[0][1]
        if self.kind != "plain" and not isinstance(prompt, str):
            raise Unusable(f"a dialogue, which `{self.kind}` cannot write")
        if not isinstance(prompt, str) and {TOOLS, CALLS} & {role for role, _ in prompt}:
            raise Unusable(f"tools, which `{self.kind}` cannot write")
        if self.kind == "tldr":
            return str(prompt).rstrip().removesuffix("TL;DR:").rstrip() + TLDR
        return as_text(prompt)

    def response(self, prompt: Prompt, rendered: str, response: str) -> str:
        if self.special.search(response):
            raise Unusable(SPECIAL)
        if self.kind == "tldr":
            return f" {response.strip()}"
        needs_space = not isinstance(prompt, str) and not is_prefilled(prompt) and not response[:1].isspace()
        return f" {response}" if needs_space else response


class ChatTemplate:
    """The chat template of a tokenizer, or `source`, the text of a Jinja file."""

    writes_end_of_turn = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str | None, system: str | None) -> None:
        self.tokenizer, self.source, self.system = tokenizer, source, system
        self.special = special_literals(tokenizer)
        self._left_out: dict[tuple[str, ...], str | None] = {}  # by the roles of a dialogue: a role left out

    def check(self) -> None:
        """Raise `UserError` for what is wrong with the template for any rows."""
        system = self.system
        if system is None and (default := self.default_system()) is not None:
            raise UserError(
                f"prepare.system: the template adds the system prompt {default!r} by default; state this or another one"
            )
        if system is not None and self.special.search(system):
            raise UserError(f"prepare.system: {SPECIAL} {system[:40]!r}; remove it")
        if system is not None and role_left_out(("system", "user"), self._opened) == "system":
            raise UserError("prepare.system: the template writes no system prompt; remove it or name another template")
        self._check_header()

    def prompt(self, prompt: Prompt) -> str:
        turns = self._turns(prompt)
        if any(self.special.search(content) for _, content in turns):
            raise Unusable(SPECIAL)
        roles = tuple(role for role, _ in turns)
        if roles not in self._left_out:
            self._left_out[roles] = role_left_out(roles, self._opened)
        if (role := self._left_out[roles]) is not None:
            raise Unusable(f"the template leaves out {DESCRIBED.get(role, f'a {role} turn')}")
        rendered = self._opened(turns)
        check_turns(turns, rendered)
        return rendered

    def response(self, prompt: Prompt, rendered: str, response: str) -> str:
        if self.special.search(response):
            raise Unusable(SPECIAL)
        turns = self._turns(prompt)
        before, begin = (turns[:-1], turns[-1][1]) if is_prefilled(turns) else (turns, "")
        whole = self._render([*before, ("assistant", begin + response)], opened=False)
        if not whole.startswith(rendered):
            if begin:
                raise Unusable("the template cannot continue an assistant turn")
            raise self._unlike(before, rendered, whole)
        written = whole[len(rendered) :]
        check_response(response, written)
        return written

    def _turns(self, prompt: Prompt) -> list[Turn]:
        turns = list(as_turns(prompt))
        roles = {role for role, _ in turns}
        if self.system is not None and "system" not in roles:
            turns = [("system", self.system), *turns]
        if roles <= set(LEADING):
            raise Unusable("no prompt")
        return turns

    def _opened(self, turns: Sequence[Turn]) -> str:
        """Write turns and the header of a response; an assistant's turn at the end stays open instead."""
        if not is_prefilled(turns):
            return self._render(turns, opened=True)
        text, mark, _ = self._render([*turns[:-1], ("assistant", turns[-1][1] + MARK)], opened=False).partition(MARK)
        if not mark:
            raise Unusable("the template cannot continue an assistant turn")
        return text

    def _unlike(self, turns: Sequence[Turn], rendered: str, whole: str) -> UserError:
        """Return the error for a prompt that a template writes otherwise when a response follows it."""
        closed = self._render(turns, opened=False)
        if rendered.startswith(closed) and whole.startswith(closed):
            return UserError(
                f"prepare.template: the template opens a response with {rendered[len(closed) :]!r}, but writes one as "
                f"{whole[len(closed) :][:40]!r}; use a Jinja file that begins both in the same way"
            )
        return UserError(
            "prepare.template: the template changes earlier turns when a response follows them, at "
            f"{rendered[-40:]!r}; use a template that does not"
        )

    def _check_header(self) -> None:
        """Raise `UserError` if the header of a response is not in the prompt: it would be counted as the response."""
        turns = [("user", USER)] if self.system is None else [("system", self.system), ("user", USER)]
        try:
            opened, closed = (self._render(turns, opened=opened) for opened in (True, False))
            whole = self._render([*turns, ("assistant", MARK)], opened=False)
        except Unusable:
            return  # the rows themselves will say why
        header, mark, _ = whole.removeprefix(opened).partition(MARK)
        if whole.startswith(opened) and mark and header.strip() and (opened == closed or "assistant" in header):
            raise UserError(
                f"prepare.template: the template leaves {header!r} to the response, as it does not heed "
                "add_generation_prompt; use a Jinja file that ends with "
                f"{{% if add_generation_prompt %}}...{{% endif %}} around it"
            )

    def _render(self, turns: Sequence[Turn], opened: bool) -> str:
        messages, tools = as_messages(turns)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools, chat_template=self.source, tokenize=False, add_generation_prompt=opened
                )
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"prepare.template: not a valid Jinja template ({error})") from None
        except Exception as error:  # a template is a program: it may divide by zero, or call itself without end
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Unusable(f"the template refuses it ({reason})") from None

    def default_system(self) -> str | None:
        """Return the system prompt that the template adds to a dialogue without one, or None."""
        system = "\x01SYSTEM\x01"
        try:
            bare = self._render([("user", USER)], opened=True).partition(USER)[0]
            stated = self._render([("system", system), ("user", USER)], opened=True).partition(USER)[0]
        except Unusable:
            return None  # a template that accepts no system prompt adds none
        before, separator, after = stated.partition(system)
        if not separator or not bare.startswith(before) or not bare.endswith(after) or len(bare) < len(before + after):
            return None
        default = bare[len(before) : len(bare) - len(after)]
        return default if default or after else None


def is_dialogue(prompt: Prompt) -> bool:
    """Return whether a prompt is made of turns: messages, or a transcript in HH's format."""
    return not isinstance(prompt, str) or TURN.match(prompt) is not None


def is_prefilled(prompt: Prompt | Sequence[Turn]) -> bool:
    """Return whether a dialogue ends with the beginning of the assistant's turn, which a response continues."""
    return not isinstance(prompt, str) and len(prompt) > 0 and prompt[-1][0] == "assistant"


def without_first_turns(prompt: Prompt) -> Prompt | None:
    """Return a dialogue without its first exchange: its system turn stays, and a user's turn comes next.

    Returns None if nothing is left to leave out, or if the prompt is no dialogue.
    """
    if isinstance(prompt, str):
        begins = [mark.start() for mark in TURN.finditer(prompt) if mark[1] == "Human"] if TURN.match(prompt) else []
        later = next((begin for begin in begins if begin), None)
        return prompt[later:] if later else None
    first = next((at for at, (role, _) in enumerate(prompt) if role not in LEADING), len(prompt))
    later = next((at for at, (role, _) in enumerate(prompt) if at > first and role == "user"), None)
    return (*prompt[:first], *prompt[later:]) if later else None


def assistant_turns(prompt: Prompt) -> list[tuple[Prompt, str]]:
    """Return (prompt before it, content) for each assistant's turn in a dialogue, in the form of the dialogue."""
    if not isinstance(prompt, str):
        # A turn with calls of tools cannot be a response: the calls would be left out.
        following = (*(role for role, _ in prompt[1:]), None)
        return [
            (prompt[:at], content)
            for at, (role, content) in enumerate(prompt)
            if role == "assistant" and at and following[at] != CALLS
        ]
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
        return TextTemplate(prepare.template, special_literals(tokenizer))
    if prepare.end_of_turn == "none":
        raise UserError(f"prepare.end_of_turn: `{prepare.template}` ends each turn with a token; name it, not `none`")
    if prepare.template == "chat":
        if not tokenizer.chat_template:
            raise UserError("prepare.template: the tokenizer has no chat template; name a Jinja file instead")
        return _checked(ChatTemplate(tokenizer, None, prepare.system))
    path = Path(prepare.template)
    if not path.is_file():
        raise UserError(f"prepare.template: {path}: no such file; its path is taken from the suite's")
    return _checked(ChatTemplate(tokenizer, path.read_text(encoding="utf-8"), prepare.system))


def _checked(template: ChatTemplate) -> ChatTemplate:
    template.check()
    return template
