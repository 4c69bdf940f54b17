"""Dialogues: transcripts as turns, turns as messages, and a row's system prompt and tools as turns."""

import json
import re
from collections.abc import Sequence
from typing import Any

from prefdag.data.adapters.records import CALLS, TOOLS, Prompt, Turn, Unusable, turns, untrained_turns
from prefdag.data.rows import Row

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
LEADING = (TOOLS, "system")  # roles of the turns that precede a dialogue


def parse_dialogue(text: str) -> tuple[Turn, ...] | None:
    """Return the turns of a transcript in HH's format, without an open "Assistant:" at its end; None for other text."""
    if not TURN.match(text):
        return None
    _, *parts = TURN.split(text)
    turns = [(ROLES[name], content.strip()) for name, content in zip(parts[::2], parts[1::2], strict=True)]
    return tuple(turns[:-1] if turns[-1] == ("assistant", "") else turns)


def as_turns(prompt: Prompt) -> tuple[Turn, ...]:
    """Return a prompt as turns: those of a transcript, or one turn of the user."""
    return (parse_dialogue(prompt) or (("user", prompt),)) if isinstance(prompt, str) else prompt


def split_dialogue(prompt: Any, response: list[Any], key: str) -> tuple[tuple[Turn, ...], str]:
    """Return the turns before the assistant's last one, each once, and that last one.

    Args:
        prompt: text, messages, or None. It may precede the messages of `response`, or repeat some of them.
        response: messages that end with the assistant's.
        key: the column of `response`.

    Raises:
        Unusable: if both do not make one dialogue.
    """
    untrained_turns(response, key)  # refuses a last turn that is not to be trained on
    rest = turns(response, key)
    if not rest or rest[-1][0] != "assistant":
        raise Unusable("the last turn is not the assistant's")
    if isinstance(prompt, str):
        rest = _after_text(prompt, rest, key)
    elif prompt is not None:
        rest = _joined(turns(prompt, "prompt"), rest, key)
    if len(rest) < 2:
        raise Unusable("no prompt")
    before, last = rest[:-1], rest[-1][1]
    if before[-1][0] == "assistant" and last.startswith(before[-1][1]):
        last = last[len(before[-1][1]) :]  # the response repeats the beginning that it continues
    return before, last


def _after_text(prompt: str, rest: tuple[Turn, ...], key: str) -> tuple[Turn, ...]:
    """Put a prompt in text before a response that has no user's turn; else it must be among the turns."""
    if not any(role == "user" for role, _ in rest):
        first = next(at for at, (role, _) in enumerate(rest) if role not in LEADING)
        return (*rest[:first], *as_turns(prompt), *rest[first:])
    if not any(prompt.strip() in content or content.strip() in prompt for role, content in rest if role == "user"):
        raise Unusable(f"`prompt` is not in the messages of `{key}`")
    return rest


def _joined(before: tuple[Turn, ...], rest: tuple[Turn, ...], key: str) -> tuple[Turn, ...]:
    """Join the turns of a prompt and of a response; turns at the end of the one may begin the other."""
    if rest[: len(before)] == before:
        return rest
    if rest[0][0] == "system" and rest[1 : 1 + len(before)] == before:
        return rest
    shared = next((num for num in range(len(rest) - 1, 0, -1) if before[-num:] == rest[:num]), 0)
    joined = (*before, *rest[shared:])
    if any(role == "system" for role, _ in rest[shared:]):
        raise Unusable(f"the system turn of `{key}` is not that of `prompt`")
    if not shared and before and before[-1][0] == rest[0][0] == "user":
        raise Unusable(f"`prompt` is not in the messages of `{key}`")
    return joined


def with_context(prompt: Prompt, row: Row) -> Prompt:
    """Return a prompt with the row's columns `system` and `tools` as its first turns; as it is without them.

    Raises `Unusable` if they cannot be read, or if the messages state another system prompt.
    """
    system, tools = row.get("system"), _tools(row.get("tools"))
    if system is not None and not isinstance(system, str):
        raise Unusable("`system` is not text")
    if system and system.strip():
        turns = as_turns(prompt)
        stated = next((content for role, content in turns if role == "system"), None)
        if stated not in (None, system):
            raise Unusable("two system prompts, in `system` and in the messages")
        prompt = turns if stated is not None else (("system", system), *turns)
    return ((TOOLS, json.dumps(tools, ensure_ascii=False)), *as_turns(prompt)) if tools else prompt


def _tools(tools: Any) -> list[dict[str, Any]]:
    """Return a column of tools, a list of objects or its JSON text, as a list."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except (ValueError, RecursionError):
            raise Unusable("`tools` is not JSON") from None
    if not isinstance(tools or [], list) or not all(isinstance(tool, dict) for tool in tools or []):
        raise Unusable("`tools` is not a list of objects")
    return tools or []


def as_messages(turns: Sequence[Turn]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Return turns as messages with `role` and `content`, the assistant's with its `tool_calls`; and the tools."""
    messages: list[dict[str, Any]] = []
    tools = None
    for role, content in turns:
        if role == TOOLS:
            tools = json.loads(content)
        elif role == CALLS:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1]["tool_calls"] = json.loads(content)
        else:
            messages.append({"role": role, "content": content})
    return messages, tools
