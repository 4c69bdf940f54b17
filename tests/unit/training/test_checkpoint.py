"""The saved state of a training is data: what is not is refused, and it reaches the disk before it replaces another."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from prefdag.errors import UserError
from prefdag.training.checkpoint import Checkpoint


class Program:
    """Unpickling this runs code."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


def test_a_state_with_a_program_in_it_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint(tmp_path / "resume")
    checkpoint.save({"history": [], "model": torch.ones(2)})
    assert checkpoint.load() is not None
    torch.save({"history": [], "model": Program()}, checkpoint.path)
    with pytest.raises(UserError, match="the saved state of this training is damaged; delete"):
        checkpoint.load()
    assert not (tmp_path / "ran").exists()


def test_the_state_is_on_disk_before_it_replaces_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []
    flush, replace = os.fsync, os.replace

    def fsync(file: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{file}").resolve().name))
        flush(file)

    def moved(source: Path, target: Path) -> None:
        events.append(("replace", Path(source).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", moved)
    Checkpoint(tmp_path).save({"history": []})
    assert events == [("fsync", "state.partial"), ("replace", "state.partial")]
