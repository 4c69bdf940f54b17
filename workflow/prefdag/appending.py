"""Lines that are in a file whole or not at all, also where the disk fills up."""

import os


def append(file: int, line: bytes) -> None:
    """Write `line` at the end of a file opened with O_APPEND. Raises `OSError` after taking a torn end away again."""
    size = os.fstat(file).st_size
    rest = line
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError:
        os.ftruncate(file, size)
        raise
