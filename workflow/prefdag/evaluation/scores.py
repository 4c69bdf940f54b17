"""Read scores.csv and generations.jsonl, and match the rows of two sets of answers."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefdag.errors import UserError

Key = tuple[int, int]  # prompt_id, sample


@dataclass(frozen=True)
class Scores:
    """The rows of a scores.csv: unique keys [N], and columns of [N] numbers."""

    folder: Path
    keys: list[Key]
    columns: dict[str, np.ndarray]

    def column(self, name: str) -> np.ndarray:
        """Return a column of finite numbers. Raises `UserError` where it is missing."""
        if name not in self.columns:
            raise UserError(
                f"{self.folder / 'scores.csv'}: has no column {name!r}; it has {', '.join(sorted(self.columns))}"
            )
        values = self.columns[name]
        for key, value in zip(self.keys, values, strict=True):
            assert np.isfinite(value), (
                f"{self.folder / 'scores.csv'}: prompt {key[0]} sample {key[1]}: {name} {value} would count as a tie"
            )
        return values


def read_scores(folder: Path) -> Scores:
    """Read a folder's scores.csv. Raises `UserError` where it is missing or is not a table of scores."""
    path = folder / "scores.csv"
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
        if "prompt_id" not in (reader.fieldnames or ()):
            raise KeyError
        keys = [(int(row["prompt_id"]), int(row["sample"])) for row in rows]
        names = [name for name in (rows[0] if rows else {}) if name not in ("prompt_id", "sample")]
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; score these answers first") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(
            f"{path}: not a table of scores (prompt_id, sample and numbers); delete it and score again"
        ) from None
    assert len(set(keys)) == len(keys), f"{path}: duplicate prompt and sample"
    return Scores(folder, keys, columns)


def read_answers(folder: Path) -> dict[Key, tuple[str, str]]:
    """Return prompt and response of each row of generations.jsonl. Raises `UserError` if it is missing or damaged."""
    path = folder / "generations.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return {(row["prompt_id"], row["sample"]): (row["prompt"], row["response"]) for row in rows}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; generate these answers first") from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{path}: not the answers of a policy, a line each; delete it and generate again") from None


def match_rows(ours: Scores, theirs: Scores, *, more: bool = False) -> list[tuple[int, int]]:
    """Match the rows of two sets of answers by prompt and sample, or by prompt where theirs has one answer per prompt.

    Args:
        ours: The scores whose rows are all matched.
        theirs: The scores to match them with.
        more: Whether theirs may answer more prompts than ours.

    Returns:
        (row of ours, row of theirs), sorted by prompt and sample.

    Raises:
        UserError: An answer has no counterpart.
    """
    places = {key: row for row, key in enumerate(theirs.keys)}
    by_prompt = {prompt: row for row, (prompt, _) in enumerate(theirs.keys)}
    if len(by_prompt) == len(theirs.keys):
        pairs = [(key, by_prompt.get(key[0])) for key in sorted(ours.keys)]
        unmatched = [key for key, row in pairs if row is None]
        answered = {prompt for prompt, _ in ours.keys}
        unmatched += [] if more else [key for key in theirs.keys if key[0] not in answered]
    else:
        pairs = [(key, places.get(key)) for key in sorted(ours.keys)]
        unmatched = sorted(set(ours.keys) ^ set(theirs.keys))
    if unmatched:
        prompt, sample = min(unmatched)
        raise UserError(
            f"{ours.folder}: prompt {prompt} sample {sample} is on only one side of the comparison with "
            f"{theirs.folder}; generate both policies with the same prompts and num_samples"
        )
    rows = {key: row for row, key in enumerate(ours.keys)}
    return [(rows[key], row) for key, row in pairs if row is not None]
