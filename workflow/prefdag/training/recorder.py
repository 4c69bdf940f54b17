"""The reader of a training that every stage uses: curves.csv, the journal, and a progress line now and then."""

import csv
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from prefdag.distributed.ranks import is_first
from prefdag.provenance.journal import Journal
from prefdag.training.loop import Step

SECONDS_BETWEEN_LINES = 10.0


def record_steps(steps: Iterable[Step], total: int, journal: Journal, path: Path, title: str) -> Step:
    """Read a training to its end; returns its last step.

    curves.csv has a line per optimizer step and nothing that varies between equal runs.
    """
    lines: list[dict[str, float]] = []
    last, said = None, time.monotonic()
    for step in steps:
        values = step.values()
        lines.append({"step": step.number, **values})
        journal.metrics(step.number, values)
        if is_first() and (time.monotonic() - said > SECONDS_BETWEEN_LINES or step.number in (1, total)):
            print(f"{title}: step {step.number}/{total}, loss {step.loss:.4f}", file=sys.stderr, flush=True)
            said = time.monotonic()
        last = step
    assert last is not None, "a training has at least one step"
    columns = dict.fromkeys(name for line in lines for name in line)  # a step need not have every metric
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns))
        writer.writeheader()
        writer.writerows(lines)
    return last
