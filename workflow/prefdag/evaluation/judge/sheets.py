"""Sheets for human judges: a csv of anonymous pairs, with the letter of the better answer in `preferred`."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from prefdag.errors import UserError
from prefdag.evaluation.judge.run import Pair
from prefdag.evaluation.spreadsheets import cell_of, text_of

COLUMNS = ("prompt", "response_a", "response_b", "preferred")
VERDICTS = {"a": 1.0, "b": 0.0, "tie": 0.5, "": math.nan}


def write_sheet(path: Path, pairs: Sequence[Pair], ours_are_b: Sequence[bool]) -> None:
    """Write pairs to be judged. Raises `UserError` where the file exists, since it may hold verdicts."""
    try:
        with path.open("x", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(COLUMNS)
            for pair, swapped in zip(pairs, ours_are_b, strict=True):
                sides = (pair.theirs, pair.ours) if swapped else (pair.ours, pair.theirs)
                writer.writerow([*map(cell_of, (pair.prompt, *sides)), ""])
    except FileExistsError:
        raise UserError(f"{path} exists and may hold verdicts; name another file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file") from None


def read_sheet(path: Path, pairs: Sequence[Pair]) -> list[float]:
    """Return the verdict of each pair: 1 for ours, 0 for theirs, 0.5 for a tie, nan where the sheet has none.

    Pairs are matched by their texts, so a verdict never passes to a new answer.

    Raises:
        UserError: A verdict cannot be read, or contradicts an earlier row.
    """
    verdicts: dict[tuple[str, ...], float] = {}
    for number, row in enumerate(_rows(path), 1):
        verdict = VERDICTS.get(row["preferred"].strip().lower())
        if verdict is None:
            raise UserError(f"{path}: row {number}: preferred: expected a, b, tie or nothing, got {row['preferred']!r}")
        prompt, a, b = (_plain(text_of(row[name])) for name in COLUMNS[:3])
        if math.isnan(verdict):
            continue
        for key, value in (((prompt, a, b), verdict), ((prompt, b, a), 1 - verdict)):
            if verdicts.setdefault(key, value) != value:
                raise UserError(
                    f"{path}: row {number} contradicts an earlier row of the same pair; keep one of them, or "
                    "give each person a separate sheet"
                )
    return [verdicts.get(tuple(map(_plain, (pair.prompt, pair.ours, pair.theirs))), math.nan) for pair in pairs]


def _plain(text: str) -> str:
    """Return a text with plain line ends, which spreadsheets change."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: the sheet cannot be read ({error}); give a csv in UTF-8") from None
    for number, row in enumerate(rows, 1):
        lacking = [name for name in COLUMNS if row.get(name) is None]
        if lacking:
            raise UserError(f"{path}: row {number} has no {lacking[0]}; a sheet has the columns {', '.join(COLUMNS)}")
    return rows
