"""Sums of what is measured of comparisons, left on the device until they are asked for."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Summed = dict[str, tuple[float, int]]  # of each metric the sum, and over how many comparisons


class Sums:
    """Metrics summed over the comparisons that have them: a metric's tensor holds one value of each of those.

    Values are fetched from the device when they are asked for, all at once: until then nothing waits for it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        for name, values in metrics.items():
            value = values.detach().sum().double()
            total, num = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (total + value, num + len(values))

    def to_floats(self) -> Summed:
        totals = to_floats([total for total, _ in self._sums.values()])
        return {name: (total, num) for (name, (_, num)), total in zip(self._sums.items(), totals, strict=True)}


def to_floats(values: Sequence[Tensor]) -> list[float]:
    """Numbers that lie on a device, in one transfer."""
    return torch.stack([value.double() for value in values]).tolist() if values else []


def add_sums(parts: Iterable[Summed]) -> Summed:
    """The sums over all comparisons of several."""
    found: Summed = {}
    for part in parts:
        for name, (value, more) in part.items():
            total, num = found.get(name, (0.0, 0))
            found[name] = (total + value, num + more)
    return found


def to_means(sums: Summed) -> dict[str, float]:
    """Per metric the mean over the comparisons that have it; a metric that none has is left out."""
    return {name: total / num for name, (total, num) in sums.items() if num}
