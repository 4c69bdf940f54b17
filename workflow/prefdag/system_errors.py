"""What the system refuses, met anywhere in a stage, as one sentence: no space, no permission, no memory."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefdag.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
# Libraries wrap the system's own error, or leave nothing of it but that a write failed.
FULL_TEXTS = ("No space left on device", "File too large", "Disk quota exceeded", "PytorchStreamWriter failed writing")
MEMORY_TEXTS = ("can't allocate memory", "Cannot allocate memory", "CUDA out of memory", "std::bad_alloc")


@contextmanager
def as_sentences(stage: str, root: Path) -> Iterator[None]:
    """Raise `UserError` for such an error of a job of `stage` in the suite's folder `root`, and any other as it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (sentence := _sentence(stage, root, error)) is None:
            raise
        raise UserError(sentence) from None


def _sentence(stage: str, root: Path, error: Exception) -> str | None:
    number, text = getattr(error, "errno", None), str(error)
    where = getattr(error, "filename", None) or root
    if number in FULL or any(part in text for part in FULL_TEXTS):
        free = shutil.disk_usage(root).free / 1e6
        return (
            f"{root}: no space left while writing ({free:.0f} MB free); free some, or raise the limit on files, and "
            "rerun; nothing half-written was left behind"
        )
    if number in FORBIDDEN:
        return f"{where}: cannot be written or read ({error.strerror}); choose a writable results folder"  # type: ignore[attr-defined]
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(part in text for part in MEMORY_TEXTS):
        return (
            f"{stage} of {root}: out of memory; give the job more of it, or lower the section's tokens_per_batch (a "
            "batch's share of it)"
        )
    return None
