"""A cache of judges' answers on disk: no question is asked twice, and interrupted judging continues.

`results/<suite>/.judge/<job>.jsonl` has a line per answer, with key and text. The key is a digest of the model,
its sampling settings and the text of the question, which includes the pair and its order. Each job appends to its own
file and reads all of them. An answer that was cut has its `finish_reason`, and a question that the endpoint refused has
the refusal, so that neither is asked again; to ask them again, delete those lines. A line is one write under a lock, so
two writers of a file leave whole lines. A line that is cut off or damaged is ignored, and its question is asked again.
"""

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from prefdag.config.sections.judge import LLM, REQUEST
from prefdag.provenance.journal import append_line


@dataclass(frozen=True)
class Answer:
    """A judge's reply to a question.

    Attributes:
        text: What it wrote, perhaps nothing.
        ended: The endpoint's `finish_reason`, or the status and message of its refusal.
        refused: Whether the endpoint or its filter refused the question or the answer.
    """

    text: str
    ended: str = "stop"
    refused: bool = False

    @property
    def cut(self) -> bool:
        """Whether the limit of tokens ended it: what it seems to say may not be how it would have ended."""
        return self.ended in ("length", "max_tokens")


def question_key(judge: LLM, question: str) -> str:
    """Return the sha256 of everything that an answer depends on."""
    content = {"model": judge.model, "question": question, **settings(judge)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def settings(judge: LLM) -> dict[str, Any]:
    """Return the settings of a request, by the protocol's names; what is empty is not sent."""
    values = {key: getattr(judge, key) for key in REQUEST}
    return {key: value for key, value in values.items() if value not in (None, "")} | (
        {"extra_body": judge.extra_body} if judge.extra_body else {}
    )


def read_cached(folder: Path) -> dict[str, Answer]:
    """Read all answers in a folder's files, by key."""
    answers: dict[str, Answer] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                ended, refused = entry.get("finish_reason", "stop"), entry.get("refused", False)
                answer = Answer(entry["answer"], ended, refused)
                if entry["sha256"] == _digest(entry["key"], answer):
                    answers[entry["key"]] = answer
            except (ValueError, KeyError, TypeError):
                continue  # empty, or cut off by a crash
    return answers


def _digest(key: str, answer: Answer) -> str:
    """Return a checksum: one changed letter of an answer would be another verdict."""
    end = [] if answer.ended == "stop" else [answer.ended, str(answer.refused)]
    return hashlib.sha256("\n".join([key, answer.text, *end]).encode()).hexdigest()


class AnswerCache:
    """Append answers to a file: `with AnswerCache(path) as cache: cache.add(key, model, answer)`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, key: str, model: str, answer: Answer) -> None:
        entry: dict[str, Any] = {"key": key, "judge": model, "answer": answer.text, "sha256": _digest(key, answer)}
        if answer.ended != "stop":
            entry |= {"finish_reason": answer.ended, "refused": answer.refused}
        line = json.dumps(entry).encode() + b"\n"
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._file).st_size
            torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
            append_line(self._file, b"\n" * torn + line)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)
