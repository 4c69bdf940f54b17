"""Resident memory of a phase: what it reached, over what stood before it."""

import ctypes
import resource
from pathlib import Path

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


class Phase:
    """A part of a process's life, from `begin` to whenever `peak_mb` is read; MB are 2^20 bytes.

    Where /proc is missing or may not be written, the mark is that of the whole life.
    """

    def __init__(self) -> None:
        self.start_mb = 0.0

    def begin(self) -> None:
        """Return freed pages to the system, reset the high-water mark, and note the memory in use.

        Otherwise pages that an earlier phase freed would count as in use, and steps could reuse them unseen.
        """
        try:
            ctypes.CDLL(None).malloc_trim(0)
            RESET.write_text("5")  # proc(5): the mark starts again from what is resident
        except (AttributeError, OSError, TypeError):
            pass
        self.start_mb = _resident_mb("VmRSS")

    @property
    def peak_mb(self) -> float:
        return _resident_mb("VmHWM")


def _resident_mb(name: str) -> float:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
