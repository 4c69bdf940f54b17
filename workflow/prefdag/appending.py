"""Lines that are in a file whole or not at all, also where the disk fills up."""

import errno
import os


def append(file: int, line: bytes) -> None:
    """Write `line` at the end of a file opened with O_APPEND. Raises `OSError` after taking a torn end away again."""
    size = os.fstat(file).st_size
    rest = line
    try:
        while rest:
            if not (written := os.write(file, rest)):  # else this would go on for ever
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rest = rest[written:]
    except OSError:
        os.ftruncate(file, size)
        raise
