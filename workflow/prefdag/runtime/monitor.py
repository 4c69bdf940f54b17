"""What a job takes of its machine while it runs, sampled into its journal: CPU, memory, GPU.

Names are those under which MLflow shows system metrics: system/... .
"""

import _thread
import os
import shutil
import subprocess
import threading
import time
from types import TracebackType

import psutil

from prefdag.provenance.journal import Journal

FIRST, LONGEST = 5.0, 60.0  # seconds between two samples: at first, and of a job of hours
_ASKED = {
    "utilization.gpu": "gpu_utilization_percentage",
    "memory.used": "gpu_memory_usage_megabytes",
    "power.draw": "gpu_power_usage_watts",
}


class ResourceMonitor:
    """Samples while a `with` block runs; the pause grows with the job, so that a day of it is 1,500 samples.

    A job that ends within `first` seconds leaves none: its end tells its peak memory.
    """

    def __init__(self, journal: Journal, first: float = FIRST) -> None:
        self.journal, self.first = journal, first
        self._over, self._writing = threading.Event(), threading.Lock()

    def __enter__(self) -> None:
        # Not threading.Thread: its start waits for a sign of the new thread, which gives none where memory is refused.
        _thread.start_new_thread(self._sample, ())

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._writing:  # the journal's last line is the job's end
            self._over.set()

    def _sample(self) -> None:
        try:
            process, began, number = psutil.Process(), time.monotonic(), 0
            process.cpu_percent()  # the first answer is of no interval
            while not self._over.wait(min(LONGEST, max(self.first, (time.monotonic() - began) / 60))):
                with self._writing:
                    if self._over.is_set():
                        return
                    self.journal.system(number, take_sample(process))
                number += 1
        except (OSError, MemoryError):  # a full disk, no memory: told by what the job itself does
            return


def take_sample(process: psutil.Process) -> dict[str, float]:
    """CPU time of the job since it was last asked (percent, 100 is one core), memory (MB) of it and of the machine."""
    memory = psutil.virtual_memory()
    mega = 1e6
    values = {
        "cpu_utilization_percentage": process.cpu_percent(),
        "process_memory_usage_megabytes": process.memory_info().rss / mega,
        "system_memory_usage_megabytes": memory.used / mega,
        "system_memory_usage_percentage": memory.percent,
        **_gpu(),
    }
    return {f"system/{name}": float(value) for name, value in values.items()}


def _gpu() -> dict[str, float]:
    """Of the device that the job leases, by NVIDIA's own tool; nothing where there is none."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "" or not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            [*command, f"--id={device or 0}"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return read_gpu(answer)


def read_gpu(answer: str) -> dict[str, float]:
    """The values of an answer of nvidia-smi; of several devices the first's, and none for "[N/A]"."""
    told = zip(_ASKED.values(), answer.partition("\n")[0].split(","), strict=False)
    return {name: float(value) for name, value in told if value.strip().replace(".", "", 1).isdigit()}
