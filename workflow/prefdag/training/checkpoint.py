"""Resumable state of a training, and the wish to stop.

Interrupted and resumed equals uninterrupted: weights, optimizer moments and the records so far (the last of which
holds the loss's adaptive state) are saved together, and everything else is a pure function of the step's number.
Weights that are to be kept are written before the state that is past them.
"""

import json
import os
import shutil
import signal
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import PreTrainedModel

from prefdag.distributed.ranks import is_first
from prefdag.errors import UserError
from prefdag.models.loading import save
from prefdag.provenance.manifest import fsync, sha256_of

SECONDS_BETWEEN = 60.0


class Checkpoint:
    """The latest state of one training, in one file that appears by rename."""

    def __init__(self, folder: Path, seconds_between: float = SECONDS_BETWEEN) -> None:
        self.path = folder / "state.pt"
        self.seconds_between = seconds_between
        self._saved_at = time.monotonic()
        self._step = 0

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None. Only tensors and plain values are unpickled.

        Raises `UserError` for a file that is not as it was written: torch itself compares no checksum.
        """
        if not self.path.is_file():
            return None
        try:
            with zipfile.ZipFile(self.path) as file:
                whole = file.testzip() is None
            state = torch.load(self.path, map_location="cpu", weights_only=True) if whole else None
        except (ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error):
            state = None
        if state is None:
            raise UserError(
                f"{self.path}: the saved state of this training is damaged; delete {self.path.parent} and rerun: the "
                "training then starts at its first step"
            )
        self._step = len(state["history"])
        return state

    def last_good(self) -> str:
        """Which state there is to go back to, as half a sentence."""
        return f"the last good state is step {self._step}'s, {self.path}" if self._step else "no state was saved yet"

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.seconds_between

    def save(self, state: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        with temporary.open("wb") as stream:  # torch's own writer does not say why a write failed
            torch.save(state, stream)
        fsync(temporary)
        os.replace(temporary, self.path)
        self._saved_at, self._step = time.monotonic(), len(state["history"])


class WeightsKeeper:
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
                digests = {path.name: sha256_of(path) for path in partial.iterdir()}
                (self.folder / f"{step}.json").write_text(json.dumps(digests, sort_keys=True))
                os.replace(partial, folder)

    def published(self, folder: Path) -> Sequence[int]:
        """Set every step's weights into `folder`, made here; they stay kept until the whole job is published.

        Raises `UserError` where what was kept is not there any more, or not as it was written.
        """
        folder.mkdir()
        for step in self.steps if is_first() else ():
            self._check(self.folder / str(step))
            shutil.copytree(self.folder / str(step), folder / str(step), copy_function=os.link)
        return self.steps

    def _check(self, folder: Path) -> None:
        try:
            digests = json.loads(folder.with_suffix(".json").read_text())
            whole = all(sha256_of(folder / name) == digest for name, digest in digests.items())
        except (OSError, ValueError):
            whole = False
        if not whole:
            raise UserError(
                f"{folder}: the weights kept there are missing or damaged; delete {self.folder.parent} and rerun: the "
                "training then starts at its first step"
            )


@contextmanager
def stop_requested() -> Iterator[list[str]]:
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
