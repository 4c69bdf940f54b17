"""The resumable state of a training, checkpoints of its weights, and stop requests.

A resumed training equals an uninterrupted one: weights, optimizer moments and records (the last of which has the loss's
adaptive state) are saved together, and everything else is a function of the step's number. Checkpoints of weights are
written before the state that is past their step.
"""

import json
import os
import pickle
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

SECONDS_BETWEEN = 60.0  # two saves


class Checkpoint:
    """The latest state of one training, in one file that is replaced atomically."""

    def __init__(self, folder: Path, seconds_between: float = SECONDS_BETWEEN) -> None:
        self.path = folder / "state.pt"
        self.seconds_between = seconds_between
        self._saved_at = time.monotonic()
        self._step = 0

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None. Only tensors and plain values are unpickled.

        Raises:
            UserError: if the file is damaged.
        """
        if not self.path.is_file():
            return None
        try:
            with zipfile.ZipFile(self.path) as file:  # torch.load compares no checksums
                is_intact = file.testzip() is None
            state = torch.load(self.path, map_location="cpu", weights_only=True) if is_intact else None
        except (ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError):
            state = None
        if state is None:
            raise UserError(
                f"{self.path}: the saved state of this training is damaged; delete {self.path.parent} and rerun: the "
                "training then starts at its first step"
            )
        self._step = len(state["history"])
        return state

    def last_good(self) -> str:
        """Return which state a rerun continues from, for error messages."""
        return f"the last good state is step {self._step}'s, {self.path}" if self._step else "no state was saved yet"

    def due(self) -> bool:
        """Return whether the last save is `seconds_between` ago."""
        return time.monotonic() - self._saved_at >= self.seconds_between

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        with temporary.open("wb") as stream:  # torch hides why its own writer failed
            torch.save(state, stream)
        fsync(temporary)
        os.replace(temporary, self.path)
        self._saved_at, self._step = time.monotonic(), len(state["history"])


class WeightsKeeper:
    """Checkpoints of the weights after some steps, stored with the resumable state until the job is published."""

    def __init__(self, folder: Path, steps: Sequence[int], model: PreTrainedModel, tokenizer: Path) -> None:
        self.folder, self.steps, self.model, self.tokenizer = folder, steps, model, tokenizer

    def __call__(self, step: int) -> None:
        """Save the weights if `step` is one of the steps; the folder appears atomically, with a file of digests."""
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

    def publish(self, folder: Path) -> Sequence[int]:
        """Hard-link every checkpoint into the new `folder`, and return their steps.

        Raises:
            UserError: if a checkpoint is missing or damaged.
        """
        folder.mkdir()
        for step in self.steps if is_first() else ():
            self._check(self.folder / str(step))
            shutil.copytree(self.folder / str(step), folder / str(step), copy_function=os.link)
        return self.steps

    def _check(self, folder: Path) -> None:
        try:
            digests = json.loads(folder.with_suffix(".json").read_text())
            is_intact = all(sha256_of(folder / name) == digest for name, digest in digests.items())
        except (OSError, ValueError):
            is_intact = False
        if not is_intact:
            raise UserError(
                f"{folder}: these weights are missing or damaged; delete {self.folder.parent} and rerun: the "
                "training then starts at its first step"
            )


@contextmanager
def stop_requested() -> Iterator[list[str]]:
    """While active, append the names of SIGTERM and SIGINT to the list instead of interrupting a step."""
    received: list[str] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
