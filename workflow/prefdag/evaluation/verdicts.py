"""Read verdict files: AlpacaEval's annotations, judged summaries, and this project's verdicts.csv."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefdag.errors import UserError
from prefdag.evaluation.win_rates import JudgedPairs

Row = Mapping[str, Any]
FORMS = (
    "`preference` (1 to 2, AlpacaEval's annotations), `preferred` with `shuffled_index` (judged summaries), or "
    "`prompt_id`, `sample` and `verdict` (this project's verdicts.csv)"
)


def read_verdicts(path: Path) -> list[JudgedPairs]:
    """Read every judge's verdicts in a .json, .jsonl or .csv file. Raises `UserError` for a file of another form."""
    rows = _rows(path)
    if not rows:
        raise UserError(f"{path}: has no rows; expected one row per pair of answers")
    columns = rows[0].keys()
    if "preference" in columns:
        return _alpaca_eval(path, rows)
    if {"preferred", "shuffled_index"} <= columns:
        return _judged_summaries(path, rows)
    if {"prompt_id", "verdict"} <= columns:
        return _project_verdicts(path, rows)
    raise UserError(f"{path}: no column holds a verdict; expected {FORMS}, got {', '.join(map(str, columns))}")


def _rows(path: Path) -> list[Row]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    rows: Any
    try:
        if path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line]
        elif path.suffix == ".json":
            rows = json.loads(text)
        else:
            raise UserError(f"{path}: expected a file that ends in .json, .jsonl or .csv")
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error.msg} at line {error.lineno})") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a valid csv ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and None not in row for row in rows):
        raise UserError(f"{path}: expected rows that are all objects with named columns")
    if any(None in row.values() for row in rows) and path.suffix == ".csv":
        number = next(index for index, row in enumerate(rows) if None in row.values())
        raise UserError(f"{path}: row {number} has fewer fields than the header; is the file cut off?")
    return rows


def _alpaca_eval(path: Path, rows: Sequence[Row]) -> list[JudgedPairs]:
    """Read `preference`, from 1 (output_1, the baseline) to 2 (output_2, the model); 0 and 1.5 are ties."""

    def verdict(row: Row) -> float:
        if row["preference"] in (None, ""):
            return math.nan
        value = float(row["preference"])
        return 0.5 if value == 0 else value - 1

    verdicts = _each(path, rows, verdict, "preference", "1 to 2, 0 or 1.5 for a tie, or null")
    prompts = [str(row.get("instruction", index)) for index, row in enumerate(rows)]
    lengths = None
    if {"output_1", "output_2"} <= rows[0].keys():
        lengths = tuple(np.array([len(str(row.get(name) or "")) for row in rows]) for name in ("output_2", "output_1"))
    judge = str(rows[0].get("annotator") or path.stem)
    return [_judged(path, judge, prompts, verdicts, lengths=lengths)]


def _judged_summaries(path: Path, rows: Sequence[Row]) -> list[JudgedPairs]:
    """Read `preferred` (ours, reference, or empty) and `shuffled_index` (0 where ours was shown first, else 1)."""
    named = {"ours": 1.0, "reference": 0.0, "tie": 0.5, "": math.nan}
    verdicts = _each(path, rows, lambda row: named[row["preferred"]], "preferred", "ours, reference, tie or nothing")
    places = {"0": 1.0, "0.0": 1.0, "1": 0.0, "1.0": 0.0}
    first = _each(
        path,
        rows,
        lambda row: places[str(row["shuffled_index"])] if row["preferred"] else math.nan,
        "shuffled_index",
        "0 (ours shown first) or 1",
    )
    names = ("postprocessed_response", "reference_responses")
    lengths = None
    if set(names) <= rows[0].keys():
        lengths = tuple(np.array([len(row[name].strip()) for row in rows]) for name in names)
    prompts = [row.get("query", str(index)) for index, row in enumerate(rows)]
    return [_judged(path, path.stem, prompts, verdicts, lengths=lengths, first=first == 1)]


def _project_verdicts(path: Path, rows: Sequence[Row]) -> list[JudgedPairs]:
    """Read a verdicts.csv: a row per judge and generation, with `shown_first` and `shown_second` for both orders."""
    judges = []
    for judge in dict.fromkeys(row.get("judge") or path.stem for row in rows):
        mine = [row for row in rows if (row.get("judge") or path.stem) == judge]
        keys = [(row["prompt_id"], row.get("sample", "0")) for row in mine]
        both = {"shown_first", "shown_second"} <= mine[0].keys() and any(row["shown_first"] for row in mine)
        orders = (_numbers(path, mine, "shown_first"), _numbers(path, mine, "shown_second")) if both else None
        verdicts = _numbers(path, mine, "verdict")
        judges.append(_judged(path, judge, [prompt for prompt, _ in keys], verdicts, keys=keys, orders=orders))
    return judges


def _numbers(path: Path, rows: Sequence[Row], column: str) -> np.ndarray:
    def number(row: Row) -> float:
        return math.nan if row[column] == "" else float(row[column])

    return _each(path, rows, number, column, "a number from 0 (loss) to 1 (win), or nothing")


def _judged(path: Path, judge: str, prompts: list[str], verdicts: np.ndarray, **about: Any) -> JudgedPairs:
    keys = about.pop("keys", None) or [(prompt,) for prompt in prompts]
    judged = JudgedPairs(judge, keys, verdicts, np.array(prompts), **about)
    if len(set(judged.prompts[judged.has_verdict])) < 2:
        raise UserError(
            f"{path}: {judge}: verdicts on fewer than 2 prompts, too few for an interval; judge more prompts"
        )
    return judged


def _each(path: Path, rows: Iterable[Row], read: Callable[[Row], float], column: str, allowed: str) -> np.ndarray:
    """Read a number per row, between 0 and 1 or nan. Raises `UserError` for the first row without one."""
    values = []
    for index, row in enumerate(rows):
        try:
            value = read(row)
            if not (math.isnan(value) or 0 <= value <= 1) or isinstance(row[column], bool):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: row {index}: {column}: expected {allowed}, got {row.get(column)!r}") from None
        values.append(value)
    return np.array(values, dtype=np.float64)
