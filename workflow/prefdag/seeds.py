"""Named seeds: every random stream has a name, so that no stream shifts another."""

import hashlib

import numpy as np


def named_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed for one purpose, from a suite's seed and the names of the purpose."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: object) -> np.random.Generator:
    """Return NumPy's counter-based generator for one purpose."""
    return np.random.Generator(np.random.Philox(named_seed(seed, *names)))
