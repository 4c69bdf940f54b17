"""A suite: one experiment, one YAML file, checked whole before any job starts."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import SerializeAsAny, ValidationError, field_validator, model_validator

from prefdag.config.data import Data
from prefdag.config.generate import Generate
from prefdag.config.judge import Judge
from prefdag.config.model import Model
from prefdag.config.objectives import OBJECTIVES, Objective, objective
from prefdag.config.pairs import Pairs
from prefdag.config.preference import Preference
from prefdag.config.prepare import Prepare, located
from prefdag.config.pretrain import Pretrain
from prefdag.config.reference import Reference
from prefdag.config.report import Report
from prefdag.config.reward import Reward
from prefdag.config.score import Score
from prefdag.config.section import Count, Section, Seed, explain
from prefdag.config.sft import SFT
from prefdag.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
RESERVED = ("base", "sft")


class Run(Section):
    """One preference run: one row of the suite, for one seed."""

    name: str
    objective: SerializeAsAny[Objective]
    preference: Preference


class Suite(Section):
    """A suite as resolved: defaults filled in, the grid and the seeds expanded."""

    name: str
    seed: Seed = 0
    threads: Count = 1
    model: Model
    data: Data
    prepare: Prepare
    pretrain: Pretrain | None = None
    sft: SFT
    pairs: Pairs | None = None
    reward: Reward | None = None
    reference: Reference
    preference: Preference
    generate: Generate
    score: Score
    judge: Judge = Judge()
    report: Report = Report()
    runs: tuple[Run, ...]

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return _checked_name(name)

    @model_validator(mode="after")
    def _sections_agree(self) -> "Suite":
        if self.model.from_scratch and self.pretrain is None:
            raise ValueError("pretrain is missing: a model from scratch needs it")
        if self.score.reward == "trained" and self.reward is None:
            raise ValueError("score.reward is `trained`, so the section `reward` must be there to train it")
        if self.pairs is None and self.data.source == "world":
            raise ValueError("pairs is missing: the embedded world holds no comparisons, they are sampled")
        return self

    def run(self, name: str) -> Run:
        return next(run for run in self.runs if run.name == name)


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"expected letters, digits and . _ + - (at most 80, no `..`), got {name!r}")
    return name


def read_suite(paths: list[str]) -> Suite:
    """Read one suite file, with further files merged over it key by key, as Snakemake's --configfile does."""
    values: dict[str, Any] = {}
    for path in paths:
        values = merged(values, read_yaml(Path(path)))
    return resolve(values, paths[-1])


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; a key written twice is a mistake and not the last one's luck."""
    try:
        with path.open(encoding="utf-8") as stream:
            values = yaml.load(stream, Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such suite file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return values


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands twice in the mapping of line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mappings key by key, everything else replaced whole."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result


def resolve(values: Mapping[str, Any], where: str) -> Suite:
    """Validate a suite and expand its rows. `where` names the file in every mistake's sentence."""
    values = dict(values)
    if extended := values.pop("extends", None):
        values = merged(read_yaml(Path(where).parent / str(extended)), values)
    shared = {key: values[key] for key in ("seed", "threads") if key in values}
    for stage, section in Suite.model_fields.items():
        if stage in values and isinstance(values[stage], dict):
            fields = _fields_of(section.annotation)
            values[stage] = {**{key: value for key, value in shared.items() if key in fields}, **values[stage]}
    if "prepare" in values:
        values["prepare"] = located(values["prepare"], where)
    rows = [*_rows(values.pop("runs", None), "runs", where), *_grid(values.pop("grid", None), where)]
    preference = values.get("preference") or {}
    Preference.parse(preference, where, "preference")
    runs = _expanded(rows, preference, where)
    try:
        return Suite.model_validate({**values, "runs": runs})
    except ValidationError as error:
        raise UserError(explain(error, where)) from None


def _fields_of(annotation: Any) -> frozenset[str]:
    """Field names of a section, or of the section in `Section | None`."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, Section):
            return frozenset(kind.model_fields)
    return frozenset()


def _rows(rows: Any, key: str, where: str) -> list[dict[str, Any]]:
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{where}: {key}: expected a list of rows such as `- {{name: dpo, method: dpo, beta: 0.1}}`")
    return rows


def _grid(grid: Any, where: str) -> list[dict[str, Any]]:
    """Rows of a grid: every key that holds a list takes each of its values; the name says which."""
    rows = []
    for entry in _rows(grid, "grid", where):
        swept = [key for key, value in entry.items() if isinstance(value, list) and key != "seeds"]
        for choice in itertools.product(*(entry[key] for key in swept)):
            chosen = dict(zip(swept, choice, strict=True))
            parts = [str(entry.get("name", entry.get("method"))), *(f"{key}{value}" for key, value in chosen.items())]
            rows.append({**entry, **chosen, "name": "-".join(parts)})
    return rows


def _expanded(rows: list[dict[str, Any]], preference: dict[str, Any], where: str) -> list[Run]:
    """One `Run` for each row and seed."""
    runs: list[Run] = []
    for row in rows:
        runs += _runs_of_row(dict(row), preference, where)
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: runs.{name}: this name stands twice; give each row a name of its own")
    return runs


def _runs_of_row(row: dict[str, Any], preference: dict[str, Any], where: str) -> list[Run]:
    name = row.pop("name", None)
    try:
        _checked_name(str(name) if name is not None else "")
    except ValueError as error:
        raise UserError(f"{where}: runs.name: {error}") from None
    inside = f"runs.{name}"
    if name in RESERVED:
        raise UserError(f"{where}: {inside}: this name is taken by a policy before alignment; choose another")
    seeds = row.pop("seeds", [None])
    if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
        raise UserError(f"{where}: {inside}.seeds: expected a list of different whole numbers, got {seeds!r}")
    own = OBJECTIVES[row["method"]].model_fields if row.get("method") in OBJECTIVES else {}
    training = {key: row.pop(key) for key in list(row) if key in Preference.model_fields and key not in own}
    loss = objective(row, where, inside)
    runs = []
    for seed in seeds:
        chosen = {**preference, **training, **({} if seed is None else {"seed": seed})}
        suffix = "" if seed is None else f"-seed{seed}"
        runs.append(Run(name=f"{name}{suffix}", objective=loss, preference=Preference.parse(chosen, where, inside)))
    return runs
