"""Remember which suite file a results folder belongs to, so that another of the same name does not overwrite it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from prefdag.errors import UserError

RECORD = ".suite.json"


def check_suite_files(results: Path, files: Sequence[str]) -> None:
    """Check that the results folder was made from these suite files, if it was made at all.

    Paths are relative to the working directory, so a clone can be moved. A folder whose suite file no longer exists has
    no owner: the file may have been renamed.

    Args:
        results: the suite's results folder.
        files: the suite file and those merged over it, in order.

    Raises:
        UserError: if the folder belongs to other files, which still exist.
    """
    owners = _read(results / RECORD)
    if not owners or not all(map(os.path.isfile, owners)) or _real(owners) == _real(files):
        return
    raise UserError(
        f"{' '.join(files)}: {results} holds the results of {' '.join(owners)}, which has the same name; state another "
        f"`name:`, or delete {results / RECORD} if these results may be replaced"
    )


def check_results(results: Path) -> None:
    """Check that nothing below a results folder leads out of it: jobs write there, and what they write would be lost.

    The folder itself may be a symbolic link, to a larger disk.

    Raises:
        UserError: it belongs to another user, or holds a symbolic link; a folder from someone else's archive may.
    """
    if not results.exists():
        return
    owner, user = results.stat().st_uid, os.getuid()
    if user and owner != user:
        raise UserError(f"{results}: belongs to another user; run in a folder of yours, or copy it with `cp -r`")
    for folder, folders, files in os.walk(results):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                raise UserError(f"{path}: a symbolic link among results; delete it, or put a copy in its place")


def record_suite_files(results: Path, files: Sequence[str]) -> None:
    """Write which suite files the results folder belongs to."""
    names = [os.path.relpath(path) for path in files]
    if _read(results / RECORD) != names:
        results.mkdir(parents=True, exist_ok=True)
        (results / RECORD).write_text(json.dumps(names) + "\n")


def _read(path: Path) -> list[str]:
    try:
        files = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return files if isinstance(files, list) and all(isinstance(file, str) for file in files) else []


def _real(files: Sequence[str]) -> list[str]:
    return [os.path.realpath(file) for file in files]
