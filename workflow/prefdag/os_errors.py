"""What the system refuses, met anywhere in a stage, as one sentence: no space, no permission, no memory."""

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
# Libraries wrap the system's own error, or leave nothing of it but that a write failed.
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
    """Raise `UserError` for such an error of a job of `stage` in the suite's folder `root`, and any other as it is."""
    try:
        yield
    except (Stopped, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a library in Rust panics with what is no Exception
        if isinstance(error, UserError):
            # A file that could not be opened for want of memory was taken for a broken one.
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
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"{stage} of {root}: out of memory ({said}); give the job more of it, or lower the section's "
            "tokens_per_batch, and rerun"
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so, or is any at all of a process that has come to the limit on its memory (ulimit -v)."""
    if any(map(_says_memory, _chain(error))):
        return True
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit != resource.RLIM_INFINITY and _largest() > NEAR * limit


def _says_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or _says(error, {errno.ENOMEM}, MEMORY_TEXTS)


def _largest() -> int:
    """The most virtual memory that this process ever had, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"VmPeak:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return 1024 * int(found[1]) if found else 0


def _says(error: BaseException, numbers: set[int], texts: tuple[str, ...]) -> bool:
    return getattr(error, "errno", None) in numbers or any(part in str(error) for part in texts)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was met in the handling of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
