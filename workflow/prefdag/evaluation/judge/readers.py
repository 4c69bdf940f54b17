"""Readers of a judge's answer: which of the two texts it prefers, by a named form or by the suite's own expression.

Reference: Zheng et al. 2023 (MT-bench), Dubois et al. 2023 (AlpacaEval), Li et al. 2024 (Arena-Hard).
"""

import ast
import json
import re
from collections.abc import Callable

from prefdag.config.sections.judge import READERS

# What some servers leave of the chat template at an answer's end, and a fence around the answer.
REMAINS = re.compile(r"(?:</s>|<\|[^<>|\n]{1,40}\|>|<end_of_turn>|```\w*)")
THINKING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL)
UNFINISHED = re.compile(r"<(?:think|thinking|reasoning)>")
# The last line after its colon: a letter, optionally after a noun, in any quotes or stars; nothing else.
CHOICE = re.compile(
    r"(?:.*[:：])?[\W_]*(?:boxed\{|answer>)?[\W_]*"
    r"(?:(?:Summary|Reply|Response|Answer|Assistant|Option|Model|Verdict)[\W_]+)?"
    r"(A|B|(?i:tie))(?:</answer>|[\W_])*"
)
MT_BENCH = re.compile(r"\[\[([ABC])\]\]")
ARENA_HARD = re.compile(r"\[\[\s*([AB])\s*(=|<{1,2}|>{1,2})\s*([AB])\s*\]\]")
OUTPUT = re.compile(r"output \(([ab])\)", re.IGNORECASE)
RANKS = re.compile(r"\[\s*\{.*?\}\s*\]", re.DOTALL)
KEYS = ("verdict", "winner", "preferred", "preference", "better", "choice", "answer")
EQUAL = ("tie", "draw", "equal", "both", "neither", "c")


def parse_choice(answer: str, reader: str = "prefdag") -> str | None:
    """Return `A`, `B` or `tie`, as `reader` reads an answer; None where it states none of them.

    Reasoning in `<think>` tags is left out, and so is an answer that ends inside such a tag.

    Args:
        answer: The judge's whole answer.
        reader: A name in `READERS`, or a regular expression (`config.judge.LLM.reader`).
    """
    text = THINKING.sub("", answer)
    _, closed, rest = text.rpartition("</think>")  # some templates write the opening tag into the prompt
    text = rest if closed else text
    if UNFINISHED.search(text):
        return None
    return BY_NAME[reader](text) if reader in READERS else _expression(re.compile(reader), text)


def _last_line(text: str) -> str | None:
    lines = [line.strip() for line in REMAINS.sub("", text).splitlines() if line.strip()]
    match = CHOICE.fullmatch(lines[-1]) if lines else None
    return _letter(match[1]) if match else None


def _mt_bench(text: str) -> str | None:
    choices = MT_BENCH.findall(text)
    return _letter(choices[-1]) if choices else None


def _arena_hard(text: str) -> str | None:
    choices = ARENA_HARD.findall(text)
    if not choices or choices[-1][0] == choices[-1][2]:
        return None
    first, sign, second = choices[-1]
    return "tie" if sign == "=" else first if sign[0] == ">" else second


def _alpaca_eval(text: str) -> str | None:
    """Read `Output (a)`, the letters `m` and `M` of two outputs, or a list of the ranks of `model_1` and `model_2`."""
    for ranking in reversed(RANKS.findall(text)):
        try:
            ranks = {one["model"]: float(one["rank"]) for one in ast.literal_eval(ranking)}
            first, second = ranks["model_1"], ranks["model_2"]
        except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
            continue
        return "A" if first < second else "B" if second < first else "tie"
    if outputs := OUTPUT.findall(text):
        return str(outputs[-1]).upper()
    return {"m": "A", "M": "B"}.get(REMAINS.sub("", text).strip(" \n\t.\"'*`"))


def _json(text: str) -> str | None:
    """Read the last JSON object that has one of `KEYS`, perhaps inside a fence; None where two keys disagree."""
    choice, decoder, start = None, json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            content, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            content, end = None, start + 1
        values = {_value(content[key]) for key in KEYS if key in content} if isinstance(content, dict) else set()
        if values:
            choice = values.pop() if len(values) == 1 else None
        start = text.find("{", end)
    return choice


def _value(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    return "tie" if value.strip().lower() in EQUAL else _last_line(value)


def _expression(expression: re.Pattern[str], text: str) -> str | None:
    """Read the last match: its named group `A`, `B` or `tie`, or its only group, which captures a letter or `tie`."""
    matches = list(expression.finditer(text))
    if not matches:
        return None
    if expression.groupindex:
        names = [name for name, value in matches[-1].groupdict().items() if value is not None]
        return names[0] if len(names) == 1 else None
    return _letter(matches[-1][1] or "")


def _letter(captured: str) -> str | None:
    return {"a": "A", "b": "B", "c": "tie", "tie": "tie"}.get(captured.strip().lower())


BY_NAME: dict[str, Callable[[str], str | None]] = {
    "prefdag": _last_line,
    "mt-bench": _mt_bench,
    "alpaca-eval": _alpaca_eval,
    "arena-hard": _arena_hard,
    "json": _json,
}
