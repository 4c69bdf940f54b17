"""Lock a job, so that two processes never make the same output: they would delete each other's files.

A Snakemake that was killed leaves its jobs running, and the next one starts the same jobs again. The second process
waits for the first. The lock is a POSIX record lock (`fcntl`), not the `flock` of the `filelock` library: it works on
NFS, ends with its process however that ends, and child processes do not inherit it.
"""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefdag.errors import UserError

FOLDER = ".running"
PATIENCE = 0.5  # seconds between two attempts to take the lock
logger = logging.getLogger(__name__)


@contextmanager
def hold_job_lock(root: Path, job: str) -> Iterator[bool]:
    """Lock `<root>/.running/<job>`, and yield whether another process held the lock before.

    On a file system without locks, print a warning and run unlocked.
    """
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    path = root / FOLDER / job
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: a symbolic link where a lock belongs; delete it") from None
        raise
    try:
        yield _lock(file, path)
    finally:
        os.close(file)


def _lock(file: int, path: Path) -> bool:
    waited = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):
            if not waited:
                holder = os.pread(file, 100, 0).decode(errors="replace").strip()
                logger.info("waiting for %s, which makes the same output (%s)", holder, path)
            waited = True
            time.sleep(PATIENCE)
        except OSError as error:
            logger.warning("%s cannot be locked (%s); do not start a job twice", path, error.strerror)
            return False
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return waited
