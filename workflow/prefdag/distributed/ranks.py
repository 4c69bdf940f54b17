"""Which process of a job this is, from torchrun's variables; torch-free. A job of one process has one rank, 0."""

import os
import signal
import time

PATIENCE = 30.0  # seconds for the first rank to report an error that all ranks have


def is_rank() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    return int(os.environ["RANK"]) if is_rank() else 0


def num_ranks() -> int:
    return int(os.environ["WORLD_SIZE"]) if is_rank() else 1


def is_first() -> bool:
    """Return whether this is rank 0, which prints and writes the journal and the outputs."""
    return rank() == 0


def silence_other_ranks() -> None:
    """Let rank 0 alone report an error that all ranks have: wait here to be stopped by torchrun.

    A rank that is still alive after PATIENCE had an error of its own, and reports it.
    """
    if not is_first():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(PATIENCE)
