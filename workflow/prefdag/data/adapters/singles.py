"""Adapters of rows that hold one response: documents, demonstrations, labelled examples."""

import hashlib
import re

from prefdag.data.adapters.records import Prompt, TextComparison, Unusable, text, turns, usable
from prefdag.data.rows import Row

LABELS = {True: 1.0, False: 0.0, "good": 1.0, "bad": 0.0, "true": 1.0, "false": 0.0}  # 1 and 0 equal True and False


def world(row: Row) -> TextComparison:
    """The embedded world's reviews: `prompt`, and `continuation` with its leading space."""
    return TextComparison(text(row, "prompt"), (text(row, "continuation"),))


def demonstrations(row: Row) -> TextComparison:
    """`messages` that end with the assistant's turn; `prompt` and `response` (or `completion`); Alpaca's columns."""
    if "messages" in row or "conversations" in row:
        key = "messages" if "messages" in row else "conversations"
        found = turns(row[key] if isinstance(row[key], list) else (), key)
        if len(found) < 2 or found[-1][0] != "assistant":
            raise Unusable("the last turn is not the assistant's")
        return TextComparison(found[:-1], usable(found[-1][1]))
    if "instruction" in row:
        asked = "\n\n".join(part for part in (text(row, "instruction"), row.get("input")) if part)
        return TextComparison(asked, usable(text(row, "output", "response")))
    return TextComparison(_prompt(row), usable(text(row, "response", "completion")))


def labelled(row: Row) -> TextComparison:
    """`prompt`, `response` (or `completion`) and `label`: true, 1 or "good" against false, 0 or "bad"."""
    label = row.get("label")
    if not isinstance(label, bool | int | str) or label not in LABELS:
        raise Unusable(f"label {label!r}")
    return TextComparison(_prompt(row), usable(text(row, "response", "completion")), scores=(LABELS[label],))


def _prompt(row: Row) -> Prompt:
    return turns(row["prompt"], "prompt") if isinstance(row.get("prompt"), list) else text(row, "prompt")


def imdb(row: Row) -> TextComparison:
    """Film reviews: `text`, of which the first 2 to 8 words are the prompt and the rest, with its space, the response.

    How many is drawn from the review's own sha256, so it does not depend on the order of rows.
    """
    review = text(row, "text")
    words = 2 + hashlib.sha256(review.encode("utf-8", "surrogatepass")).digest()[0] % 7
    begin = re.match(rf"\s*(?:\S+\s+){{{words - 1}}}\S+(?=\s)", review)
    if begin is None:
        raise Unusable(f"not more than {words} words")
    return TextComparison(begin[0], usable(review[begin.end() :]))
