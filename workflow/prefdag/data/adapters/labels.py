"""Labels and scores of every type in which files hold them: numbers, booleans, and either as text."""

import math
import re
from collections.abc import Sequence
from typing import Any

from prefdag.data.adapters.records import Prompt, TextComparison, Unusable, check_responses
from prefdag.data.rows import Row

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
TRUE, FALSE = ("true", "good", "desirable", "yes"), ("false", "bad", "undesirable", "no")
RATED = ("score", "rating", "reward", "avg_rating")


def number(value: Any) -> float | None:
    """Return a finite number, or text that is one; None for anything else. Booleans are no numbers."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        value = float(value)
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def numbers(values: Any, key: str) -> list[float]:
    """Return a list of finite numbers, which may be text. Raises `Unusable` for booleans, other text and null."""
    if not isinstance(values, list):
        raise Unusable(f"`{key}` is not a list of numbers")
    read = [number(value) for value in values]
    if None in read:
        raise Unusable(f"`{key}` holds {_short(values[read.index(None)])}, which is not a finite number")
    return [value for value in read if value is not None]


def truth(value: Any) -> bool:
    """Return whether a label says good: true, 1, or a word of `TRUE`; bad: false, 0, or a word of `FALSE`.

    Raises `Unusable` with the label for any other.
    """
    word = value.strip().lower() if isinstance(value, str) else value
    if isinstance(word, bool) or word in TRUE or word in FALSE:
        return word is True or word in TRUE
    if number(word) in (0.0, 1.0):
        return number(word) == 1.0
    raise Unusable(f"label {_short(value)}")


def labelled_pair(prompt: Prompt, responses: Sequence[str], best: Any, first: int) -> TextComparison:
    """Order two responses by a label that names the better one.

    Args:
        prompt: the prompt of both responses.
        responses: the two responses in the order of the row.
        best: the label, `first` or `first + 1`, as a number or text.
        first: number of the first response. If it is 0, false and true are the labels 0 and 1. If it is 1, the labels
            0 and 3 are ties.

    Raises:
        Unusable: for a tie and for any other label. With `first` 1, booleans are refused: `true` would pass for 1.
    """
    word = best.strip().lower() if isinstance(best, str) else best
    label = {"true": 1.0, "false": 0.0}.get(str(word).lower()) if first == 0 else None
    label = number(word) if label is None else label
    if label not in (first, first + 1):
        raise Unusable("tie" if first == 1 and label in (0, 3) else f"label {_short(best)}")
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


def stated_scores(row: Row) -> tuple[float, float] | None:
    """Return the scores of `chosen` and `rejected` under one of their usual names; None if the row has none.

    The names are `score_chosen`, `chosen_score`, `chosen-score` and the same of `RATED`. Raises `Unusable` for a tie.
    """
    for word in RATED:
        for form in ("{word}_{side}", "{side}_{word}", "{side}-{word}", "{word}-{side}"):
            keys = [form.format(word=word, side=side) for side in ("chosen", "rejected")]
            values = [row.get(key) for key in keys]
            if values == [None, None]:
                continue
            chosen, rejected = numbers(values, f"{keys[0]}` and `{keys[1]}")
            if chosen == rejected:
                raise Unusable("tie")
            return chosen, rejected
    return None


def _short(value: Any) -> str:
    return repr(value)[:40]
