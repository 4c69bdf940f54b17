"""Expand the rows of a suite to runs, by grid and by seed, and check them before any job starts."""

import itertools
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, SerializeAsAny

from prefdag.config.exact import Sweep, entry_of_row
from prefdag.config.objectives import Objective, entry_of, objective
from prefdag.config.online.methods import (
    METHODS,
    PRESETS,
    optimum_of,
    pair_loss,
    pair_settings,
    policy_method,
    settings_of,
)
from prefdag.config.online.settings import Online
from prefdag.config.optimum import Optimum, preference_optimum
from prefdag.config.rounds import Rounds
from prefdag.config.sections.adapter import over_section
from prefdag.config.sections.preference import Preference
from prefdag.config.sections.run_names import named_once
from prefdag.config.user_paths import relative_path
from prefdag.errors import Mistakes, UserError
from prefdag.schema import Section

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
RESERVED = ("base", "sft", "chosen")
OF_SWEEPS = ("flips", "online", "rounds")  # keys of an exact suite's row that its losses do not read
Dataset = Literal["comparisons", "rankings"]


class Run(Section):
    """One preference or on-policy run: one row of the suite, for one seed."""

    name: str
    objective: SerializeAsAny[Objective]
    preference: SerializeAsAny[Preference]
    dataset: Dataset = "comparisons"
    rounds: Rounds | None = None
    # Runs, of a row that `select` chooses. Not typed as such: who walks the sections of a suite would never end.
    candidates: tuple[Any, ...] = Field((), description="of a row that `select` chooses", exclude=True)
    row: str = Field("", description="the row's name without the seed, if `select` chooses", exclude=True)
    setting: dict[str, Any] = Field({}, description="of a candidate, its values of the grid", exclude=True)

    @property
    def online(self) -> Online | None:
        """Return the settings of an on-policy run, None of a preference run."""
        return self.preference if isinstance(self.preference, Online) else None

    @property
    def without_seed(self) -> str:
        """Return the row's name."""
        return self.name.removesuffix(f"-seed{self.preference.seed}")

    @property
    def reported_method(self) -> str:
        """Return the method as the report groups it: one loss of fixed, online and own pairs are three methods."""
        pairs = "online" if self.online and self.online.labels else "own-pairs" if self.rounds else ""
        return f"{pairs} {self.objective.method}".strip()

    @property
    def optimum(self) -> Optimum | None:
        """Return what a run on its own samples converges to, None of a run on the suite's comparisons."""
        if self.rounds:
            return preference_optimum(
                self.objective.method,
                labels=self.rounds.pairs.labels,
                rounds=self.rounds.rounds,
                reference=self.rounds.pairs.reference,
                pairs=self.rounds.pairs.law,
                gold=self.rounds.discriminator.labels if self.rounds.discriminator else None,
            )
        return optimum_of(self.objective, self.online) if self.online else None


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"expected letters, digits and . _ + - (at most 80, no `..`), got {name!r}")
    return name


def rows_of(rows: Any, key: str, where: str) -> list[dict[str, Any]]:
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{where}: {key}: expected a list of rows such as `- {{name: dpo, method: dpo, beta: 0.1}}`")
    return rows


def grid_of(grid: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Expand a grid: each key with a list takes each of its values, which the row's name states."""
    rows = []
    for entry in grid:
        swept = [key for key, value in entry.items() if isinstance(value, list) and key != "seeds"]
        for choice in itertools.product(*(entry[key] for key in swept)):
            chosen = dict(zip(swept, choice, strict=True))
            parts = [_title(entry), *(f"{key}{_named(value)}" for key, value in chosen.items())]
            rows.append({**entry, **chosen, "name": "-".join(parts)})
    return rows


def _named(value: Any) -> str:
    """Return a grid's value as the names of runs state it; of a mapping its keys and values."""
    if isinstance(value, dict):
        return "".join(f"-{key}{_named(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "+".join(map(str, value))
    return str(value).rpartition(":")[2]


def _title(entry: dict[str, Any]) -> str:
    """Return the name of a grid's entry, by default its method."""
    return str(entry.get("name", entry.get("method"))).rpartition(":")[2]


def sweep_of(entry: dict[str, Any], rows: list[dict[str, Any]], where: str) -> Sweep:
    """Make one job of an exact suite: all the rows of one entry."""
    name = _title(entry)
    inside = f"runs.{name}"
    losses = [{key: value for key, value in row.items() if key not in ("name", *OF_SWEEPS)} for row in rows]
    shared = {key: entry[key] for key in OF_SWEEPS if key in entry}
    objectives = [entry_of_row(loss, where, inside) for loss in losses]
    return Sweep.parse({"name": _name_of_row(name, where), "objectives": objectives, **shared}, where, inside)


def rows_located(rows: list[dict[str, Any]], suite: str) -> list[dict[str, Any]]:
    """Make the paths of users' functions relative to the working directory. suite: the file that states the rows."""

    def located(row: dict[str, Any]) -> dict[str, Any]:
        return row | {key: relative_path(row[key], suite) for key in ("method", "reward", "gold") if key in row}

    nested = ("pairs", "online", "discriminator")
    return [located(row) | {key: located(row[key]) for key in nested if isinstance(row.get(key), dict)} for row in rows]


def is_on_policy(row: Mapping[str, Any]) -> bool:
    """Return whether a row learns from its own answers in one job: a policy gradient, or a pair loss with `online`."""
    return row.get("method") in METHODS or "preset" in row or "online" in row


def expanded(
    rows: list[dict[str, Any]], preference: dict[str, Any], online: dict[str, Any], where: str, mistakes: Mistakes
) -> list[Run]:
    """Make a `Run` for each row and seed; rows with a mistake are left out.

    Args:
        rows: the rows of `runs`, and those of the expanded grid.
        preference: the section that rows of losses override.
        online: the section that rows of on-policy methods override.
        where: the file that error messages name.
        mistakes: receives those of the rows.
    """
    runs: list[Run] = []
    names: list[str] = []  # also of rows with a mistake, so that a name which two rows have is reported too
    for number, row in enumerate(rows, 1):
        if row.get("name") in (None, ""):
            example = _title({"method": row.get("method") or "dpo"})
            mistakes.add(f"{where}: runs: row {number}: has no name; state one, such as `name: {example}`")
            continue
        make = (_online_pairs if "online" in row else _online_runs) if is_on_policy(row) else _runs_of_row
        made = mistakes.attempt(make, dict(row), online if is_on_policy(row) else preference, where)
        runs += made or []
        names += _stated_names(row) if made is None else [run.name for run in made]
    mistakes.attempt(named_once, names, where)
    return runs


def _stated_names(row: dict[str, Any]) -> list[str]:
    """Return the names of the runs that a row states, none if it states no name."""
    if row.get("name") is None:
        return []
    if isinstance(seeds := row.get("seeds"), list):
        return [f"{row['name']}-seed{seed}" for seed in dict.fromkeys(map(str, seeds))]
    return [str(row["name"])]


def _name_of_row(name: Any, where: str) -> str:
    try:
        return checked_name(str(name) if name is not None else "")
    except ValueError as error:
        raise UserError(f"{where}: runs.name: {error}") from None


def _runs_of_row(row: dict[str, Any], preference: dict[str, Any], where: str) -> list[Run]:
    (name, inside), mistakes = _place_of_row(row, where), Mistakes()
    seeds = mistakes.attempt(_seeds_of, row, where, inside)
    entry = mistakes.attempt(entry_of, row.get("method"), where, inside)
    options = entry.model_fields if entry else {}
    training = {key: row.pop(key) for key in list(row) if key in Preference.model_fields and key not in options}
    training = over_section(preference, training)
    about: dict[str, Any] = {}
    if "dataset" in row and "dataset" not in options:
        about = {"dataset": mistakes.attempt(_dataset, row.pop("dataset"), where, inside)}
    rounds = {key: row.pop(key) for key in list(row) if key in Rounds.model_fields and key not in options}
    others = ("name", "seeds", "dataset", *Rounds.model_fields, *Preference.model_fields)
    loss: Any = mistakes.attempt(objective, row, where, inside, others) if entry else None
    chosen = _per_seed(training, seeds)
    made = [(seed, mistakes.attempt(Preference.parse, one, where, inside)) for seed, one in chosen]
    if rounds:
        about["rounds"] = mistakes.attempt(Rounds.parse, rounds, where, inside)
    mistakes.check()
    if rounds:
        _check_rounds(about["rounds"], loss, where, inside)
    return _seeded(name, loss, made, **about)


def _online_runs(row: dict[str, Any], online: dict[str, Any], where: str) -> list[Run]:
    name, inside = _place_of_row(row, where)
    mistakes = Mistakes()
    seeds = mistakes.attempt(_seeds_of, row, where, inside)
    if (preset := row.pop("preset", None)) is not None:
        stated, known = row.pop("method", None), PRESETS.get(str(preset))
        if known is None:
            mistakes.add(f"{where}: {inside}.preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
        elif stated not in (None, known["method"]):
            mistakes.add(
                f"{where}: {inside}.method: the preset {preset} is of {known['method']}; remove one of the two"
            )
        row = {**(known or {"method": stated}), **row}
    entry = METHODS.get(str(row["method"]))  # none if the preset is unknown and no method is stated
    options = entry.model_fields if entry else {}
    stated_settings = {key: row.pop(key) for key in list(row) if key in Online.model_fields and key not in options}
    settings = over_section(online, stated_settings)
    method: Any = mistakes.attempt(policy_method, row, where, inside) if entry else None
    if method is None:
        mistakes.attempt(Online.parse, {"samples": 2, **settings}, where, inside)
    chosen = _per_seed(settings, seeds) if method else []
    made = [(seed, mistakes.attempt(settings_of, values, method, where, inside)) for seed, values in chosen]
    mistakes.check()
    return _seeded(name, method, made)


def _per_seed(settings: dict[str, Any], seeds: list[Any] | None) -> list[tuple[Any, dict[str, Any]]]:
    """Return each seed of a row, and its settings with that seed; None for no seed."""
    return [(seed, settings if seed is None else {**settings, "seed": seed}) for seed in seeds or [None]]


def _seeded(name: str, loss: Objective, settings: list[tuple[Any, Preference]], **about: Any) -> list[Run]:
    """Return a run for each seed and its settings; a row without seeds has the seed None."""
    return [
        Run(name=name if seed is None else f"{name}-seed{seed}", objective=loss, preference=one, **about)
        for seed, one in settings
    ]


def _online_pairs(row: dict[str, Any], online: dict[str, Any], where: str) -> list[Run]:
    """Make the runs of a pair loss on pairs that the policy samples as it is trained."""
    name, inside = _place_of_row(row, where)
    stated, mistakes = row.pop("online"), Mistakes()
    if row.get("method") in METHODS or not isinstance(stated, dict):
        raise UserError(
            f"{where}: {inside}.online: expected a mapping such as {{labels: bradley_terry}} next to a pair loss, got "
            f"{stated!r}"
        )
    seeds = mistakes.attempt(_seeds_of, row, where, inside)
    entry = mistakes.attempt(entry_of, row.get("method"), where, inside)
    options = entry.model_fields if entry else {}
    values = stated | {key: row.pop(key) for key in list(row) if key in Online.model_fields and key not in options}
    loss: Any = mistakes.attempt(pair_loss, row, where, inside) if entry else None
    chosen = _per_seed(values, seeds)
    made = [(seed, mistakes.attempt(pair_settings, one, online, where, inside)) for seed, one in chosen]
    mistakes.check()
    return _seeded(name, loss, made)


def _place_of_row(row: dict[str, Any], where: str) -> tuple[str, str]:
    """Take the name out of a row; return it and its place in the suite."""
    name = _name_of_row(row.pop("name", None), where)
    if name.casefold() in RESERVED:
        raise UserError(f"{where}: runs.{name}: this name is reserved; choose another")
    return name, f"runs.{name}"


def _seeds_of(row: dict[str, Any], where: str, inside: str) -> list[Any]:
    """Take the seeds out of a row, [None] if it states none."""
    seeds = row.pop("seeds", [None])
    if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
        raise UserError(f"{where}: {inside}.seeds: expected a list of different whole numbers, got {seeds!r}")
    return seeds


def _check_rounds(rounds: Rounds, loss: Objective, where: str, inside: str) -> None:
    try:
        rounds.check(loss)
    except ValueError as error:
        raise UserError(f"{where}: {inside}.{error}") from None


def _dataset(value: Any, where: str, inside: str) -> Dataset:
    if value not in get_args(Dataset):
        raise UserError(f"{where}: {inside}.dataset: expected one of {', '.join(get_args(Dataset))}, got {value!r}")
    dataset: Dataset = value
    return dataset
