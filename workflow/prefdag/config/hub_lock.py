"""The lock of a suite: for each Hub repository that it names, the commit and every file's hash, in a file beside it.

`configs/<suite>.lock.json` is written once, by `prefdag lock` (the DAG's own first step where it is missing), and is
the user's to commit. `fetch` takes exactly what stands there. An entry is removed by hand, to be locked anew.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefdag.config.classifier import Classifier
from prefdag.config.data import HUB, Data
from prefdag.config.model import Model
from prefdag.errors import UserError


@dataclass(frozen=True)
class Repository:
    """A Hub repository at a branch, tag or commit, as a suite names it."""

    kind: Literal["dataset", "model"]
    name: str
    revision: str | None

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}@{self.revision or 'main'}"


@dataclass(frozen=True)
class Locked:
    """One entry: the commit, and each file's `size` with its `sha256` (large files) or `git_sha1` (small ones)."""

    repository: Repository
    commit: str
    files: Mapping[str, Mapping[str, Any]]


def lock_path(suite_file: str | Path, name: str) -> str:
    """Where a suite's lock lies: `name`, from the suite's (last) file, as a path from the working directory."""
    return os.path.relpath(Path(suite_file).parent / name)


def repositories(
    data: Data | None = None, model: Model | None = None, classifier: Classifier | None = None
) -> list[Repository]:
    """Every Hub repository that a suite's data, model and classifier come from."""
    found: list[Repository] = []
    for source in (*data.sources, data) if data is not None else ():
        found += _of("dataset", source.source, source.revision)
    if model is not None:
        found += _of("model", model.source, model.revision) + _of("model", model.tokenizer or "", None)
    if classifier is not None:
        found += _of("model", classifier.source, classifier.revision)
    return list(dict.fromkeys(found))


def _of(kind: Literal["dataset", "model"], source: str, revision: str | None) -> list[Repository]:
    return [Repository(kind, source.removeprefix(HUB), revision)] if source.startswith(HUB) else []


def unlocked(path: Path, wanted: list[Repository]) -> list[Repository]:
    """The repositories that the lock says nothing of yet."""
    entries = read_lock(path)
    return [repository for repository in wanted if repository.key not in entries]


def read_lock(path: Path) -> dict[str, Any]:
    """The entries of a lock, none where there is no file. Raises `UserError` for a file that is no lock."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path}: not a lock (broken JSON); restore it, or delete it to lock anew") from None
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and {"commit", "files"} <= set(entry) for entry in entries.values()
    ):
        raise UserError(f"{path}: not a lock (no entries of commit and files); restore it, or delete it to lock anew")
    return entries


def locked(path: Path, repository: Repository) -> Locked:
    """The entry of a repository. Raises `UserError` where there is none: nothing is fetched that is not locked."""
    entry = read_lock(path).get(repository.key)
    if entry is None:
        raise UserError(f"{path}: no entry for {repository.key}; `prefdag lock` writes it from the Hub")
    return Locked(repository, entry["commit"], entry["files"])


def write_lock(path: Path, entries: Mapping[str, Any]) -> None:
    """Write the lock whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
