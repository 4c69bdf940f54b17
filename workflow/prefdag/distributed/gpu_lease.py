"""GPUs for each job of a machine with several, without a scheduler: a job locks a file that stands for each device.

The lock is the process's own (flock), so it ends with the process however that ends. A job that finds too few devices
free waits, and holds none meanwhile. Devices are those of PREFDAG_GPUS (`0,1`; empty for none), of
CUDA_VISIBLE_DEVICES, or what nvidia-smi lists; where there are none, jobs share the CPUs as ever.
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
PATIENCE = 0.5  # seconds between two looks at devices that are all taken
logger = logging.getLogger(__name__)


def take_gpus(stage: str, number: int = 1) -> None:
    """Leave this process `number` GPUs for the rest of its life, if its stage runs a model; wait until they are free.

    To be called before torch looks for devices. Raises `UserError` for a device that cannot be locked, and where there
    are fewer than asked for, but some.
    """
    if PACKAGE / "models/loading.py" not in sources(stage):
        return
    found = devices(os.environ)
    if found and len(found) < number:
        raise UserError(f"{stage}: {number} processes on this machine ask for a GPU each, and it has {len(found)}")
    if found and not _is_scheduled(found, number):
        os.environ[VISIBLE] = ",".join(_locked(found, number))


def devices(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that there are to share, by index or UUID, as CUDA_VISIBLE_DEVICES has them."""
    for name in (VARIABLE, VISIBLE):
        if name in environment:
            stated = [device.strip() for device in environment[name].split(",") if device.strip()]
            for device in stated:
                if not re.fullmatch(r"[\w/.-]+", device):
                    raise UserError(f"{name}: expected devices such as 0,1 or their UUIDs, got {environment[name]!r}")
            return [device for device in stated if device not in ("-1", "NoDevFiles")]
    try:
        ask = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.split() if answer.returncode == 0 else []


def _is_scheduled(found: Sequence[str], number: int) -> bool:
    """Whether Slurm has given this job just its devices, which are nobody else's (and have others' numbers, maybe)."""
    return "SLURM_JOB_ID" in os.environ and len(found) == number


def _locked(found: Sequence[str], number: int) -> list[str]:
    """The devices whose locks this process now holds, and never lets go: `number` of them, or none."""
    told = False
    while True:
        held: dict[str, int] = {}
        for device in found:
            file = _opened(device)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held[device] = file
            except BlockingIOError:
                os.close(file)
            if len(held) == number:
                return list(held)
        for file in held.values():
            os.close(file)
        if not told:
            what = "a GPU" if number == 1 else f"{number} GPUs"
            logger.info("waiting for %s, as %s are taken", what, ", ".join(found))
            told = True
        time.sleep(PATIENCE)


def _opened(device: str) -> int:
    """The file of a device, perhaps another user's: it is only ever read. A Slurm job has numbers of its own."""
    job = os.environ.get("SLURM_JOB_ID")
    name = "-".join(["prefdag-gpu", *([job] if job else []), device.replace("/", "_")])
    memory = Path("/dev/shm")  # this machine's alone, which a folder for temporary files may not be
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
        raise UserError(f"{path}: cannot be opened ({error.strerror}); say {VARIABLE}= to share no GPUs") from None
