"""A cache of judges' answers on disk: no question is asked twice, and interrupted judging continues.

`results/<suite>/.judge/<job>.jsonl` has a line per answer, with key and text. The key is a digest of the model,
its sampling settings and the text of the question, which includes the pair and its order. Each job appends to its own
file and reads all of them. A line is one write under a lock, so two writers of a file leave whole lines. A line that is
cut off or damaged is ignored, and its question is asked again.
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
    """Return the sha256 of everything that an answer depends on."""
    content = {"model": judge.model, "question": question, **settings(judge)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def settings(judge: LLM) -> dict[str, Any]:
    """Return the sampling settings of a request, by the protocol's names."""
    return {"temperature": TEMPERATURE, "max_tokens": judge.max_tokens}


def read_cached(folder: Path) -> dict[str, str]:
    """Read all answers in a folder's files, by key."""
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
    """Return a checksum: one changed letter of an answer would be another verdict."""
    return hashlib.sha256(f"{key}\n{answer}".encode()).hexdigest()


class AnswerCache:
    """Append answers to a file: `with AnswerCache(path) as cache: cache.add(key, model, text)`."""

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
