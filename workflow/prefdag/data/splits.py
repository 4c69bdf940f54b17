"""Hold prompts out of the training rows, by a stated share or as many as their number allows.

A prompt's place, a hash in [0, 1), decides its split, so that equal prompts share one in any order of the rows.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import TextComparison, as_text
from prefdag.errors import UserError

SPLITS = ("train", "validation", "test")
RESAMPLED = 2  # fewest prompts that an interval can resample
FEWEST = 6  # prompts that can be split by default: 3 for train, 1 for validation, 2 for test
SHARE = {"validation": 0.05, "test": 0.1}  # of the prompts
MOST = {"validation": 500, "test": 1000}  # prompts


def place_of(prompt: str, seed: int) -> float:
    """Return the place of a prompt, uniform in [0, 1)."""
    text = f"{seed}/{prompt}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def split_of(prompt: str, seed: int, shares: Mapping[str, float]) -> str:
    """Return the split of a training row's prompt. shares: what validation and test hold out."""
    place = place_of(prompt, seed)
    if place < shares["validation"]:
        return "validation"
    return "test" if place < sum(shares.values()) else "train"


def default_sizes(num_prompts: int, splits: Iterable[str]) -> dict[str, int]:
    """Return how many prompts to hold out for each of `splits` where the suite states no share."""
    fewest = {"validation": 1, "test": RESAMPLED}
    return {split: min(max(fewest[split], round(SHARE[split] * num_prompts)), MOST[split]) for split in splits}


def held_out_shares(
    prepare: Prepare,
    splits: Iterable[str],
    comparisons: Iterable[TextComparison],
    where: str,
    more_samples: str | None = None,
) -> dict[str, float]:
    """Return the interval of places, from 0, that validation and then test hold out: their lengths.

    Args:
        prepare: the suite's section.
        splits: the splits without rows of their own.
        comparisons: the training rows; read only if a share is not stated.
        where: the file of the rows, for the error.
        more_samples: what gives more rows, if they were sampled.

    Raises:
        UserError: there are too few prompts to split.
    """
    stated = {"validation": prepare.validation_fraction, "test": prepare.test_fraction}
    wanted = set(splits)
    shares = {split: (share or 0.0) if split in wanted else 0.0 for split, share in stated.items()}
    open_splits = [split for split in shares if split in wanted and stated[split] is None]
    if not open_splits:
        return shares
    places = np.unique([place_of(as_text(one.prompt), prepare.seed) for one in comparisons])
    fewest = FEWEST if "test" in open_splits else 2
    if not len(places):
        return shares  # the audit says why no row can be used
    if len(places) < fewest:
        raise UserError(
            f"{where}: {len(places)} different prompts, but at least {fewest} are needed to hold some out for "
            f"{' and '.join(open_splits)}; {more_samples or 'add rows'}, or name files of these splits in `data`"
        )
    sizes = default_sizes(len(places), open_splits)
    end, bound = 0, 0.0
    for split in shares:  # validation first: its prompts have the lowest places
        if split in sizes:
            end = min(int(np.searchsorted(places, bound)) + sizes[split], len(places))
            above = places[end] if end < len(places) else 1.0
            shares[split] = float((places[end - 1] + above) / 2) - bound  # between two places: sums are rounded
        bound += shares[split]
    return shares


def check_sizes(
    prepare: Prepare,
    dataset: str,
    files: Mapping[str, Path],
    num_prompts: Mapping[str, int],
    used: Mapping[str, int],
    more_samples: str | None = None,
) -> None:
    """Check that no split that the suite asks for is empty, and that train and test have enough prompts for intervals.

    Args:
        prepare: the suite's section.
        dataset: the dataset; the report resamples the prompts of `comparisons`, `ood` and `evaluated`.
        files: the files of rows by split.
        num_prompts: number of different prompts by split.
        used: number of usable rows by split.
        more_samples: what gives more rows, if they were sampled.

    Raises:
        UserError: a later stage would fail, after all training.
    """
    shares = {"train": None, "validation": prepare.validation_fraction, "test": prepare.test_fraction}
    for split, num in num_prompts.items():
        is_asked_for = split in files or shares[split] != 0  # a share of 0 by hand: for a training without tests
        is_resampled = split != "validation" and dataset in ("comparisons", "ood", "evaluated")
        fewest = (RESAMPLED if is_resampled else 1) if is_asked_for else 0
        if num >= fewest:
            continue
        more_rows = more_samples or "add rows"
        if split in files:
            advice = more_samples or f"add rows to {files[split]}"
        elif shares[split]:
            advice = f"{more_rows}, raise prepare.{split}_fraction (now {shares[split]:g}), or leave it out"
        else:
            advice = f"{more_rows}, or set prepare.{split}_fraction"
        raise UserError(
            f"{split}: the {split} split has {num} prompt{'s' * (num != 1)}, but needs at least {fewest}; usable rows "
            f"are {', '.join(f'{other} {number}' for other, number in used.items())}; {advice}"
        )


class HeldOutPrompts:
    """Prompts by the split that holds them out. Splits must be read from the last, test, to the first."""

    def __init__(self) -> None:
        self._prompts: dict[str, set[int]] = {split: set() for split in SPLITS[1:]}

    def holder(self, split: str, prompt: int) -> str | None:
        """Return the later split that holds the prompt of a row out; if there is none, `split` holds it from now on."""
        later = SPLITS[SPLITS.index(split) + 1 :]
        holder = next((other for other in later if prompt in self._prompts[other]), None)
        if holder is None and split in self._prompts:
            self._prompts[split].add(prompt)
        return holder
