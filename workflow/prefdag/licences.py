"""The pinned packages that a suite runs on: name, version and licence, as their own metadata state them."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def packages() -> list[dict[str, str]]:
    """Every direct dependency of `pyproject.toml` in its order; nothing where the package runs outside its tree.

    A package that is not installed, or states no licence, says so.
    """
    if not PROJECT.is_file():
        return []
    pins = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [_about(re.split(r"[=<>!~ ;\[]", pin)[0], pin.partition("==")[2]) for pin in pins]


def _about(name: str, pinned: str) -> dict[str, str]:
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return {"name": name, "version": f"{pinned}, not installed", "licence": ""}
    version = told["Version"].partition("+")[0]  # the build, +cpu or +cu130, is not the version
    return {"name": name, "version": version, "licence": licence(told)}


def licence(told: metadata.PackageMetadata) -> str:
    """The SPDX expression, else the classifiers, else the first line of the licence that the metadata hold."""
    classified = [line.split(" :: ")[-1] for line in told.get_all("Classifier") or [] if line.startswith("License :: ")]
    stated = (told.get_all("License-Expression") or [""])[0]
    free = (told.get_all("License") or [""])[0].strip().splitlines()
    return stated or ", ".join(classified) or (free[0][:60] if free else "not stated")
