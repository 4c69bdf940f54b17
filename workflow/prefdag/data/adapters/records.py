"""What an adapter returns, its decorator, and the checks that adapters share."""

import ast
import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prefdag.data.rows import ADAPTER, Row

Turn = tuple[str, str]  # role (system, user, assistant or tool), content
TOOLS, CALLS = "tools", "tool calls"  # roles of turns whose content is JSON: the tools, the assistant's calls of them
Prompt = str | tuple[Turn, ...]  # text that is used as it is, or turns for a template
NAMES = {  # roles by the names that formats give them, in lower case
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatbot", "ai", "chatgpt"),
    "tool": ("tool", "function", "observation", "ipython"),
}
ROLES = {name: role for role, names in NAMES.items() for name in names}
WEIGHTS = ("weight", "train")  # keys of messages that say whether a turn is trained on
PACKED_MESSAGES = re.compile(r"\s*\[?\s*\{\s*['\"](role|from|content|value)['\"]\s*:")


Adapter = Callable[[Row], "TextComparison"]


def adapter(*, ranked: bool = False, scored: bool = False, single: bool = False) -> Callable[[Adapter], Adapter]:
    """Declare a function as an adapter. The arguments are read from the text of the file and must be literals.

    Args:
        ranked: whether a row may hold more than two responses, with scores.
        scored: whether a row may hold scores; implied by `ranked`.
        single: whether each row holds one response, with the score 1 (good) or 0 (bad).
    """
    return lambda function: function


class Unusable(Exception):
    """A row that cannot be used; the argument is the reason, under which the audit counts the row."""


@dataclass(frozen=True)
class TextComparison:
    """One prompt and its responses, best first, as text.

    Attributes:
        prompt: text, or the turns of a dialogue.
        responses: the responses, best first.
        scores: one score per response, if the data has them; of a labelled example, 1 (good) or 0 (bad).
        position: index of the best response in the row, if a label, and not a column's name, says which is best.
        untrained: turns of the prompt, counted from its end (-1 is the last), that the row says not to train on.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    position: int | None = None
    untrained: tuple[int, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether this is a single response with a label."""
        return len(self.responses) == 1 and self.scores in ((0.0,), (1.0,))


def text(row: Row, *keys: str) -> str:
    """Return the text under the first of `keys` that the row has."""
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise Unusable(_missing(row, keys))
    if not isinstance(row[key], str):
        raise Unusable(f"`{key}` is not text")
    return row[key]


def _missing(row: Row, keys: Sequence[str]) -> str:
    """Return the reason for a row without a column: its columns, and the one with the nearest name."""
    names = [name for name in row if name != ADAPTER]
    near = next((match for key in keys for match in difflib.get_close_matches(key, names, 1)), None)
    return (
        f"no field `{'` or `'.join(keys)}`; the row has {', '.join(names)[:200] or 'none'}"
        f"{f'; the nearest is `{near}`' if near else ''}"
    )


def texts(row: Row, key: str) -> list[str]:
    """Return the list of texts under `key`."""
    values = row.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Unusable(f"{key} are not text")
    return values


def turns(value: Any, key: str) -> tuple[Turn, ...]:
    """Return messages (`role` and `content`, or ShareGPT's `from` and `value`) as turns.

    Raises `Unusable` for a message without role or text, an unknown role, and two assistant turns in a row.
    """
    if isinstance(value, list) and value and all(isinstance(message, str) for message in value):
        raise Unusable(f"`{key}` is a list of texts; name it `responses`, best first")
    parsed = []
    for message in value if isinstance(value, list) else [value]:
        role, content = (
            (message.get(new, message.get(old)) for new, old in (("role", "from"), ("content", "value")))
            if isinstance(message, dict)
            else (None, None)
        )
        content = _joined_parts(content, key)
        calls = _tool_calls(message, key)
        if calls and content is None:
            content = ""
        if not isinstance(role, str) or not isinstance(content, str):
            raise Unusable(f"`{key}` holds a message without role or text")
        if role.strip().lower() not in ROLES:
            raise Unusable(f"role {role[:40]!r}")
        if content or not calls:
            parsed.append((ROLES[role.strip().lower()], content))
        if calls:
            parsed.append((CALLS, json.dumps(calls, ensure_ascii=False)))
    if any(first[0] == second[0] == "assistant" for first, second in pairwise(parsed)):
        raise Unusable("two assistant turns in a row")
    return tuple(parsed)


def _joined_parts(content: Any, key: str) -> Any:
    """Return content in parts as one text. Raises `Unusable` for a part that is not text, such as an image."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise Unusable(f"`{key}` holds a message with content that is not text")
    return "".join(part["text"] for part in content)


def unpacked(value: Any, key: str) -> Any:
    """Return messages, also where a file holds them as text (JSON, or Python's spelling of a list), else the value.

    Raises `Unusable` for text that begins as messages do and is neither.
    """
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, str) or not PACKED_MESSAGES.match(value):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        try:
            parsed = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            if value.lstrip().startswith("["):
                raise Unusable(f"`{key}` looks like messages as text, but is not JSON") from None
            return value
    messages = parsed if isinstance(parsed, list) else [parsed]
    keys = ({"role", "content"}, {"from", "value"})
    is_dialogue = all(
        isinstance(message, dict) and any(names <= set(message) for names in keys) for message in messages
    )
    return messages if is_dialogue else value


def untrained_turns(messages: Any, key: str) -> tuple[int, ...]:
    """Return the turns before the last, counted from the last, that `weight: 0` or `train: false` exclude.

    Raises `Unusable` if the last turn is excluded, or for a weight between 0 and 1.
    """
    untrained = []
    for at, message in enumerate(messages if isinstance(messages, list) else (), -len(messages)):
        flags = [message[name] for name in WEIGHTS if isinstance(message, dict) and message.get(name) is not None]
        if any(flag not in (0, 1) for flag in flags):
            raise Unusable(f"`{key}` holds a turn of a weight that is neither 0 nor 1")
        if not all(flags):
            untrained.append(at + 1)
    if 0 in untrained:
        raise Unusable("the last turn is not to be trained on")
    return tuple(untrained)


def _tool_calls(message: Any, key: str) -> list[dict[str, Any]]:
    """Return a message's calls of tools, with arguments that are JSON text as objects, which templates expect."""
    if not isinstance(message, dict) or not (message.get("tool_calls") or message.get("function_call")):
        return []
    calls = message.get("tool_calls") or [{"type": "function", "function": message["function_call"]}]
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Unusable(f"`{key}` holds tool calls that are not a list of objects")
    parsed = []
    for call in calls:
        function = call.get("function", call)
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, str):
            try:
                function = {**function, "arguments": json.loads(arguments or "{}")}
            except (ValueError, RecursionError):
                raise Unusable(f"`{key}` holds a tool call whose arguments are not JSON") from None
        parsed.append({**call, "function": function} if "function" in call else function)
    return parsed


def prompt_of(row: Row) -> Prompt:
    """Return `prompt`, as text or as messages. Raises `Unusable` for a list without messages."""
    prompt = unpacked(row.get("prompt"), "prompt")
    if not isinstance(prompt, list):
        return text(row, "prompt")
    if not prompt:
        raise Unusable("no prompt")
    return turns(prompt, "prompt")


def as_text(prompt: Prompt) -> str:
    """Return a prompt as text; turns become a transcript in the format of HH's dialogues.

    An assistant's turn at the end stays open, as the response continues it.
    """
    if isinstance(prompt, str):
        return prompt
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    transcript = "".join(names.get(role, f"\n\n{role}: ") + content for role, content in prompt)
    return transcript if prompt and prompt[-1][0] == "assistant" else f"{transcript}\n\nAssistant:"


def question_of(prompt: Prompt) -> str:
    """Return what a prompt asks, equal for its forms in two datasets: text, transcript or turns, with a system prompt.

    A dialogue of several turns stays a transcript.
    """
    turns = prompt if isinstance(prompt, str) else tuple(turn for turn in prompt if turn[0] != "system")
    transcript = as_text(turns).strip()
    question = transcript.removeprefix("Human:").removesuffix("Assistant:")
    is_single = "\n\nHuman:" not in question and "\n\nAssistant:" not in question
    return question.strip() if is_single else transcript


def check_responses(*responses: str) -> tuple[str, ...]:
    """Return the responses. Raises `Unusable` if one is empty or two are equal."""
    names = ("chosen", "rejected") if len(responses) == 2 else ("response",) * len(responses)
    for name, response in zip(names, responses, strict=True):
        if not response.strip():
            raise Unusable(f"empty {name}")
    if len(set(responses)) < len(responses):
        raise Unusable("equal responses")
    return responses
