"""Adapters: raw rows to comparisons of text, one function each.

An adapter returns a `TextComparison` or raises `Unusable` with the reason; the audit counts reasons and names rows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdag.errors import UserError
from prefdag.rows import Row, read_rows

TURN = "\n\nAssistant:"


class Unusable(Exception):
    """A row that cannot be used; the argument is the reason as the audit counts it."""


@dataclass(frozen=True)
class TextComparison:
    """One prompt and its responses, best first, as text; scores in the same order where the data has them."""

    prompt: str
    responses: tuple[str, ...]
    scores: tuple[float, ...] | None = None


def world(row: Row) -> TextComparison:
    """The embedded world's reviews: `prompt`, and `continuation` with its leading space."""
    return TextComparison(_text(row, "prompt"), (_text(row, "continuation"),))


def pairs(row: Row) -> TextComparison:
    """`prompt` and `responses` (best first, with or without `scores`), or `prompt`, `chosen` and `rejected`."""
    prompt = _text(row, "prompt")
    if "responses" not in row:
        return TextComparison(prompt, _usable(_text(row, "chosen"), _text(row, "rejected")))
    responses = row["responses"]
    if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
        raise Unusable("responses are not text")
    scores = row.get("scores")
    return TextComparison(prompt, _usable(*responses), None if scores is None else _scores(scores, len(responses)))


def hh(row: Row) -> TextComparison:
    """Anthropic HH: `chosen` and `rejected` are whole dialogues that differ after their last "Assistant:"."""
    chosen, rejected = (_text(row, side).rpartition(TURN) for side in ("chosen", "rejected"))
    if not chosen[1] or not rejected[1]:
        raise Unusable("no assistant turn")
    if chosen[0] != rejected[0]:
        raise Unusable("prompts differ")
    return TextComparison(chosen[0] + TURN, _usable(chosen[2], rejected[2]))


def _text(row: Row, key: str) -> str:
    if key not in row:
        raise Unusable(f"no field `{key}`")
    if not isinstance(row[key], str):
        raise Unusable(f"`{key}` is not text")
    return row[key]


def _scores(values: Any, num_responses: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != num_responses:
        raise Unusable("not one score for each response")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise Unusable("scores are not finite numbers")
    return tuple(map(float, values))


def _usable(*responses: str) -> tuple[str, ...]:
    if not all(response.strip() for response in responses):
        raise Unusable("empty response")
    if len(set(responses)) < len(responses):
        raise Unusable("equal responses")
    return responses


ADAPTERS: dict[str, Callable[[Row], TextComparison]] = {"world": world, "pairs": pairs, "hh": hh}


def comparisons(
    adapter: str, path: Path, dropped: dict[str, list[int]] | None = None
) -> Iterator[tuple[int, TextComparison]]:
    """(row number from 0, comparison) of every usable row; the others are added to `dropped` by reason."""
    for number, row in enumerate(read_rows(path)):
        try:
            yield number, ADAPTERS[adapter](row)
        except Unusable as reason:
            if dropped is not None:
                dropped.setdefault(str(reason), []).append(number)


def texts(adapter: str, folder: Path, split: str = "train") -> Iterator[str]:
    """Whole documents to pre-train on: prompt and best response of every usable row of a split."""
    path = folder / f"{split}.jsonl"
    if path.is_file():
        for _, comparison in comparisons(adapter, path):
            yield comparison.prompt + comparison.responses[0]


def prompts(folder: Path, adapter: str, split: str) -> Iterator[str]:
    """Distinct prompts of a split to sample responses to, in the order in which they come.

    They stand in prompts-<split>.jsonl where the source has such a file, and are those of its comparisons otherwise.
    """
    own = folder / f"prompts-{split}.jsonl"
    rows = folder / f"{split}.jsonl"
    if not own.is_file() and not rows.is_file():
        raise UserError(
            f"{folder}: holds no prompts for the {split} split; name a `{split}` file in the suite's `data`"
        )
    found = (str(row["prompt"]) for row in read_rows(own)) if own.is_file() else _prompts_of(adapter, rows)
    yield from dict.fromkeys(found)


def _prompts_of(adapter: str, path: Path) -> Iterator[str]:
    for _, comparison in comparisons(adapter, path):
        yield comparison.prompt
