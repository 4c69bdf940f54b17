"""Report failures of the operating system as one sentence: no space, no permission, no memory."""

import errno
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefdag.errors import Stopped, UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
# Libraries wrap the system's error, or report only that a write failed.
FULL_TEXTS = ("No space left on device", "File too large", "Disk quota exceeded", "PytorchStreamWriter failed writing")
MEMORY_TEXTS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA out of memory",
    "std::bad_alloc",
    "can't start new thread",
    "failed to map segment",
)
NEAR = 0.95  # of the limit on a process's memory


@contextmanager
def as_sentences(stage: str, root: Path) -> Iterator[None]:
    """Raise such an error as `UserError`, and any other unchanged. root: the suite's folder of results."""
    try:
        yield
    except (Stopped, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if isinstance(error, UserError):
            # Without memory a file cannot be opened, and was reported as broken.
            error = next((one for one in _chain(error) if not isinstance(one, UserError) and _says_memory(one)), error)
            if isinstance(error, UserError):
                raise
        if (sentence := _sentence(stage, root, error)) is None:
            raise
        raise UserError(sentence) from None


def _sentence(stage: str, root: Path, error: BaseException) -> str | None:
    if any(_says(one, FULL, FULL_TEXTS) for one in _chain(error)):
        free = shutil.disk_usage(root).free / 1e6
        return (
            f"{root}: no space left while writing ({free:.0f} MB free); free some, or raise the limit on files, and "
            "rerun; nothing half-written was left behind"
        )
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        where = error.filename or root
        return f"{where}: cannot be written or read ({error.strerror}); choose a writable results folder"
    if out_of_memory(error):
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"{stage} of {root}: out of memory ({message}); give the job more of it, or lower the section's "
            "tokens_per_batch, and rerun"
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is one of memory, or any error of a process at its memory limit (ulimit -v)."""
    if any(map(_says_memory, _chain(error))):
        return True
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit != resource.RLIM_INFINITY and _largest() > NEAR * limit


def _says_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or _says(error, {errno.ENOMEM}, MEMORY_TEXTS)


def _largest() -> int:
    """Return the peak virtual memory of this process in bytes; 0 if the system does not report it."""
    status = Path("/proc/self/status")
    peak = re.search(r"VmPeak:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return 1024 * int(peak[1]) if peak else 0


def _says(error: BaseException, numbers: set[int], texts: tuple[str, ...]) -> bool:
    return getattr(error, "errno", None) in numbers or any(part in str(error) for part in texts)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and those that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
