"""One job at a time makes an output: two would write the same files, and delete each other's.

A Snakemake that was killed leaves its jobs running, and the next one starts the same jobs again; so does a person by
hand. The second waits for the first. The lock is the process's own (a POSIX record lock, which NFS has as well), so it
ends with the process however that ends, and no child inherits it.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = ".running"
PATIENCE = 0.5  # seconds between two looks at a lock that another process has
logger = logging.getLogger(__name__)


@contextmanager
def hold_job_lock(root: Path, job: str) -> Iterator[bool]:
    """Hold `<root>/.running/<job>` while inside; tells whether another process had it first.

    On a file system without locks nothing is held, as it is said.
    """
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    path = root / FOLDER / job
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _locked(file, path)
    finally:
        os.close(file)


def _locked(file: int, path: Path) -> bool:
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
            logger.warning("%s cannot be locked (%s); start each job once", path, error.strerror)
            return False
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return waited
