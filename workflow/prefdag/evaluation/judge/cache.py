"""Answers of judges, kept beside the results: nothing is asked twice, and judging goes on where it was cut off.

`results/<suite>/.judge/<job>.jsonl`, a line an answer: its key and the text. The key is the content of the question:
the judge's model, its sampling settings, and the whole text asked, in which the pair and its order stand. Each job
appends to a file of its own and reads all of them; a line is one write, under a lock, so that even two writers of one
file leave whole lines. A line cut off by a crash or damaged since is no answer and is asked for again.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from prefdag.config.judge import LLM
from prefdag.provenance.journal import append_line

TEMPERATURE = 0.0


def question_key(judge: LLM, question: str) -> str:
    """sha256 of whatever an answer depends on."""
    asked = {"model": judge.model, "question": question, **settings(judge)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def settings(judge: LLM) -> dict[str, Any]:
    """The sampling settings of a request, by the protocol's names."""
    return {"temperature": TEMPERATURE, "max_tokens": judge.max_tokens}


def read_cached(folder: Path) -> dict[str, str]:
    """Every answer of the folder's files, by key."""
    answers: dict[str, str] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
                if entry["sha256"] == _digest(entry["key"], entry["answer"]):
                    answers[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                continue  # empty, or cut off by a crash
    return answers


def _digest(key: str, answer: str) -> str:
    """One letter of an answer is the verdict: what a disk has changed is no answer."""
    return hashlib.sha256(f"{key}\n{answer}".encode()).hexdigest()


class AnswerCache:
    """Appends answers to one file: `with Answers(path) as answers: answers.add(key, model, text)`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, key: str, model: str, answer: str) -> None:
        entry = {"key": key, "judge": model, "answer": answer, "sha256": _digest(key, answer)}
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
