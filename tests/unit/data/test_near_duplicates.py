"""Rows that share a band of their MinHash are candidates; near-duplicates share most of it."""

from pathlib import Path

import numpy as np

from prefdag.data.dedup import PERMUTATIONS, SIGNATURE, DuplicateIndex


def test_a_candidate_must_share_most_of_its_signature(tmp_path: Path) -> None:
    """Three rows with one band in common: the second shares 60 of 64 numbers with the first, the third 16."""
    rows = np.zeros(3, SIGNATURE)
    rows["row"], rows["whole"] = [10, 11, 12], [1, 2, 3]
    rows["bands"] = np.arange(rows["bands"].size).reshape(rows["bands"].shape)
    rows["bands"][:, 0] = 7
    rows["minhash"] = np.arange(PERMUTATIONS)
    rows["minhash"][1, 60:] += 1000
    rows["minhash"][2, 16:] += 1000
    rows.tofile(tmp_path / "signatures")
    assert DuplicateIndex(tmp_path / "signatures").near_duplicates() == [(11, 10)]
