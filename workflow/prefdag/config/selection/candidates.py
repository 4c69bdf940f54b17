"""Expand the rows of a suite with a section `select` to candidates: a row for each setting of its grid."""

import re
from collections import Counter
from typing import Any

from prefdag.config.objectives import entry_of
from prefdag.config.online.methods import METHODS, PRESETS
from prefdag.config.online.settings import Online
from prefdag.config.runs import Run, expanded, grid_of, is_on_policy
from prefdag.config.sections.preference import Preference
from prefdag.config.sections.run_names import named_once
from prefdag.config.sections.select import Select
from prefdag.errors import Mistakes, UserError
from prefdag.schema import wording

FIXED = ("name", "method", "preset", "seed", "seeds", "online", "pairs", "rounds", "discriminator", "dataset")

Row = dict[str, Any]


def with_candidates(
    select: Select,
    rows: list[Row],
    runs: list[Run],
    sections: tuple[dict[str, Any], dict[str, Any]],
    where: str,
    mistakes: Mistakes,
) -> list[Run]:
    """Return the runs, those of selected rows with their candidates.

    Args:
        select: the suite's section.
        rows: its rows as stated, the grid of `grid:` expanded.
        runs: the runs of these rows.
        sections: `preference` and `online`, which rows override.
        where: the file that error messages name.
        mistakes: receives those of the grids and of the candidates.
    """
    lengths = {run.without_seed: len(run.preference.kept_steps) + 1 for run in runs} if select.early_stopping else {}
    grids = mistakes.attempt(_grids, select, rows, lengths, where) or {}
    selected: dict[str, dict[str, Any]] = {}
    for row in rows:
        if (name := str(row.get("name"))) not in grids:
            continue
        settings = settings_of(grids[name])
        if not mistakes.sentences:  # a section with a mistake has its defaults, and with them no checkpoints
            mistakes.attempt(_check_lengths, name, runs, select, grids[name], where)
        tried = [{**row, **setting, "name": f"{name}-{label}"} for label, setting in settings.items()]
        of_candidates = Mistakes()
        made = {run.name: run for run in expanded(tried, *sections, where, of_candidates)}
        grid_key = f"select.grid{_part_of(select, row, grids[name])}"
        for sentence in of_candidates.sentences:
            mistakes.add(_located(sentence, where, name, settings, grid_key))
        for suffix in [f"-seed{seed}" for seed in row["seeds"]] if "seeds" in row else [""]:
            named = [(made.get(f"{name}-{label}{suffix}"), setting) for label, setting in settings.items()]
            candidates = [one.model_copy(update={"setting": _parsed(one, setting)}) for one, setting in named if one]
            stated = Counter(str(one.setting) for one in candidates)
            if equal := [one.name for one in candidates if stated[str(one.setting)] > 1]:
                mistakes.add(f"{where}: select.grid: {' and '.join(equal)} are one setting; remove one")
            selected[f"{name}{suffix}"] = {"candidates": tuple(candidates), "row": name}
    mistakes.attempt(named_once, [run.name for run in runs] + _names(selected), where)
    return [run.model_copy(update=selected.get(run.name, {})) for run in runs]


def _located(sentence: str, where: str, name: str, settings: dict[str, Row], grid_key: str) -> str:
    """Return a candidate's mistake as one of its grid, or of its row, so that all candidates share the sentence."""
    if f"got '{name}-" in sentence and sentence.startswith(f"{where}: runs.name: "):
        return (
            f"{where}: {grid_key}: candidates of {name} have names of more than 80 characters; use fewer keys at once"
        )
    for label in sorted(settings, key=len, reverse=True):  # the longest first: `beta1` begins `beta1.5` as well
        place = f"{where}: runs.{name}-{label}."
        if sentence.startswith(place):
            rest = sentence.removeprefix(place)
            key = re.split(r"[.:]", rest, maxsplit=1)[0]
            return f"{where}: {grid_key if key in settings[label] else f'runs.{name}'}.{rest}"
    return sentence


def _part_of(select: Select, row: Row, grid: dict[str, list[Any]]) -> str:
    """Return the key of a row's own grid inside `select.grid`, nothing if all rows share one."""
    return next((f".{one}" for one in (str(row.get("name")), _method(row)) if select.grid.get(one) is grid), "")


def _names(selected: dict[str, dict[str, Any]]) -> list[str]:
    return [candidate.name for row in selected.values() for candidate in row["candidates"]]


def _parsed(run: Run, setting: Row) -> Row:
    """Return a candidate's values of the grid as its sections read them: YAML reads 5e-7 as text."""
    read = {**run.preference.model_dump(mode="json"), **run.objective.parameters()}
    return {key: read.get(key, value) for key, value in setting.items()}


def settings_of(grid: dict[str, list[Any]]) -> dict[str, Row]:
    """Return the settings of a grid, by the names that candidates carry."""
    rows = grid_of([{**grid, "name": "x"}])
    return {row["name"].removeprefix("x-"): {key: row[key] for key in grid} for row in rows}


def _grids(select: Select, rows: list[Row], lengths: dict[str, int], where: str) -> dict[str, dict[str, list[Any]]]:
    """Return the grid of each selected row. Raises `UserError` for a grid that is no fair search.

    lengths: of each row with early stopping, the numbers of lengths that its trainings are measured at.
    """
    names, mistakes = {str(row.get("name")): row for row in rows}, Mistakes()
    for name in dict.fromkeys(select.rows or ()):
        if (select.rows or ()).count(name) > 1:
            mistakes.add(f"{where}: select.rows: {name!r} is there twice; remove one")
        if name not in names:
            mistakes.add(f"{where}: select.rows: there is no row {name!r}; the rows are {', '.join(names)}")
    selected = [name for name in dict.fromkeys(select.rows or names) if name in names]
    mistakes.attempt(_check_names, select, names, selected, where)
    grids, unread = {}, dict[str, list[str]]()
    for name in selected if select.grid else ():
        method = _method(names[name])
        grid = select.grid_of(name, method)
        if grid is None:
            row = name if name == method else f"{name} ({method})"
            mistakes.add(f"{where}: select.grid: no grid for the row {row}; add one, or name select.rows")
            continue
        mistakes.attempt(_check_row, name, names[name], grid, lengths.get(name, 1), select, where)
        grids[name] = grid
        known = _keys(names[name], where)
        part = _part_of(select, names[name], grid)
        for key in [key for key in grid if key not in (*known, *FIXED)] if known else ():
            hint = "; ".join(wording().hints(key, known)) or "leave it out, or give each row its own grid"
            unread.setdefault(f"{where}: select.grid{part}.{key}: {{}} not read it; {hint}", []).append(name)
    if unread:
        verb = {True: "does", False: "do"}
        by = {line: f"{', '.join(rows)} {verb[len(rows) == 1]}" for line, rows in unread.items()}
        mistakes.add("\n".join(line.replace("{}", rows, 1) for line, rows in by.items()))
    mistakes.check()
    _check_equal(
        {name: len(settings_of(grid)) for name, grid in grids.items()}, "grid: the sizes of the grids", select, where
    )
    saved = {name: lengths[name] - 1 for name in grids if lengths.get(name, 1) > 1}
    _check_equal(saved, "early_stopping: the numbers of checkpoints", select, where)
    return grids


def _check_equal(sizes: dict[str, int], what: str, select: Select, where: str) -> None:
    """Raise `UserError` if the rows of a search get different numbers of candidates."""
    least, most = min(sizes, key=sizes.__getitem__, default=""), max(sizes, key=sizes.__getitem__, default="")
    if sizes and sizes[least] < sizes[most] and not select.unequal:
        raise UserError(
            f"{where}: select.{what} differ ({most} {sizes[most]}, {least} {sizes[least]}), so the "
            "search would not be fair; give every row as many candidates, or state `unequal: true`"
        )


def _method(row: Row) -> str:
    return str(row.get("preset", row.get("method")))


def _keys(row: Row, where: str) -> list[str]:
    """Return the keys that a row reads and a grid may have; none if its method is unknown, which the row reports."""
    settings = Online if is_on_policy(row) else Preference
    method = PRESETS.get(str(row.get("preset")), row).get("method")
    try:
        entry = METHODS.get(str(method)) or entry_of(method, where, f"runs.{row.get('name')}")
    except UserError:
        return []
    return [key for key in (*entry.model_fields, *settings.model_fields) if key not in FIXED]


def _check_names(select: Select, names: dict[str, Row], selected: list[str], where: str) -> None:
    """Raise `UserError` for a grid by row that no selected row reads."""
    if not select.grid:
        raise UserError(f"{where}: select.grid: has no key; name keys of a row with the values to try")
    if all(isinstance(values, list) for values in select.grid.values()):
        return
    read = {name if name in select.grid else _method(names[name]) for name in selected}
    methods, mistakes = [_method(row) for row in names.values()], Mistakes()
    for name in select.grid:
        if name not in (*names, *methods):
            known = ", ".join(dict.fromkeys([*names, *methods]))
            mistakes.add(f"{where}: select.grid.{name}: there is no row or method of this name; known are {known}")
        elif name not in read:
            mistakes.add(f"{where}: select.grid.{name}: no selected row reads this grid; remove it, or name its row")
    mistakes.check()


def _check_row(name: str, row: Row, grid: dict[str, list[Any]], lengths: int, select: Select, where: str) -> None:
    """Raise `UserError` if a row cannot be selected with a grid. lengths: at which each training is measured."""
    mistakes, place = Mistakes(), f"{where}: select.grid{_part_of(select, row, grid)}"
    for key, values in grid.items():
        if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
            mistakes.add(f"{place}.{key}: expected a list of different values, got {values!r}")
        elif key in FIXED:
            mistakes.add(f"{place}.{key}: a grid is of a row's settings, and this is not one; leave it out")
    size = 1 if mistakes.sentences else len(settings_of(grid)) * lengths
    if select.budget is not None and size > select.budget:
        settings = f" ({size // lengths} settings at {lengths} lengths)" if lengths > 1 else ""
        mistakes.add(f"{place}: {size} candidates{settings}, and the budget is {select.budget}; change one of them")
    if "pairs" in row:
        mistakes.add(f"{where}: runs.{name}: a row with rounds cannot be selected; name the others in select.rows")
    if select.criterion == "held_out_accuracy" and is_on_policy(row):
        mistakes.add(
            f"{where}: select.criterion: {name} is trained on its own answers, so no held-out accuracy is measured; "
            "choose reward_at_kl or win_rate"
        )
    mistakes.check()


def _check_lengths(name: str, runs: list[Run], select: Select, grid: dict[str, list[Any]], where: str) -> None:
    """Raise `UserError` if the steps of a row's checkpoints depend on the choice, or early stopping has none."""
    run = next((one for one in runs if name in (one.name, one.without_seed)), None)  # none if the row has a mistake
    if run is None:
        return
    place, keys = f"{where}: runs.{name}.checkpoints", [key for key in ("max_steps", "checkpoints") if key in grid]
    if keys and select.early_stopping:
        raise UserError(
            f"{where}: select.grid.{keys[0]}: with early_stopping the lengths are those of the checkpoints; leave one "
            "of the two out"
        )
    if keys and run.preference.kept_steps:
        raise UserError(f"{place}: their steps depend on the choice of {keys[0]}; leave one of the two out")
    if select.early_stopping and not run.preference.kept_steps:
        raise UserError(
            f"{place}: early_stopping chooses between checkpoints, and this row saves none; state how many, or leave "
            "early_stopping out"
        )
