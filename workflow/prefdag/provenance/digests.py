"""Remember the sha256 of files by size and modification time, so that a plan reads a large file once."""

import json
import os
from pathlib import Path

from prefdag.provenance.manifest import sha256_of


class Digests:
    """The sha256 of files, remembered in `path` between runs.

    A file whose size and modification time are those of the last time is not read again. Losing `path` costs time only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _read(path)
        self._changed = False

    def of(self, file: Path) -> str:
        """Return the sha256 of a file's content."""
        status = file.stat()
        key, stamp = os.path.relpath(file), [status.st_size, status.st_mtime_ns]
        entry = self._entries.get(key)
        if entry is None or entry[:2] != stamp:
            entry = self._entries[key] = [*stamp, sha256_of(file)]
            self._changed = True
        return str(entry[2])

    def save(self) -> None:
        """Write what was learned; a folder that cannot be written to is no error."""
        if not self._changed:
            return
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self._entries))
            partial.replace(self.path)
        except OSError:
            return
        self._changed = False


def _read(path: Path) -> dict[str, list[int | str]]:
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
