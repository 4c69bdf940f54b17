"""Give a file a second name instead of copying its bytes: weights are large, and never written in place."""

import os
import shutil
from pathlib import Path


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to a file; where the file system allows none, make it a copy.

    Deleting or replacing one of the two names leaves the other as it is.
    """
    try:
        os.link(source.resolve(), target)  # the Hub's cache holds symbolic links
    except OSError:  # another file system, a file of another user, or one without hard links
        shutil.copy(source, target)


def link_weights(source: Path, target: Path) -> None:
    """Make the new folder `target` from the files of a model: weights are linked, small files copied."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            link_or_copy(path, target / path.name)
        elif path.is_file():
            shutil.copy(path, target / path.name)
