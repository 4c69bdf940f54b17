"""The token store: comparisons as token ids in memory-mapped arrays.

N comparisons of K responses are four or five flat files, opened in milliseconds for any N:

    tokens.npy   int32 [T]        prompt, response 1, ..., response K of each comparison, concatenated
    offsets.npy  int64 [N, K+2]   start of the prompt, start of each response, end of the last one
    rows.npy     int64 [N]        row of the source
    prompts.npy  int64 [N]        equal for equal prompts
    scores.npy   float32 [N, K]   only if the data has scores
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from prefdag.errors import UserError

ARRAYS = {"tokens": np.int32, "offsets": np.int64, "rows": np.int64, "prompts": np.int64, "scores": np.float32}


@dataclass(frozen=True)
class Comparison:
    """One prompt and its K responses, best first, as token ids."""

    prompt: NDArray[np.int32]
    responses: tuple[NDArray[np.int32], ...]


class Indexed(Protocol):
    """A sequence of comparisons to run a model on."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Comparison: ...


class Comparisons(Indexed, Protocol):
    """Comparisons of K responses each with their sources: a store, or a view of one.

    Attributes:
        rows: row of the source, [N].
        prompts: equal for equal prompts, [N].
        scores: [N, K], or None if the data has none.
    """

    @property
    def rows(self) -> NDArray[np.int64]: ...
    @property
    def prompts(self) -> NDArray[np.int64]: ...
    @property
    def scores(self) -> NDArray[np.float32] | None: ...
    @property
    def num_responses(self) -> int: ...
    def lengths(self) -> NDArray[np.int64]: ...
    def response_starts(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Store:
    """An open token store. The arrays are memory maps; data is read when it is used."""

    folder: Path
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    prompts: NDArray[np.int64]
    scores: NDArray[np.float32] | None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store. Raises `UserError` if the folder holds none."""
        try:
            about = json.loads((folder / "store.json").read_text())
            arrays: dict[str, Any] = {
                name: _mapped(folder / f"{name}.npy") for name in ARRAYS if name != "scores" or about["scored"]
            }
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: not a token store ({error}); rerun `prepare`") from None
        return cls(folder=folder, **{"scores": None, **arrays})

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def num_responses(self) -> int:
        """K, the number of responses of each comparison."""
        return self.offsets.shape[1] - 2

    def __getitem__(self, index: int) -> Comparison:
        at = self.offsets[index]
        parts = [self.tokens[begin:end] for begin, end in zip(at[:-1], at[1:], strict=True)]
        return Comparison(prompt=parts[0], responses=tuple(parts[1:]))

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of each comparison, with its prompt counted once, [N]."""
        return self.offsets[:, -1] - self.offsets[:, 0]

    def response_starts(self) -> NDArray[np.int64]:
        """Return where each comparison's response tokens start among all response tokens, [N + 1]."""
        num_tokens = self.offsets[:, -1] - self.offsets[:, 1]
        return np.concatenate([[0], np.cumsum(num_tokens)])


def _mapped(path: Path) -> NDArray[np.generic]:
    # An empty array cannot be mapped.
    return np.load(path) if path.stat().st_size <= 128 else np.load(path, mmap_mode="r")


class StoreWriter:
    """Writes a store row by row in constant memory.

    with StoreWriter(folder, num_responses=2, scored=False) as writer:
        writer.add(prompt_ids, [chosen_ids, rejected_ids], row=0, prompt=0)
    """

    def __init__(self, folder: Path, num_responses: int, scored: bool) -> None:
        assert num_responses >= 1
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.num_responses, self.scored = folder, num_responses, scored
        self._streams = {name: (folder / f"{name}.raw").open("wb") for name in ARRAYS if name != "scores" or scored}
        self.num_tokens = self.num_comparisons = 0

    def add(
        self,
        prompt_ids: list[int],
        responses: list[list[int]],
        *,
        row: int,
        prompt: int,
        scores: list[float] | None = None,
    ) -> None:
        """Append one comparison; every part must hold at least one token."""
        assert len(responses) == self.num_responses and all(responses) and prompt_ids
        assert (scores is not None) == self.scored
        parts = [prompt_ids, *responses]
        ends = self.num_tokens + np.cumsum([len(part) for part in parts])
        self._write("tokens", [token for part in parts for token in part])
        self._write("offsets", [self.num_tokens, *ends])
        self._write("rows", [row])
        self._write("prompts", [prompt])
        if scores is not None:
            self._write("scores", scores)
        self.num_tokens = int(ends[-1])
        self.num_comparisons += 1

    def _write(self, name: str, values: list[int] | list[float]) -> None:
        self._streams[name].write(np.asarray(values, dtype=ARRAYS[name]).tobytes())

    def close(self) -> None:
        """Write the .npy headers and store.json. A folder without store.json is not a token store."""
        shapes = {"offsets": (-1, self.num_responses + 2), "scores": (-1, self.num_responses)}
        for name, stream in self._streams.items():
            stream.close()
            raw = self.folder / f"{name}.raw"
            _with_header(raw, self.folder / f"{name}.npy", ARRAYS[name], shapes.get(name, (-1,)))
            raw.unlink()
        about = {"comparisons": self.num_comparisons, "responses": self.num_responses, "scored": self.scored}
        (self.folder / "store.json").write_text(json.dumps(about, sort_keys=True) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()


def _with_header(raw: Path, target: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Copy raw numbers into a .npy file in blocks of 16 MiB."""
    width = -shape[0] * int(np.prod(shape[1:], dtype=np.int64))
    num = raw.stat().st_size // np.dtype(dtype).itemsize // width
    with raw.open("rb") as source, target.open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(stream, {**header, "shape": (num, *shape[1:])})
        while block := source.read(1 << 24):
            stream.write(block)
