"""The cache of the reference policy's per-token log-probs, and checks that it is the right one.

One cache serves every loss, beta and seed. Its key names everything that the values depend on.
"""

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from prefdag.data.token_store import Comparisons
from prefdag.errors import UserError
from prefdag.models.attention.interface import NAME, lowering
from prefdag.models.logprobs import LogProbs, logprobs
from prefdag.models.merging import CONFIG
from prefdag.models.ops.device import autocast, compute_dtype, to_device
from prefdag.models.packing import Segments, pack
from prefdag.models.repeats import iter_packed
from prefdag.models.route import FASTEST, Route
from prefdag.provenance.manifest import Manifest

VERIFIED_ROWS = 4
OF_WEIGHTS = (".safetensors", CONFIG)  # an adapter's config states the digest of its base
# Nats per token: packing reorders float32 sums; bf16 rounds each hidden state to 3 digits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}


def cache_key(policy: Manifest, comparisons: Manifest, device: torch.device, route: Route = FASTEST) -> dict[str, Any]:
    """Return what cached log-probs depend on: weights, tokens, precision, attention, library versions.

    Args:
        policy: manifest of the reference policy.
        comparisons: manifest of the token stores.
        device: where log-probs are computed.
        route: how the policy is computed.
    """
    files = comparisons.content["files"]
    dtype = compute_dtype(device)
    way = lowering(device, dtype)
    attention = NAME if way == "masked" else f"{NAME} {way}"
    return {
        "weights": {name: e["sha256"] for name, e in policy.content["files"].items() if name.endswith(OF_WEIGHTS)},
        "tokens": {n: e["sha256"] for n, e in files.items() if n.endswith(("/tokens.npy", "/offsets.npy"))},
        "dtype": str(dtype).removeprefix("torch."),
        "attention": attention if route.kind == "segments" else str(route),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }


@torch.no_grad()
def write_cache(model: PreTrainedModel, store: Comparisons, path: Path, tokens_per_batch: int) -> int:
    """Write the log-probs of every response token of a store, in store order, as one float32 array.

    Args:
        model: the reference policy.
        store: the comparisons.
        path: the .npy file.
        tokens_per_batch: budget of a micro-batch.

    Returns:
        The number of response tokens.
    """
    device = next(model.parameters()).device
    starts = store.response_starts()
    values = _allocate(path, int(starts[-1]))
    for ids, segments in iter_packed(store, tokens_per_batch):
        with autocast(device):
            tokens = logprobs(model, segments.to(device)).tokens.float().cpu().numpy()
        at = 0
        for index in ids:
            size = int(starts[index + 1] - starts[index])
            values[starts[index] : starts[index + 1]] = tokens[at : at + size]
            at += size
    if isinstance(values, np.memmap):
        values.flush()
    return int(starts[-1])


def _allocate(path: Path, num: int) -> NDArray[np.float32]:
    """Map a new .npy file of `num` values, with its disk space reserved.

    Writing a mapped page on a full disk kills the process (SIGBUS); reserving the space raises `OSError` instead.
    """
    np.save(path, np.empty(0, np.float32))
    if not num:
        return np.load(path)
    with path.open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": (num,)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.flush()
        os.posix_fallocate(stream.fileno(), stream.tell(), num * np.dtype(np.float32).itemsize)
    return np.lib.format.open_memmap(path, mode="r+")


class ReferenceCache:
    """Memory-mapped log-probs of one split."""

    def __init__(self, path: Path, store: Comparisons) -> None:
        """Open a .npy file. Raises `UserError` if its size does not fit the store."""
        self.path = path
        self.starts = store.response_starts()
        self.values: NDArray[np.float32] = np.load(path, mmap_mode="r")
        if len(self.values) != self.starts[-1]:
            raise UserError(f"{path}: holds {len(self.values)} tokens, the comparisons {self.starts[-1]}; {_REBUILD}")

    def __call__(self, ids: Sequence[int], batch: Segments | LogProbs) -> LogProbs:
        """Return the reference's log-probs of comparisons `ids`, laid out as `batch`: a micro-batch or a whole step."""
        parts = [self.values[self.starts[index] : self.starts[index + 1]] for index in ids]
        tokens = to_device(torch.from_numpy(np.concatenate(parts)), batch.owner.device)
        return LogProbs(tokens, batch.owner, batch.shape)

    @torch.no_grad()
    def verify(self, model: PreTrainedModel, store: Comparisons) -> float:
        """Recompute VERIFIED_ROWS comparisons; return the largest deviation in nats per token.

        Raises:
            UserError: if it is more than packing explains.
        """
        ids = sorted({int(index) for index in np.linspace(0, len(store) - 1, VERIFIED_ROWS)})
        device = next(model.parameters()).device
        segments = pack([store[index] for index in ids]).to(device)
        with autocast(device):
            live = logprobs(model, segments)
        deviation = (live.tokens - self(ids, segments).tokens).abs().max().item()
        if not deviation <= tolerance(device):  # NaN is a deviation too
            raise UserError(f"{self.path}: recomputed log-probs differ by {deviation:.2g} nats per token; {_REBUILD}")
        return deviation


def tolerance(device: torch.device, is_rounded: bool = False) -> float:
    """Return by how many nats per token recomputed log-probs may differ on a device.

    is_rounded: whether the weights are in half precision or less on any device.
    """
    return TOLERANCE["bfloat16" if is_rounded else str(compute_dtype(device)).removeprefix("torch.")]


def check_key(manifest: Manifest, expected: dict[str, Any]) -> None:
    """Raise `UserError` for a cache of other weights, tokens, precision, attention or library versions."""
    stated = manifest.content["facts"]["key"]
    for name, value in expected.items():
        if stated.get(name) != value:
            raise UserError(f"{manifest.path}: this cache was made with other {name}; {_REBUILD}")


_REBUILD = "delete the cache's manifest and rerun `reference`"
