"""What an adapter returns, its decorator, and the checks that adapters share."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prefdag.data.rows import Row

Turn = tuple[str, str]  # role (system, user, assistant or tool), content
TOOLS, CALLS = "tools", "tool calls"  # roles of turns whose content is JSON: the tools, the assistant's calls of them
Prompt = str | tuple[Turn, ...]  # text that is used as it is, or turns for a template
ROLES = {"human": "user", "gpt": "assistant", "prompter": "user", "model": "assistant"}  # other formats' names


Adapter = Callable[[Row], "TextComparison"]


def adapter(*, ranked: bool = False, scored: bool = False) -> Callable[[Adapter], Adapter]:
    """Declare a function as an adapter. The arguments are read from the text of the file and must be literals.

    Args:
        ranked: whether a row may hold more than two responses, with scores.
        scored: whether a row may hold scores; implied by `ranked`.
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
    """

    prompt: Prompt
    responses: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    position: int | None = None


def text(row: Row, *keys: str) -> str:
    """Return the text under the first of `keys` that the row has."""
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise Unusable(f"no field `{'` or `'.join(keys)}`")
    if not isinstance(row[key], str):
        raise Unusable(f"`{key}` is not text")
    return row[key]


def texts(row: Row, key: str) -> list[str]:
    """Return the list of texts under `key`."""
    values = row.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Unusable(f"{key} are not text")
    return values


def turns(value: Any, key: str) -> tuple[Turn, ...]:
    """Return messages (`role` and `content`, or ShareGPT's `from` and `value`) as turns."""
    parsed = []
    for message in value:
        role, content = (
            (message.get(new, message.get(old)) for new, old in (("role", "from"), ("content", "value")))
            if isinstance(message, dict)
            else (None, None)
        )
        calls = _tool_calls(message, key)
        if calls and content is None:
            content = ""
        if not isinstance(role, str) or not isinstance(content, str):
            raise Unusable(f"`{key}` holds a message without role or text")
        if content or not calls:
            parsed.append((ROLES.get(role, role), content))
        if calls:
            parsed.append((CALLS, json.dumps(calls, ensure_ascii=False)))
    if any(first[0] == second[0] == "assistant" for first, second in pairwise(parsed)):
        raise Unusable("two assistant turns in a row")
    return tuple(parsed)


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
            except ValueError:
                raise Unusable(f"`{key}` holds a tool call whose arguments are not JSON") from None
        parsed.append({**call, "function": function} if "function" in call else function)
    return parsed


def prompt_of(row: Row) -> Prompt:
    """Return `prompt`, given as text or as messages."""
    return turns(row["prompt"], "prompt") if isinstance(row.get("prompt"), list) else text(row, "prompt")


def as_text(prompt: Prompt) -> str:
    """Return a prompt as text; turns become a transcript in the format of HH's dialogues.

    An assistant's turn at the end stays open, as the response continues it.
    """
    if isinstance(prompt, str):
        return prompt
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    transcript = "".join(names.get(role, f"\n\n{role}: ") + content for role, content in prompt)
    return transcript if prompt and prompt[-1][0] == "assistant" else f"{transcript}\n\nAssistant:"


def check_responses(*responses: str) -> tuple[str, ...]:
    """Return the responses. Raises `Unusable` if one is empty or two are equal."""
    names = ("chosen", "rejected") if len(responses) == 2 else ("response",) * len(responses)
    for name, response in zip(names, responses, strict=True):
        if not response.strip():
            raise Unusable(f"empty {name}")
    if len(set(responses)) < len(responses):
        raise Unusable("equal responses")
    return responses


def labelled_pair(prompt: Prompt, responses: Sequence[str], best: Any, first: int) -> TextComparison:
    """Order two responses by a label that names the better one.

    Args:
        prompt: the prompt of both responses.
        responses: the two responses in the order of the row.
        best: the label, `first` or `first + 1`; text of digits counts as a number.
        first: number of the first response. If it is 1, the labels 0 and 3 are ties.

    Raises:
        Unusable: for a tie and for any other label. Booleans are no labels: `true` would pass for 1.
    """
    label = int(best) if isinstance(best, str) and best.strip().isdecimal() else best
    if isinstance(label, bool) or label not in (first, first + 1):
        raise Unusable("tie" if first == 1 and label in (0, 3) and not isinstance(label, bool) else f"label {best!r}")
    position = int(label) - first
    return TextComparison(prompt, check_responses(responses[position], responses[1 - position]), position=position)


def ranked_best_first(prompt: Prompt, responses: Sequence[str], scores: Sequence[float]) -> TextComparison:
    """Sort responses by score, higher is better; equal scores keep their order. Raises `Unusable` if all are equal."""
    if len(responses) != len(scores) or len(responses) < 2:
        raise Unusable("not two or more responses with a score each")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    if scores[order[0]] == scores[order[-1]]:
        raise Unusable("tie")
    ordered = tuple(float(scores[index]) for index in order)
    return TextComparison(prompt, check_responses(*(responses[index] for index in order)), ordered, position=order[0])


def numbers(values: Any, key: str) -> list[float]:
    """Return a list of finite numbers. Raises `Unusable` for booleans, text and null."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise Unusable(f"`{key}` is not a list of numbers")
    if not all(map(math.isfinite, values)):
        raise Unusable(f"`{key}` holds numbers that are not finite")
    return [float(value) for value in values]
