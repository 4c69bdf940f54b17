"""Find prompts that begin a text which a model has read: their answers may be known by heart."""

from bisect import bisect_left
from collections.abc import Iterable


class Beginnings:
    """Texts, to be asked whether one of them begins with a prompt."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._sorted = sorted(texts)

    def __contains__(self, prompt: object) -> bool:
        # In sorted order the texts that begin with the prompt follow it at once.
        place = bisect_left(self._sorted, str(prompt))
        return place < len(self._sorted) and self._sorted[place].startswith(str(prompt))

    def add(self, texts: Iterable[str]) -> None:
        self._sorted = sorted([*self._sorted, *texts])
