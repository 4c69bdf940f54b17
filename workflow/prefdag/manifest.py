"""Manifests: what an artifact is made of, by content, and nothing that varies between equal runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdag.errors import UserError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read: `path` of the file, `sha256` of its bytes, its `content`."""

    path: Path
    sha256: str
    content: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.path.parent

    def file(self, name: str) -> Path:
        """A file that the manifest lists.

        Raises `UserError` when it is missing or of another size than stated.
        """
        entry = self.content["files"].get(name)
        path = self.folder / name
        if entry is None:
            raise UserError(f"{self.path}: lists no file {name}; rebuild this stage by deleting the manifest")
        if not path.is_file() or path.stat().st_size != entry["size"]:
            raise UserError(f"{path}: missing or not the file that {MANIFEST} states; delete {self.path} and rerun")
        return path

    def digest(self, name: str) -> str:
        """sha256 of a listed file, as stated when it was written."""
        return self.content["files"][name]["sha256"]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises `UserError` when it is missing or broken."""
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such manifest; run the stage that makes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path}: not a manifest (broken JSON); delete it and rerun its stage") from None
    return Manifest(path, hashlib.sha256(text).hexdigest(), content)


def describe(folder: Path, stage: str, config: Any, code: str, inputs: Mapping[str, Any], facts: Any) -> bytes:
    """The manifest of every file below `folder`, as bytes.

    inputs: name -> sha256 (or list of sha256) of the manifests that were read.
    """
    files = {
        str(path.relative_to(folder)): {"sha256": sha256_of(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {"stage": stage, "config": config, "code": code, "inputs": inputs, "files": files, "facts": facts}
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(made: Path, folder: Path, manifest: bytes) -> None:
    """Move everything below `made` into `folder` by rename, the manifest last: its presence means all is there."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in sorted(made.iterdir()):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    temporary = made / MANIFEST
    temporary.write_bytes(manifest)
    os.replace(temporary, folder / MANIFEST)
    made.rmdir()
