"""Sample the CPU, memory and GPU that a job uses into its journal.

The samples have the names of MLflow's system metrics: system/... .
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

FIRST, LONGEST = 5.0, 60.0  # seconds between two samples: of a new job, and of one that has run for hours
_GPU_QUERY = {
    "utilization.gpu": "gpu_utilization_percentage",
    "memory.used": "gpu_memory_usage_megabytes",
    "power.draw": "gpu_power_usage_watts",
}


class ResourceMonitor:
    """Sample during a `with` block. The pause grows with the job's age: a job of a day has 1,500 samples.

    A job that ends within `first` seconds has no sample; its peak memory is in the journal's last event.
    """

    def __init__(self, journal: Journal, first: float = FIRST) -> None:
        self.journal, self.first = journal, first
        self._over, self._writing = threading.Event(), threading.Lock()

    def __enter__(self) -> None:
        # Not threading.Thread: its start() waits for the new thread for ever if there is no memory to run it.
        _thread.start_new_thread(self._sample, ())

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._writing:  # no sample may follow the job's end in the journal
            self._over.set()

    def _sample(self) -> None:
        try:
            process, began, number = psutil.Process(), time.monotonic(), 0
            process.cpu_percent()  # the first call only starts the interval
            while not self._over.wait(min(LONGEST, max(self.first, (time.monotonic() - began) / 60))):
                with self._writing:
                    if self._over.is_set():
                        return
                    self.journal.system(number, take_sample(process))
                number += 1
        except (OSError, MemoryError):  # a full disk, no memory: the job itself fails and reports it
            return


def take_sample(process: psutil.Process) -> dict[str, float]:
    """Return CPU time since the last sample (percent of one core) and memory (MB) of the job and the machine."""
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
    """Query the job's GPU with nvidia-smi; return no values without a GPU."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "" or not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            [*command, f"--id={device or 0}"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return read_gpu(answer)


def read_gpu(answer: str) -> dict[str, float]:
    """Return the values of nvidia-smi's first device, without those that are "[N/A]"."""
    pairs = zip(_GPU_QUERY.values(), answer.partition("\n")[0].split(","), strict=False)
    return {name: float(value) for name, value in pairs if value.strip().replace(".", "", 1).isdigit()}
