"""Functions in a user's file, `<file>.py:<function>` with a path relative to the suite's file."""

import os
import re
from pathlib import Path
from typing import Any

from prefdag.errors import UserError

FORM = re.compile(r"(?!/)([\w./+ -]+\.py):([^\W\d]\w*)")


def relative_path(named: Any, suite: str) -> Any:
    """Return `<file>.py:<function>` with its path turned into one from the working directory; other values unchanged.

    The path stays relative, so that neither a config nor a manifest contains this machine's folders.
    """
    if not (isinstance(named, str) and FORM.fullmatch(named)):
        return named
    path, name = split_path(named)
    return f"{os.path.relpath(Path(suite).parent / path)}:{name}"


def split_path(named: str) -> tuple[Path, str]:
    """Return file and function. Raises `UserError` for another form."""
    match = FORM.fullmatch(named)
    if match is None:
        raise UserError(
            f"expected <file>.py:<function> with the file's path relative to the suite's "
            f"(letters, digits and . _ + - / or blanks), got {named!r}"
        )
    return Path(match[1]), match[2]
