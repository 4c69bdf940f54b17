"""Share the GPUs of a machine among jobs without a scheduler, by one lock file per GPU.

The lock (flock) is released when the process ends, however it ends. A job waits until enough GPUs are free, and holds
none while it waits. GPUs are those of PREFDAG_GPUS (`0,1`; empty for none), of CUDA_VISIBLE_DEVICES, or what nvidia-smi
lists; a machine without GPUs needs no locks.
"""

import fcntl
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefdag.errors import UserError
from prefdag.provenance.sources import PACKAGE, sources

VARIABLE = "PREFDAG_GPUS"
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 0.5  # between two attempts to lock
logger = logging.getLogger(__name__)


def take_gpus(stage: str, number: int = 1) -> None:
    """Lock GPUs for the rest of this process's life, waiting until they are free, and set CUDA_VISIBLE_DEVICES.

    Call this before torch initialises CUDA. Nothing happens for a stage that runs no model, and without GPUs.

    Args:
        stage: the stage's name.
        number: how many GPUs.

    Raises:
        UserError: if a lock file cannot be opened, or if the machine has GPUs but fewer than `number`.
    """
    if PACKAGE / "models/loading.py" not in sources(stage):
        return
    gpus = devices(os.environ)
    if gpus and len(gpus) < number:
        raise UserError(
            f"{stage}: {number} processes on this machine need a GPU each, and it has {len(gpus)}; lower `processes`"
        )
    if gpus and not _is_scheduled(gpus, number):
        os.environ[VISIBLE] = ",".join(_lock(gpus, number))


def devices(environment: Mapping[str, str]) -> list[str]:
    """Return the machine's GPUs, by index or UUID as in CUDA_VISIBLE_DEVICES."""
    for name in (VARIABLE, VISIBLE):
        if name in environment:
            stated = [device.strip() for device in environment[name].split(",") if device.strip()]
            for device in stated:
                if not re.fullmatch(r"[\w/.-]+", device):
                    raise UserError(f"{name}: expected devices such as 0,1 or their UUIDs, got {environment[name]!r}")
            return [device for device in stated if device not in ("-1", "NoDevFiles")]
    return listed_devices()


def listed_devices() -> list[str]:
    """Return the indices of the GPUs that nvidia-smi lists; none without nvidia-smi."""
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.split() if answer.returncode == 0 else []


def _is_scheduled(gpus: Sequence[str], number: int) -> bool:
    """Return whether Slurm gave this job exactly its GPUs: no other job has them, and numbers may differ by job."""
    return "SLURM_JOB_ID" in os.environ and len(gpus) == number


def _lock(gpus: Sequence[str], number: int) -> list[str]:
    """Wait for the locks of `number` GPUs; return these GPUs. The files stay open until the process ends."""
    has_reported = False
    while True:
        held: dict[str, int] = {}
        for gpu in gpus:
            file = _open_lock(gpu)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held[gpu] = file
            except BlockingIOError:
                os.close(file)
            if len(held) == number:
                return list(held)
        for file in held.values():  # holding some while waiting for others could deadlock two jobs
            os.close(file)
        if not has_reported:
            what = "a GPU" if number == 1 else f"{number} GPUs"
            logger.info("waiting for %s, as %s are taken", what, ", ".join(gpus))
            has_reported = True
        time.sleep(POLL_SECONDS)


def _open_lock(device: str) -> int:
    """Open the lock file of a device read-only, since another user may own it. GPU numbers are per Slurm job."""
    job = os.environ.get("SLURM_JOB_ID")
    name = "-".join(["prefdag-gpu", *([job] if job else []), device.replace("/", "_")])
    memory = Path("/dev/shm")  # local to this machine, which a temporary folder may not be
    path = (memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())) / name
    try:
        while True:
            try:
                return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                pass
            try:
                file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444)
                os.fchmod(file, 0o444)
                return file
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); set {VARIABLE}= to use no GPUs") from None
