"""Which process of a job this is, as torchrun says; torch-free. A job of one process is its own first rank."""

import os
import signal
import time

PATIENCE = 30.0  # seconds in which the first rank has met a mistake that every rank meets


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    return int(os.environ["RANK"]) if is_rank() else 0


def num_ranks() -> int:
    return int(os.environ["WORLD_SIZE"]) if is_rank() else 1


def is_first() -> bool:
    """Whether this process keeps the journal, prints, and writes what the job makes; the others only compute."""
    return rank() == 0


def silence_other_ranks() -> None:
    """What stops every rank is told once: torchrun ends the others when the first has ended, and they wait for it.

    A rank that is still there afterwards met what the first did not, and speaks for itself.
    """
    if not is_first():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(PATIENCE)
