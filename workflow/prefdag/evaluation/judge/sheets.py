"""What people say of pairs of answers: a csv that names no policy, the letter of the better one in `preferred`."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from prefdag.errors import UserError
from prefdag.evaluation.judge.run import Pair

COLUMNS = ("prompt", "response_a", "response_b", "preferred")
SAID = {"a": 1.0, "b": 0.0, "tie": 0.5, "": math.nan}


def write_sheet(path: Path, pairs: Sequence[Pair], ours_are_b: Sequence[bool]) -> None:
    """Pairs of answers to be judged. Raises `UserError` for a file that is there: people may have written in it."""
    try:
        with path.open("x", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(COLUMNS)
            for pair, swapped in zip(pairs, ours_are_b, strict=True):
                sides = (pair.theirs, pair.ours) if swapped else (pair.ours, pair.theirs)
                writer.writerow([pair.prompt, *sides, ""])
    except FileExistsError:
        raise UserError(f"{path} is there already and may hold verdicts; name another file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file") from None


def read_sheet(path: Path, pairs: Sequence[Pair]) -> list[float]:
    """For each pair 1 where people preferred ours, 0 theirs, 0.5 neither, nan where the sheet says nothing of it.

    Pairs are found by their texts, in whichever order the sheet has them: a verdict never passes to a new answer.
    Raises `UserError` naming the row of a verdict that cannot be read, or that contradicts an earlier one.
    """
    said: dict[tuple[str, ...], float] = {}
    for number, row in enumerate(_rows(path), 1):
        verdict = SAID.get(row["preferred"].strip().lower())
        if verdict is None:
            raise UserError(f"{path}: row {number}: preferred: expected a, b, tie or nothing, got {row['preferred']!r}")
        prompt, a, b = (_plain(row[name]) for name in COLUMNS[:3])
        if math.isnan(verdict):
            continue
        for key, value in (((prompt, a, b), verdict), ((prompt, b, a), 1 - verdict)):
            if said.setdefault(key, value) != value:
                raise UserError(
                    f"{path}: row {number} says otherwise than an earlier row of the same pair; keep one of them, or "
                    "give each person a sheet of their own"
                )
    return [said.get(tuple(map(_plain, (pair.prompt, pair.ours, pair.theirs))), math.nan) for pair in pairs]


def _plain(text: str) -> str:
    """Spreadsheets end lines in their own way."""
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
