"""scores.csv and generations.jsonl as stages after them read them, and two sets of answers row by row."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefdag.errors import UserError

Key = tuple[int, int]  # prompt_id, sample


@dataclass(frozen=True)
class Scores:
    """The rows of a scores.csv: keys [N], no two alike, and columns of [N] numbers."""

    folder: Path
    keys: list[Key]
    columns: dict[str, np.ndarray]

    def column(self, name: str) -> np.ndarray:
        """Raises `UserError` for a column that is not there; every number is finite."""
        if name not in self.columns:
            raise UserError(
                f"{self.folder / 'scores.csv'}: has no column {name!r}; it has {', '.join(sorted(self.columns))}"
            )
        values = self.columns[name]
        for key, value in zip(self.keys, values, strict=True):
            assert np.isfinite(value), (
                f"{self.folder / 'scores.csv'}: prompt {key[0]} sample {key[1]}: {name} {value} would pass as a tie"
            )
        return values


def read_scores(folder: Path) -> Scores:
    """Raises `UserError` where there is no scores.csv, or one of other rows."""
    path = folder / "scores.csv"
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; score these answers first") from None
    try:
        keys = [(int(row["prompt_id"]), int(row["sample"])) for row in rows]
        names = [name for name in (rows[0] if rows else {}) if name not in ("prompt_id", "sample")]
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: not a table of scores (prompt_id, sample and numbers); delete it and score again"
        ) from None
    assert len(set(keys)) == len(keys), f"{path}: a prompt and sample stand twice"
    return Scores(folder, keys, columns)


def read_answers(folder: Path) -> dict[Key, tuple[str, str]]:
    """Prompt and response of every row of generations.jsonl. Raises `UserError` where there is none."""
    path = folder / "generations.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; generate these answers first") from None
    rows = [json.loads(line) for line in lines if line]
    return {(row["prompt_id"], row["sample"]): (row["prompt"], row["response"]) for row in rows}


def matched(ours: Scores, theirs: Scores, *, more: bool = False) -> list[tuple[int, int]]:
    """Rows of both that answer each other, sorted by prompt and sample: [(row of ours, row of theirs)].

    By prompt and sample; where theirs has one answer a prompt, by prompt. more: theirs may answer further prompts.
    Raises `UserError` for an answer that stands alone.
    """
    places = {key: row for row, key in enumerate(theirs.keys)}
    alone = {prompt: row for row, (prompt, _) in enumerate(theirs.keys)}
    if len(alone) == len(theirs.keys):
        found = [(key, alone.get(key[0])) for key in sorted(ours.keys)]
        lonely = [key for key, row in found if row is None]
        answered = {prompt for prompt, _ in ours.keys}
        lonely += [] if more else [key for key in theirs.keys if key[0] not in answered]
    else:
        found = [(key, places.get(key)) for key in sorted(ours.keys)]
        lonely = sorted(set(ours.keys) ^ set(theirs.keys))
    if lonely:
        prompt, sample = min(lonely)
        raise UserError(
            f"{ours.folder}: prompt {prompt} sample {sample} stands only on one side of the comparison with "
            f"{theirs.folder}; generate both policies with the same prompts and num_samples"
        )
    rows = {key: row for row, key in enumerate(ours.keys)}
    return [(rows[key], row) for key, row in found if row is not None]
