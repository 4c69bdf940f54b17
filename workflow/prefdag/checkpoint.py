"""Resumable state of a training, and the wish to stop.

Interrupted and resumed equals uninterrupted: weights, optimizer moments and the records so far (the last of which
holds the loss's adaptive state) are saved together, and everything else is a pure function of the step's number.
Weights that are to be kept are written before the state that is past them.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import PreTrainedModel

from prefdag.models import save
from prefdag.ranks import is_first

SECONDS_BETWEEN = 60.0


class Checkpoint:
    """The latest state of one training, in one file that appears by rename."""

    def __init__(self, folder: Path, seconds_between: float = SECONDS_BETWEEN) -> None:
        self.path = folder / "state.pt"
        self.seconds_between = seconds_between
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None. Only tensors and plain values are unpickled."""
        return torch.load(self.path, map_location="cpu", weights_only=True) if self.path.is_file() else None

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.seconds_between

    def save(self, state: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        torch.save(state, temporary)
        os.replace(temporary, self.path)
        self._saved_at = time.monotonic()


class KeptWeights:
    """Loadable weights of some steps of a training, kept beside its resumable state until it is done."""

    def __init__(self, folder: Path, steps: Sequence[int], model: PreTrainedModel, tokenizer: Path) -> None:
        self.folder, self.steps, self.model, self.tokenizer = folder, steps, model, tokenizer

    def __call__(self, step: int) -> None:
        """Keep the weights as they are after `step`, if it is one of the steps; a folder appears whole."""
        if step in self.steps:
            partial, folder = self.folder / f"{step}.partial", self.folder / str(step)
            if is_first():
                for old in (partial, folder):
                    shutil.rmtree(old, ignore_errors=True)
            save(self.model, self.tokenizer, partial)
            if is_first():
                os.replace(partial, folder)

    def published(self, folder: Path) -> Sequence[int]:
        """Set every step's weights into `folder`, made here; they stay kept until the whole job is published."""
        folder.mkdir()
        for step in self.steps if is_first() else ():
            shutil.copytree(self.folder / str(step), folder / str(step), copy_function=os.link)
        return self.steps


@contextmanager
def told_to_stop() -> Iterator[list[str]]:
    """While inside, SIGTERM and SIGINT are noted in the list instead of interrupting a step half-way."""
    noted: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
