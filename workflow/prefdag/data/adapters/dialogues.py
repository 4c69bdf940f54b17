"""Dialogues: transcripts as turns, turns as messages, and a row's system prompt and tools as turns."""

import json
import re
from collections.abc import Sequence
from typing import Any

from prefdag.data.adapters.records import CALLS, TOOLS, Prompt, Turn, Unusable
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
        except ValueError:
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
