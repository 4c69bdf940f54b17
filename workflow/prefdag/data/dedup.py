"""Duplicates and near-duplicates: a signature for each row, and the index that compares the signatures of a split.

Signatures are stored in a flat file, 408 bytes a row, and read a column at a time, so memory holds a few numbers per
row. Near-duplicates are found as by Broder (1997): MinHash of the five-word shingles of the whole row, candidates by
bands of it (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4).
"""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

PERMUTATIONS, BANDS = 64, 16  # 16 bands of 4: a pair of similarity 0.8 becomes a candidate with probability 0.9998
SHINGLE = 5  # words
NEAR = 0.8  # estimated share of shingles in common
SIGNATURE = np.dtype(
    [
        ("row", "<i8"),
        ("prompt", "<i8"),  # digest of the prompt
        ("question", "<i8"),  # of the prompt in any format, see `question_of`
        ("whole", "<i8"),  # of prompt and responses in their order
        ("unordered", "<i8"),  # of prompt and responses in any order, without labels
        ("bands", "<u8", BANDS),
        ("minhash", "<u4", PERMUTATIONS),
    ]
)


def digest(*texts: str) -> int:
    """Return 63 bits of sha256; 160,000 different texts have a collision with a probability of 1e-9."""
    joined = b"\0".join(text.encode("utf-8", "surrogatepass") for text in texts)
    return int.from_bytes(hashlib.sha256(joined).digest()[:8], "big") >> 1


def minhash(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return the MinHash of each text, [N, PERMUTATIONS]."""
    rows = [_shingles(text) for text in texts]
    sketches = MinHash.generator(rows, num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    return np.array([sketch.hashvalues for sketch in sketches], np.uint32).reshape(len(texts), PERMUTATIONS)


def _shingles(text: str) -> list[bytes]:
    words = text.encode("utf-8", "surrogatepass").lower().split()
    return list({b" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))})


def bands(hashes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return a number for each band of each MinHash, equal for equal bands, [N, BANDS]."""
    parts = hashes.reshape(len(hashes), BANDS, -1).astype(np.uint64)
    mixed = np.zeros(parts.shape[:2], np.uint64)
    for column in range(parts.shape[2]):
        mixed = (mixed ^ parts[:, :, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


class DuplicateIndex:
    """Finds equal and similar rows of one split in its file of signatures."""

    def __init__(self, path: Path) -> None:
        empty = not path.is_file() or not path.stat().st_size
        self._signatures = np.zeros(0, SIGNATURE) if empty else np.memmap(path, SIGNATURE, mode="r")
        self.rows = np.array(self._signatures["row"])
        self.prompts = np.array(self._signatures["prompt"])
        self.questions = np.array(self._signatures["question"])

    def duplicates(self) -> list[tuple[int, int]]:
        """Return (row, the earlier row that it repeats) for rows with equal prompt and responses."""
        whole = np.array(self._signatures["whole"])
        first = _first_equal(whole)
        return self._row_pairs(np.flatnonzero(first != np.arange(len(first))), first)

    def contradictions(self) -> list[tuple[int, int]]:
        """Return (row, earlier row) with equal texts that disagree on which response is better, or good."""
        whole, unordered = np.array(self._signatures["whole"]), np.array(self._signatures["unordered"])
        first = _first_equal(unordered)
        return self._row_pairs(np.flatnonzero(whole != whole[first]), first)

    def near_duplicates(self) -> list[tuple[int, int]]:
        """Return (row, earlier row) that differ and share about `NEAR` of their shingles or more."""
        whole = np.array(self._signatures["whole"])
        match = np.arange(len(whole))
        for band in range(BANDS):
            first = _first_equal(np.array(self._signatures["bands"][:, band]))
            candidates = np.flatnonzero((first != np.arange(len(first))) & (match == np.arange(len(first))))
            candidates = candidates[whole[candidates] != whole[first[candidates]]]
            for begin in range(0, len(candidates), 4096):
                block = candidates[begin : begin + 4096]
                equal = self._signatures["minhash"][block] == self._signatures["minhash"][first[block]]
                near = block[equal.mean(axis=1) >= NEAR]
                match[near] = first[near]
        return self._row_pairs(np.flatnonzero(match != np.arange(len(match))), match)

    def most_repeated(self) -> tuple[int, int, int]:
        """Return the number of rows that repeat a prompt, the most rows of one prompt, and the first of these."""
        if not len(self.prompts):
            return 0, 0, -1
        _, first, counts = np.unique(self.prompts, return_index=True, return_counts=True)
        most = int(counts.argmax())
        return len(self.prompts) - len(counts), int(counts[most]), int(self.rows[first[most]])

    def _row_pairs(self, at: NDArray[np.int64], first: NDArray[np.int64]) -> list[tuple[int, int]]:
        return [(int(self.rows[index]), int(self.rows[first[index]])) for index in at]


def _first_equal(values: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return for each element the index of the first element equal to it."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse] if len(values) else np.zeros(0, np.int64)
