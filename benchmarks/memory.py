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
        """Give back what was freed and is kept, forget the high-water mark, and note what stands.

        Whatever an earlier phase used would else count as standing, and be used for nothing.
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
