"""What a training reports: sums of metrics, step records, and the curves.csv and journal made of them."""

import csv
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from prefdag.distributed.ranks import is_first
from prefdag.provenance.journal import Journal

SECONDS_BETWEEN_LINES = 10.0
MetricSums = dict[str, tuple[float, int]]  # metric -> (sum, number of comparisons that have the metric)


@dataclass(frozen=True)
class Step:
    """The record of one optimizer step.

    number: from 1. metrics: means over the step's comparisons. state: the loss's adaptive numbers after the step.
    """

    number: int
    loss: float
    learning_rate: float
    grad_norm: float
    num_comparisons: int
    num_tokens: int
    metrics: dict[str, float]
    state: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Return everything measured in one flat dict, without the step's number."""
        record = asdict(self)
        metrics, state = record.pop("metrics"), record.pop("state")
        del record["number"]
        return {**record, **metrics, **{f"state_{name}": value for name, value in state.items()}}


class Sums:
    """Sums of metrics over the comparisons that have them.

    The sums stay on the device, so that adding to them does not synchronise with a GPU.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the metrics of some comparisons: name -> [number of comparisons that have it]."""
        for name, values in metrics.items():
            value = values.detach().sum().double()
            total, num = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (total + value, num + len(values))

    def to_floats(self) -> MetricSums:
        """Fetch all sums from the device in one transfer."""
        totals = to_floats([total for total, _ in self._sums.values()])
        return {name: (total, num) for (name, (_, num)), total in zip(self._sums.items(), totals, strict=True)}


def to_floats(values: Sequence[Tensor]) -> list[float]:
    """Fetch scalar tensors [] from their device in one transfer."""
    return torch.stack([value.double() for value in values]).tolist() if values else []


def add_sums(parts: Iterable[MetricSums]) -> MetricSums:
    """Add the sums of several sets of comparisons, in their order."""
    sums: MetricSums = {}
    for part in parts:
        for name, (value, more) in part.items():
            total, num = sums.get(name, (0.0, 0))
            sums[name] = (total + value, num + more)
    return sums


def to_means(sums: MetricSums) -> dict[str, float]:
    """Divide each sum by its number of comparisons; leave out metrics that no comparison has."""
    return {name: total / num for name, (total, num) in sums.items() if num}


def time_left(step: int, total: int, first: tuple[int, float] | None, now: float) -> str:
    """Return `, 3.5 min left` at the mean speed since an earlier step; nothing at the end or without such a step.

    Args:
        step, total: the last step that was taken, and the number of steps.
        first: an earlier step and the time of its end, in seconds.
        now: the time of the same clock.
    """
    if first is None or not first[0] < step < total:
        return ""
    seconds = (total - step) * (now - first[1]) / (step - first[0])
    if seconds < 60:
        return f", {seconds:.0f} s left"
    return f", {seconds / 60:.1f} min left" if seconds < 3600 else f", {seconds / 3600:.1f} h left"


def record_steps(steps: Iterable[Step], total: int, journal: Journal, path: Path, title: str) -> Step:
    """Run a training to its end, writing each step to the journal and, at the end, all of them to a CSV file.

    Args:
        steps: the training, as `prefdag.training.loop.train` yields it.
        total: its number of steps, for the progress line on stderr.
        journal: receives every step's values.
        path: the CSV file, one line per step, with nothing in it that varies between equal runs.
        title: what to call the training in the progress line.

    Returns:
        The last step.
    """
    lines: list[dict[str, float]] = []
    last, printed_at = None, time.monotonic()
    first: tuple[int, float] | None = (
        None  # the first step of this attempt and when it ended: a resumed one begins later
    )
    for step in steps:
        values = step.values()
        lines.append({"step": step.number, **values})
        journal.metrics(step.number, values)
        if is_first() and (time.monotonic() - printed_at > SECONDS_BETWEEN_LINES or step.number in (1, total)):
            left = time_left(step.number, total, first, time.monotonic())
            print(f"{title}: step {step.number}/{total}, loss {step.loss:.4f}{left}", file=sys.stderr, flush=True)
            printed_at = time.monotonic()
        first = first or (step.number, time.monotonic())
        last = step
    assert last is not None, "a training has at least one step"
    write_rows(lines, path)
    return last


def write_rows(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a CSV file with a column for each name in any row: not every step has every metric."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns))
        writer.writeheader()
        writer.writerows(rows)
