"""Keep held-out prompts apart from what pre-training and SFT read."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from prefdag.config.prepare import HeldOut
from prefdag.data.adapters.records import Prompt, as_text
from prefdag.data.adapters.registry import has_prompts, iter_documents
from prefdag.data.beginnings import Beginnings
from prefdag.data.splits import split_of


def shares_of(held_out: HeldOut, folder: Path) -> dict[str, float]:
    """Return the share of train's prompts that each split without prompts of its own holds out."""
    stated = {"validation": held_out.validation, "test": held_out.test}
    return {split: 0.0 if has_prompts(folder, split) else share for split, share in stated.items()}


def iter_read(adapter: str, folder: Path, held_out: HeldOut) -> Iterator[str]:
    """Iterate over the documents of the fetched training rows whose prompt is not held out."""
    shares = shares_of(held_out, folder)
    return iter_documents(adapter, folder, "train", lambda prompt: split_of(prompt, held_out.seed, shares) == "train")


class UnseenPrompts:
    """The prompts to sample responses to.

    Attributes:
        num_skipped: prompts of the latest split that were skipped.
    """

    def __init__(self, adapter: str, folder: Path, held_out: HeldOut) -> None:
        self.num_skipped = 0
        self._selected: list[str] = []
        self._seed, self._shares = held_out.seed, shares_of(held_out, folder)
        self._seen = Beginnings(iter_read(adapter, folder, held_out))

    def select(self, prompts: Iterable[Prompt], split: str) -> Iterator[Prompt]:
        """Yield the prompts of a split of the fetched rows, but no held-out one that begins a text which is read.

        Those of a split with a file of its own begin no prompt of the splits before either.
        """
        self._seen.add(self._selected)
        self.num_skipped, self._selected = 0, []
        for prompt in prompts:
            text = as_text(prompt)
            is_held_out = split != "train" or split_of(text, self._seed, self._shares) != "train"
            if is_held_out and text in self._seen:
                self.num_skipped += 1
                continue
            self._selected.append(text)
            yield prompt
