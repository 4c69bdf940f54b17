"""Adapters of rows that hold K responses with scores or ranks: sorted, best first."""

from typing import Any

from prefdag.data.adapters.records import (
    TextComparison,
    Unusable,
    labelled_pair,
    numbers,
    ranked_best_first,
    text,
    turns,
)
from prefdag.data.rows import Row


def ranked(row: Row) -> TextComparison:
    """`prompt` and `responses` in any order, with `scores` (higher is better) or `ranks` (1 is best)."""
    responses = row.get("responses")
    if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
        raise Unusable("responses are not text")
    if "scores" in row:
        scores = numbers(row["scores"], "scores")
    else:
        scores = [-rank for rank in numbers(row.get("ranks"), "ranks")]
    prompt = turns(row["prompt"], "prompt") if isinstance(row.get("prompt"), list) else text(row, "prompt")
    return ranked_best_first(prompt, responses, scores)


def ultrafeedback(row: Row) -> TextComparison:
    """UltraFeedback: `instruction` and `completions`, each with its `response` and `overall_score`."""
    return _scored(row, text(row, "instruction", "prompt"), "completions", "response", "overall_score")


def stack_exchange(row: Row) -> TextComparison:
    """Stack Exchange: `question` with `answers` (`text`, `pm_score`); or `response_j`, preferred to `response_k`."""
    question = text(row, "question")
    if "response_j" in row:
        return labelled_pair(question, [text(row, "response_j"), text(row, "response_k")], 0, first=0)
    return _scored(row, question, "answers", "text", "pm_score")


def _scored(row: Row, prompt: str, key: str, words: str, score: str) -> TextComparison:
    entries: Any = row.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Unusable(f"`{key}` is not a list of objects")
    scores = numbers([entry.get(score) for entry in entries], score)
    return ranked_best_first(prompt, [text(entry, words) for entry in entries], scores)
