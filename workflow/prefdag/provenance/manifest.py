"""Manifests: what an artifact was made from, by content, without anything that varies between equal runs.

A job checks every file that it reads against its manifest. A file that changed after its stage had finished (edited,
copied in part, damaged on disk) ends the job with an error, never with another number.
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
from prefdag.provenance.redaction import redact_addresses

MANIFEST = "manifest.json"
WEIGHTS = ".safetensors"
SEAL = "seal"
PASSED_ON = "passed_on"  # a fact: the sha256 of the manifest whose files a stage passes on, under another name
TRAINING = "training.json"  # that manifest
KEYS = {"stage", "config", "code", "inputs", "files", "facts", SEAL}


@dataclass(frozen=True)
class Manifest:
    """A manifest as read: the file's `path`, the `sha256` that its readers record, and its `content`.

    The sha256 is of the file's bytes. A stage that passes the files of another on is read as that one: its readers
    depend on what was passed on, and not on what else it could have been.
    """

    path: Path
    sha256: str
    content: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.path.parent

    def file(self, name: str) -> Path:
        """Return the path of a listed file.

        Raises:
            UserError: The file is not listed, is missing, or has another size.
        """
        entry = self.content["files"].get(name)
        path = self.folder / name
        if entry is None:
            raise UserError(f"{self.path}: lists no file {name}; rebuild this stage by deleting the manifest")
        if not path.is_file() or path.stat().st_size != entry["size"]:
            raise UserError(f"{path}: missing, or not the file that {MANIFEST} lists; delete {self.path} and rerun")
        return path

    def check(self, wanted: Callable[[str], bool]) -> None:
        """Compare the sha256 of every listed file whose name is `wanted` with the manifest.

        Raises:
            UserError: A file is missing or has changed; the message names the first.
        """
        for name in filter(wanted, self.content.get("files", {})):
            path = self.file(name)
            if sha256_of(path) != self.digest(name):
                raise UserError(
                    f"{path}: does not have the sha256 in {MANIFEST}: it was changed or damaged after its stage had "
                    f"finished; delete {self.path} and rerun"
                )

    def check_weights(self, folder: str = "model") -> None:
        """Check the weights in a folder of this stage, or in all its folders for ""; call this before loading them."""
        self.check(lambda name: name.endswith(WEIGHTS) and name.startswith(f"{folder}/" if folder else ""))

    def check_but_weights(self) -> None:
        """Check all other files, which are small compared to weights."""
        self.check(lambda name: not name.endswith(WEIGHTS))

    def digest(self, name: str) -> str:
        """Return the sha256 of a listed file, as recorded when it was written."""
        return self.content["files"][name]["sha256"]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises `UserError` where it is missing, broken or edited."""
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such manifest; run the stage that makes it first") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not a manifest (broken JSON); delete it and rerun its stage") from None
    if not _intact(content, text):
        raise UserError(f"{path}: was changed since it was written; delete it and rerun its stage")
    if wrong := _malformed(content):
        raise UserError(
            f"{path}: not a manifest ({', '.join(wrong)} missing or damaged); delete it and rerun its stage"
        )
    passed_on = (content.get("facts") or {}).get(PASSED_ON)
    return Manifest(path, passed_on or hashlib.sha256(text).hexdigest(), content)


def checked(path: Path) -> Path:
    """Compare a stage's file with the manifest next to it, if that is there and lists it, and return its path.

    Raises:
        UserError: The file has changed since its stage wrote it.
    """
    if (path.parent / MANIFEST).is_file():
        read_manifest(path.parent / MANIFEST).check(lambda name: name == path.name)
    return path


def read_training(path: Path) -> Manifest:
    """Read the manifest of a training; where a stage passed it on, the one that the training wrote."""
    manifest = read_manifest(path)
    return read_manifest(manifest.file(TRAINING)) if TRAINING in manifest.content.get("files", {}) else manifest


def describe(
    folder: Path, stage: str, config: Any, code: Mapping[str, str], inputs: Mapping[str, Any], facts: Any
) -> bytes:
    """Return the manifest of all files below `folder`, as bytes, without the secret parts of addresses.

    Args:
        folder: The stage's output.
        stage: The stage's name.
        config: The job's options.
        code: File of the job's code -> digest.
        inputs: Name -> sha256 (or list of sha256) of each manifest that was read.
        facts: Results of the stage that its readers need.
    """
    files = {
        str(path.relative_to(folder)): {"sha256": sha256_of(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    stated = {"config": redact_addresses(config), "facts": redact_addresses(facts)}
    content = {"stage": stage, "code": code, "inputs": inputs, "files": files, **stated}
    return _written(content | {SEAL: _seal(content)})


def _written(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def _intact(content: Any, text: bytes) -> bool:
    """Return whether a manifest is unchanged: its seal, where it has one, and its bytes match its content."""
    if not isinstance(content, dict) or content.keys() - KEYS:
        return False
    return SEAL not in content or (content[SEAL] == _seal(content) and text == _written(content))


def _malformed(content: Mapping[str, Any]) -> list[str]:
    """Return the keys of a manifest that are missing, or hold something else than a stage writes."""
    kinds = {"stage": str, "facts": dict | None, **dict.fromkeys(("code", "config", "inputs", "files"), dict)}
    wrong = [key for key, kind in kinds.items() if key not in content or not isinstance(content[key], kind)]
    if "files" not in wrong and not all(map(_is_entry, content["files"].values())):
        wrong.append("files")
    return wrong


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("size"), int)


def _seal(content: Mapping[str, Any]) -> str:
    """Return the sha256 of a manifest's content, which the manifest itself holds."""
    sealed = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def publish(made: Path, folder: Path, manifest: bytes) -> None:
    """Rename everything below `made` into `folder`, the manifest last: where it exists, all files exist.

    The files are flushed to disk first: after a power cut there is no manifest whose files are missing.
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
    """Flush a file, or a folder's entries, to disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def weights_digest(manifest: Manifest, folder: str = "model") -> str:
    """Return the sha256 of a stage's weights: of the file, or of its shards' digests concatenated."""
    files = sorted(name for name in manifest.content["files"] if name.endswith(".safetensors") and f"{folder}/" in name)
    return combined_digest([manifest.digest(name) for name in files])


def combined_digest(digests: list[str]) -> str:
    """Return the digest itself if there is one, else the sha256 of all of them concatenated."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
