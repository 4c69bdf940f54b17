"""The files of rows that `prepare` makes a dataset of, fetched or sampled, and what to do about too few rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdag.config.prepare import Prepare
from prefdag.data.splits import SPLITS
from prefdag.provenance.manifest import read_manifest

SPLITS_OF = {"comparisons": SPLITS, "ood": ("test",), "evaluated": ("test",)}  # of a dataset; others have no test split
FILE_OF = {"ood": "ood", "evaluated": "train"}  # whose rows are its one split; others have a file for each


@dataclass(frozen=True)
class RowFiles:
    """The files of rows that a dataset is made of, and the adapter that reads them."""

    adapter: str
    folder: Path
    splits: tuple[str, ...]  # of the dataset
    files: dict[str, Path]  # by the split of their rows, in the order in which they are read
    more_samples: str | None = None  # what gives more of them, if they were sampled


def row_files(prepare: Prepare, dataset: str, rows: Path) -> RowFiles:
    """Return the files to read. Sampled pairs and rankings have the columns that the adapter `pairs` reads.

    Args:
        prepare: the suite's section.
        dataset: the dataset.
        rows: manifest of `fetch` or `pairs`.
    """
    source = read_manifest(rows).content
    sampled = source["stage"] == "pairs"
    folder = rows.parent / "rankings" if sampled and dataset == "rankings" else rows.parent
    splits = SPLITS_OF.get(dataset, SPLITS[:2])
    paths = {split: folder / f"{FILE_OF.get(dataset, split)}.jsonl" for split in splits}
    if prepare.leakage == "drop" and dataset not in FILE_OF:
        # A training row is dropped if its prompt is held out, so held-out splits come first, a test file always.
        paths = {split: folder / f"{split}.jsonl" for split in reversed(SPLITS)}
    files = {split: path for split, path in paths.items() if path.is_file()}
    if not sampled:
        return RowFiles(prepare.adapter, folder, splits, files)
    return RowFiles("pairs", folder, splits, files, more_samples(dataset, source["facts"] or {}))


def more_samples(dataset: str, counts: Mapping[str, Any]) -> str:
    """Say why `pairs` may have made few pairs or rankings, and which keys give more.

    Args:
        dataset: `rankings`, which need a different reward for each sample of a prompt, or the pairs.
        counts: by split, what `pairs` counted.
    """
    keys = ("prompts", "unfinished", "ties")
    prompts, unfinished, ties = (sum(split[key] for split in counts.values()) for key in keys)
    samples = "lower" if dataset == "rankings" else "raise"
    return (
        f"these rows are samples of SFT for {prompts} prompts: {unfinished} samples were cut off at "
        f"pairs.max_new_tokens, and {ties} pairs of samples are equal or tie in reward; {samples} pairs.num_samples, "
        "raise pairs.max_prompts or pairs.max_new_tokens, add prompts, or train SFT for longer"
    )
