"""What an adapter returns, and the checks that all of them share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefdag.data.rows import Row

Turn = tuple[str, str]  # role (system, user or assistant), content
Prompt = str | tuple[Turn, ...]  # text that is its own transcript, or turns that a template writes
ROLES = {"human": "user", "gpt": "assistant", "prompter": "user", "model": "assistant"}  # names of other formats


class Unusable(Exception):
    """A row that cannot be used; the argument is the reason as the audit counts it."""


@dataclass(frozen=True)
class TextComparison:
    """One prompt and its responses, best first, as text.

    scores: in the order of the responses, where the data has them; of a labelled example, 1 (good) or 0 (bad).
    position: where the best response stood in the row, from 0, where a label and no column's name says which it is.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    position: int | None = None


def text(row: Row, *keys: str) -> str:
    """The text under the first of `keys` that the row has."""
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise Unusable(f"no field `{'` or `'.join(keys)}`")
    if not isinstance(row[key], str):
        raise Unusable(f"`{key}` is not text")
    return row[key]


def turns(value: Any, key: str) -> tuple[Turn, ...]:
    """Messages (`role` and `content`, or ShareGPT's `from` and `value`) as turns."""
    found = []
    for message in value:
        role, content = (
            (message.get(new, message.get(old)) for new, old in (("role", "from"), ("content", "value")))
            if isinstance(message, dict)
            else (None, None)
        )
        if not isinstance(role, str) or not isinstance(content, str):
            raise Unusable(f"`{key}` holds a message without role or text")
        found.append((ROLES.get(role, role), content))
    return tuple(found)


def usable(*responses: str) -> tuple[str, ...]:
    """The responses, checked: every one says something, no two say the same."""
    names = ("chosen", "rejected") if len(responses) == 2 else ("response",) * len(responses)
    for name, response in zip(names, responses, strict=True):
        if not response.strip():
            raise Unusable(f"empty {name}")
    if len(set(responses)) < len(responses):
        raise Unusable("equal responses")
    return responses


def labelled_pair(prompt: Prompt, responses: Sequence[str], best: Any, first: int) -> TextComparison:
    """Two responses of which a label names the better: `best` is `first` for the first one, `first + 1` for the second.

    Where they are numbered from 1, 0 and 3 are ties. Booleans are no labels: `true` would pass for 1.
    """
    label = int(best) if isinstance(best, str) and best.strip().isdecimal() else best
    if isinstance(label, bool) or label not in (first, first + 1):
        raise Unusable("tie" if first == 1 and label in (0, 3) and not isinstance(label, bool) else f"label {best!r}")
    position = int(label) - first
    return TextComparison(prompt, usable(responses[position], responses[1 - position]), position=position)


def ranked_best_first(prompt: Prompt, responses: Sequence[str], scores: Sequence[float]) -> TextComparison:
    """Responses sorted by score, the higher the better; equals keep their order."""
    if len(responses) != len(scores) or len(responses) < 2:
        raise Unusable("not two or more responses with a score each")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    if scores[order[0]] == scores[order[-1]]:
        raise Unusable("tie")
    ordered = tuple(float(scores[index]) for index in order)
    return TextComparison(prompt, usable(*(responses[index] for index in order)), ordered, position=order[0])


def numbers(values: Any, key: str) -> list[float]:
    """A list of finite numbers. Booleans, text and null are none."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise Unusable(f"`{key}` is not a list of numbers")
    if not all(map(math.isfinite, values)):
        raise Unusable(f"`{key}` holds numbers that are not finite")
    return [float(value) for value in values]
