"""Checks that what a template wrote holds what the row says: no turn left out, and no part of one."""

import json
import re
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from prefdag.data.adapters.records import CALLS, TOOLS, Turn, Unusable

REASONING = "</think>"  # ends a block that templates leave out of earlier assistant turns by design


def special_literals(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return a pattern of the texts that the tokenizer reads as special tokens."""
    added = (str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special)
    literals = sorted({text for text in (*tokenizer.all_special_tokens, *added) if text})
    return re.compile("|".join(map(re.escape, literals)) or r"(?!)")


def check_turns(turns: Sequence[Turn], rendered: str) -> None:
    """Raise `Unusable` unless each turn's text is in `rendered`, in order, white space aside.

    A system turn may come anywhere, as some templates write it into the last user's turn. Of an earlier assistant
    turn, what follows its reasoning is enough.
    """
    position = 0
    for role, content in turns:
        if role in (TOOLS, CALLS):
            continue  # written in the template's own form
        text = content.strip()
        at = rendered.find(text, 0 if role == "system" else position)
        if at < 0 and role == "assistant":
            text = content.rpartition(REASONING)[2].strip()
            at = rendered.find(text, position)
        if at < 0 and not _is_in(text, rendered):
            raise Unusable(f"the template leaves out a part of a {role} turn")
        if role != "system" and at >= 0:
            position = at + len(text)


def check_response(response: str, written: str) -> None:
    """Raise `Unusable` unless the response's text is whole in what the template wrote, white space aside."""
    text = response.strip()
    if text in written or _is_in(text, written):
        return
    if REASONING in text:
        raise Unusable(
            "the template leaves out the response's reasoning; a Jinja file that writes the last turn whole keeps it"
        )
    raise Unusable("the template leaves out a part of the response")


def _is_in(text: str, written: str) -> bool:
    return "".join(text.split()) in "".join(written.split())


def role_left_out(roles: Sequence[str], render: Callable[[Sequence[Turn]], str]) -> str | None:
    """Return the role of a turn that a template leaves out of dialogues with these roles, or None.

    Short texts may be in a template's own words, so each turn is rendered with a text that cannot.

    Args:
        roles: the roles of the turns.
        render: writes turns as the template does.
    """
    marks = [f"qzx{number}xzq" for number in range(len(roles))]
    try:
        rendered = render([(role, _marked(role, mark)) for role, mark in zip(roles, marks, strict=True)])
    except Unusable:
        return None  # the dialogue itself will say why
    return next((role for role, mark in zip(roles, marks, strict=True) if mark not in rendered), None)


def _marked(role: str, mark: str) -> str:
    """Return the content of a turn that the mark names."""
    if role == CALLS:
        return json.dumps([{"type": "function", "function": {"name": mark, "arguments": {}}}])
    if role == TOOLS:
        parameters = {"type": "object", "properties": {}}
        return json.dumps(
            [{"type": "function", "function": {"name": mark, "description": "", "parameters": parameters}}]
        )
    return mark
