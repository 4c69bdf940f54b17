"""What is remembered of each row to find its likes: digests, and a MinHash signature in bands.

Traits lie in a flat file, 400 bytes a row, and are looked at a column at a time, so that memory holds a few numbers a
row whatever the rows hold. Near-duplicates are Broder's (1997): MinHash of the five-word shingles of the whole row,
candidates by bands of it (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4).
"""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

PERMUTATIONS, BANDS = 64, 16  # 16 bands of 4: a pair of likeness 0.8 becomes a candidate with probability 0.9998
SHINGLE = 5  # words
NEAR = 0.8  # estimated share of shingles in common
SIGNATURE = np.dtype(
    [
        ("row", "<i8"),
        ("prompt", "<i8"),  # digest of the prompt
        ("whole", "<i8"),  # of prompt and responses in their order
        ("unordered", "<i8"),  # of prompt and responses whatever their order, labels left out
        ("bands", "<u8", BANDS),
        ("signature", "<u4", PERMUTATIONS),
    ]
)


def digest(*texts: str) -> int:
    """63 bits of sha256: two of 160,000 different texts share theirs with a probability of 1e-9."""
    joined = b"\0".join(text.encode("utf-8", "surrogatepass") for text in texts)
    return int.from_bytes(hashlib.sha256(joined).digest()[:8], "big") >> 1


def minhash(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures: [N, PERMUTATIONS]."""
    rows = [_shingles(text) for text in texts]
    found = MinHash.generator(rows, num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    return np.array([sketch.hashvalues for sketch in found], np.uint32).reshape(len(texts), PERMUTATIONS)


def _shingles(text: str) -> list[bytes]:
    words = text.encode("utf-8", "surrogatepass").lower().split()
    return list({b" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))})


def bands(signature: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """A number for each band of each signature, equal for equal bands: [N, BANDS]."""
    parts = signature.reshape(len(signature), BANDS, -1).astype(np.uint64)
    mixed = np.zeros(parts.shape[:2], np.uint64)
    for column in range(parts.shape[2]):
        mixed = (mixed ^ parts[:, :, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


class DuplicateIndex:
    """The rows of one split that are alike, from its traits file."""

    def __init__(self, path: Path) -> None:
        empty = not path.is_file() or not path.stat().st_size
        self._traits = np.zeros(0, SIGNATURE) if empty else np.memmap(path, SIGNATURE, mode="r")
        self.rows = np.array(self._traits["row"])
        self.prompts = np.array(self._traits["prompt"])

    def duplicates(self) -> list[tuple[int, int]]:
        """(row, the earlier row that it repeats) of rows whose prompt and responses are all equal."""
        whole = np.array(self._traits["whole"])
        first = _first_of_its_like(whole)
        return self._named(np.flatnonzero(first != np.arange(len(first))), first)

    def contradictions(self) -> list[tuple[int, int]]:
        """(row, an earlier row) that have prompt and responses in common and disagree on which is better, or good."""
        whole, unordered = np.array(self._traits["whole"]), np.array(self._traits["unordered"])
        first = _first_of_its_like(unordered)
        return self._named(np.flatnonzero(whole != whole[first]), first)

    def near_duplicates(self) -> list[tuple[int, int]]:
        """(row, an earlier row) that are not equal and share about `NEAR` of their shingles or more."""
        whole = np.array(self._traits["whole"])
        likened = np.arange(len(whole))
        for band in range(BANDS):
            first = _first_of_its_like(np.array(self._traits["bands"][:, band]))
            waiting = np.flatnonzero((first != np.arange(len(first))) & (likened == np.arange(len(first))))
            waiting = waiting[whole[waiting] != whole[first[waiting]]]
            for begin in range(0, len(waiting), 4096):
                some = waiting[begin : begin + 4096]
                equal = self._traits["signature"][some] == self._traits["signature"][first[some]]
                near = some[equal.mean(axis=1) >= NEAR]
                likened[near] = first[near]
        return self._named(np.flatnonzero(likened != np.arange(len(likened))), likened)

    def most_repeated(self) -> tuple[int, int, int]:
        """Rows whose prompt has come before; the most rows of one prompt; and the first of those."""
        if not len(self.prompts):
            return 0, 0, -1
        _, first, counts = np.unique(self.prompts, return_index=True, return_counts=True)
        most = int(counts.argmax())
        return len(self.prompts) - len(counts), int(counts[most]), int(self.rows[first[most]])

    def _named(self, at: NDArray[np.int64], first: NDArray[np.int64]) -> list[tuple[int, int]]:
        return [(int(self.rows[index]), int(self.rows[first[index]])) for index in at]


def _first_of_its_like(values: NDArray[np.generic]) -> NDArray[np.int64]:
    """For each element, the index of the first that equals it."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse] if len(values) else np.zeros(0, np.int64)
