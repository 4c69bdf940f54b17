"""Manifests: what an artifact is made of, by content, and nothing that varies between equal runs.

Whatever a job reads is held against them, byte for byte: a file that changed after its stage was finished, by an edit,
a copy that broke off or a disk, is a sentence and never a number.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdag.errors import UserError

MANIFEST = "manifest.json"
WEIGHTS = ".safetensors"
SEAL = "seal"
KEYS = {"stage", "config", "code", "inputs", "files", "facts", SEAL}


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

    def check(self, wanted: Callable[[str], bool]) -> None:
        """Read every listed file whose name is `wanted` against its sha256.

        Raises `UserError` naming the first that is missing or is not the file that was written.
        """
        for name in filter(wanted, self.content.get("files", {})):
            path = self.file(name)
            if sha256_of(path) != self.digest(name):
                raise UserError(
                    f"{path}: its bytes are not those that {MANIFEST} states, so it was changed or damaged since it "
                    f"was made; delete {self.path} and rerun"
                )

    def check_weights(self, folder: str = "model") -> None:
        """`check` of the weights in a folder of this stage, all its folders for "": to be called by who loads them."""
        self.check(lambda name: name.endswith(WEIGHTS) and name.startswith(f"{folder}/" if folder else ""))

    def check_but_weights(self) -> None:
        """`check` of everything else, which is small beside weights."""
        self.check(lambda name: not name.endswith(WEIGHTS))

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
    if not _intact(content, text):
        raise UserError(f"{path}: was changed since it was written; delete it and rerun its stage")
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
    return _written(content | {SEAL: _seal(content)})


def _written(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def _intact(content: Any, text: bytes) -> bool:
    """Whether a manifest that bears a seal says what it said when it was written, in these very bytes."""
    if not isinstance(content, dict) or content.keys() - KEYS:
        return False
    return SEAL not in content or (content[SEAL] == _seal(content) and text == _written(content))


def _seal(content: Mapping[str, Any]) -> str:
    """sha256 of what a manifest says, for the manifest itself."""
    said = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(made: Path, folder: Path, manifest: bytes) -> None:
    """Move everything below `made` into `folder` by rename, the manifest last: its presence means all is there.

    All of it is on the disk before, so that a machine that loses power has no manifest of files that it has not.
    """
    for path in made.rglob("*"):
        fsync(path)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in sorted(made.iterdir()):
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    temporary = made / MANIFEST
    temporary.write_bytes(manifest)
    fsync(temporary)
    os.replace(temporary, folder / MANIFEST)
    made.rmdir()


def fsync(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to its disk now."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def weights_digest(manifest: Manifest, folder: str = "model") -> str:
    """sha256 of a stage's weights: of the file, or of its shards' sha256 one after the other."""
    files = sorted(name for name in manifest.content["files"] if name.endswith(".safetensors") and f"{folder}/" in name)
    return combined_digest([manifest.digest(name) for name in files])


def combined_digest(digests: list[str]) -> str:
    """Return the digest itself if there is one, else the sha256 of all of them concatenated."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
