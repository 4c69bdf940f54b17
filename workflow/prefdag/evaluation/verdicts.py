"""Read verdict files: AlpacaEval's annotations, judged summaries, and this project's verdicts.csv.

A file of several models or annotators has a rate for each, never one over all of them.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prefdag.errors import UserError
from prefdag.evaluation.judge.run import Pair
from prefdag.evaluation.win_rates import JudgedPairs
from prefdag.schema import parse_json

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
    columns = dict.fromkeys(key for row in rows for key in row).keys()
    readers = {"preference": _alpaca_eval, "shuffled_index": _judged_summaries, "verdict": _project_verdicts}
    partners = {"preference": "preference", "shuffled_index": "preferred", "verdict": "prompt_id"}
    for column, read in readers.items():
        if {column, partners[column]} <= columns:
            return [_one(path, who, part, read) for who, part in _parts(path, rows).items()]
    raise UserError(f"{path}: no column holds a verdict; expected {FORMS}, got {', '.join(map(str, columns))}")


def read_judged_pairs(path: Path) -> list[Pair]:
    """Read the pairs of a judged csv that have a verdict. Raises `UserError` for a file of another form."""
    rows, columns = _rows(path), ("query", "postprocessed_response", "reference_responses", "preferred")
    if missing := [name for name in columns if not rows or name not in rows[0]]:
        raise UserError(f"{path}: no column {missing[0]!r}; a file of judged pairs has {', '.join(columns)}")
    pairs = [Pair(row["query"], *(row[name].strip() for name in columns[1:3])) for row in rows if row["preferred"]]
    if not pairs:
        raise UserError(f"{path}: no row has a verdict in `preferred`; expected ours, reference or tie")
    return pairs


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
            header = text.partition("\n")[0]
            mark = max(",;\t", key=header.count)  # spreadsheets of some countries write semicolons
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=mark))
        elif path.suffix == ".jsonl":
            lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            rows = [parse_json(line, f"{path}: line {number}") for number, line in lines]
        elif path.suffix == ".json":
            rows = parse_json(text, str(path))
        else:
            raise UserError(f"{path}: expected a file that ends in .json, .jsonl or .csv")
    except csv.Error as error:
        raise UserError(f"{path}: not a valid csv ({error})") from None
    if isinstance(rows, dict) and rows and all(isinstance(column, dict | list) for column in rows.values()):
        raise UserError(
            f"{path}: has columns ({', '.join(rows)}) where rows are expected; write it with orient='records' of pandas"
        )
    if not isinstance(rows, list) or not all(isinstance(row, dict) and None not in row for row in rows):
        raise UserError(f"{path}: expected rows that are all objects with named columns")
    if any(None in row.values() for row in rows) and path.suffix == ".csv":
        number = next(number for number, row in enumerate(rows, 1) if None in row.values())
        raise UserError(f"{path}: row {number} has fewer fields than the header; is the file cut off?")
    return rows


JUDGES, OURS, THEIRS = ("judge", "annotator"), ("generator_2", "model", "generator"), ("generator_1", "baseline")
Who = tuple[str | None, str | None, str | None]  # judge, model and baseline, where the file names them


def _parts(path: Path, rows: Sequence[Row]) -> dict[Who, list[Row]]:
    """Return the rows of each judge, model and baseline."""
    parts: dict[Who, list[Row]] = {}
    for row in rows:
        judge, ours, theirs = (_named(row, columns) for columns in (JUDGES, OURS, THEIRS))
        parts.setdefault((judge, ours, theirs), []).append(row)
    for place, columns in ((1, OURS), (2, THEIRS)):
        if len({who[place] for who in parts}) > 1 and None in {who[place] for who in parts}:
            raise UserError(
                f"{path}: some rows have no {' or '.join(columns)}; several models in one file are all named"
            )
    return parts


def _named(row: Row, columns: Sequence[str]) -> str | None:
    return next((str(row[name]) for name in columns if row.get(name) not in (None, "")), None)


def _one(path: Path, who: Who, rows: list[Row], read: Callable[[Path, str, Sequence[Row]], JudgedPairs]) -> JudgedPairs:
    judge, ours, theirs = who
    judged = read(path, judge or path.stem, rows)
    return replace(judged, model=ours, against=theirs)


def _alpaca_eval(path: Path, judge: str, rows: Sequence[Row]) -> JudgedPairs:
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
    if {row.get("preference") for row in rows} - {None, ""} in ({0, 1}, {"0", "1"}):
        raise UserError(
            f"{path}: {judge}: every preference is 0 or 1; AlpacaEval writes 1 where output_1 wins, 2 where output_2 "
            "wins and 0 for a tie; rename the column to `verdict`, with `prompt_id`, if 1 is a win"
        )
    return _judged(path, judge, prompts, verdicts, lengths=lengths)


def _judged_summaries(path: Path, judge: str, rows: Sequence[Row]) -> JudgedPairs:
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
    return _judged(path, judge, prompts, verdicts, lengths=lengths, first=first == 1)


def _project_verdicts(path: Path, judge: str, rows: Sequence[Row]) -> JudgedPairs:
    """Read a verdicts.csv: a row per judge and generation, with `shown_first` and `shown_second` for both orders."""
    keys = [(str(row.get("prompt_id")), str(row.get("sample", "0"))) for row in rows]
    for prompt, sample in (key for key, number in Counter(keys).items() if number > 1):
        raise UserError(
            f"{path}: {judge}: several rows of prompt {prompt} sample {sample}; name the columns `judge` and `model` "
            "where they differ, or keep one row"
        )
    both = {"shown_first", "shown_second"} <= rows[0].keys() and any(row["shown_first"] for row in rows)
    orders = (_numbers(path, rows, "shown_first"), _numbers(path, rows, "shown_second")) if both else None
    verdicts = _numbers(path, rows, "verdict")
    return _judged(path, judge, [prompt for prompt, _ in keys], verdicts, keys=keys, orders=orders)


def _numbers(path: Path, rows: Sequence[Row], column: str) -> np.ndarray:
    def number(row: Row) -> float:
        return math.nan if row[column] == "" else float(row[column])

    return _each(path, rows, number, column, "a number from 0 (loss) to 1 (win), or nothing")


def _judged(path: Path, judge: str, prompts: list[str], verdicts: np.ndarray, **about: Any) -> JudgedPairs:
    keys = about.pop("keys", None) or [(prompt, "0") for prompt in prompts]
    judged = JudgedPairs(judge, keys, verdicts, np.array(prompts), **about)
    if len(set(judged.prompts[judged.has_verdict])) < 2:
        raise UserError(
            f"{path}: {judge}: verdicts on fewer than 2 prompts, too few for an interval; judge more prompts"
        )
    return judged


def _each(path: Path, rows: Iterable[Row], read: Callable[[Row], float], column: str, allowed: str) -> np.ndarray:
    """Read a number per row, between 0 and 1 or nan. Raises `UserError` for the first row without one."""
    values = []
    for number, row in enumerate(rows, 1):
        try:
            value = read(row)
            if not (math.isnan(value) or 0 <= value <= 1) or isinstance(row[column], bool):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: row {number}: {column}: expected {allowed}, got {row.get(column)!r}") from None
        values.append(value)
    return np.array(values, dtype=np.float64)
