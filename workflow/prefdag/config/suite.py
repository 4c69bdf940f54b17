"""A suite: one experiment, one YAML file, checked whole before any job starts."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from prefdag.config.adapters import RANKED, SCORED, is_own
from prefdag.config.benchmark import Benchmark
from prefdag.config.data import Data
from prefdag.config.expected import Expected
from prefdag.config.generate import Generate
from prefdag.config.judge import Judge
from prefdag.config.model import Model
from prefdag.config.objectives import Objective, entry_of, objective
from prefdag.config.objectives.own import located
from prefdag.config.pairs import Pairs
from prefdag.config.preference import Preference
from prefdag.config.prepare import Prepare
from prefdag.config.prepare import located as files_located
from prefdag.config.pretrain import Pretrain
from prefdag.config.reference import Reference
from prefdag.config.report import Report
from prefdag.config.reward import Reward
from prefdag.config.score import Score
from prefdag.config.section import Count, Section, Seed, explain
from prefdag.config.sft import SFT
from prefdag.config.size import Size
from prefdag.errors import UserError
from prefdag.locks import lock_path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
RESERVED = ("base", "sft")
Dataset = Literal["comparisons", "rankings"]


class Run(Section):
    """One preference run: one row of the suite, for one seed."""

    name: str
    objective: SerializeAsAny[Objective]
    preference: Preference
    dataset: Dataset = "comparisons"


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
    benchmark: Benchmark = Benchmark()
    expected: tuple[Expected, ...] = Field((), description="published results, shown beside measured ones")
    size: Size | None = None
    lock: str = Field("", description="where the Hub's commits are kept; default: <name>.lock.json beside the suite")
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
        for name in self.score.implicit:
            self._check_implicit(name)
        for run in self.runs:
            if mistake := self._lacking(run):
                raise ValueError(f"runs.{run.name}.{mistake}")
        return self

    def _lacking(self, run: Run) -> str | None:
        """What the data of a run is known to lack before it is made."""
        method, entry = run.objective.method, run.objective
        if run.dataset == "rankings" and entry.responses == "two":
            return f"dataset: {method} takes two responses, a ranking has more; leave `dataset` out"
        if run.dataset == "rankings" and (adapter := self._adapter_outside(RANKED)):
            return (
                f"dataset: rows of the adapter `{adapter}` hold two responses; sample rankings by the section `pairs`, "
                f"or give rows of more responses to one of the adapters {', '.join(RANKED)}"
            )
        if "scores" in entry.reads and (adapter := self._adapter_outside(SCORED)):
            return (
                f"method: {method} reads scores, and rows of the adapter `{adapter}` have none; sample and score "
                f"responses by the section `pairs`, or give rows with scores to one of the adapters {', '.join(SCORED)}"
            )
        return None

    def _adapter_outside(self, known: tuple[str, ...]) -> str | None:
        """An adapter of the suite's comparisons that is neither among `known` nor the user's own, if there is one."""
        if self.pairs is not None:
            return None
        stated = [source.adapter or self.prepare.adapter for source in self.data.sources] or [self.prepare.adapter]
        return next((adapter for adapter in stated if adapter not in known and not is_own(adapter)), None)

    def _check_implicit(self, name: str) -> None:
        """beta times a log-ratio to the reference needs a beta and a reference."""
        found = [run for run in self.runs if run.name == name]
        known = ", ".join(run.name for run in self.runs)
        if not found:
            raise ValueError(f"score.implicit: there is no run {name!r}; the runs are {known}")
        objective = found[0].objective
        beta = objective.parameters().get("beta")
        if "reference" not in objective.reads or "state" in objective.reads or not isinstance(beta, float):
            raise ValueError(
                f"score.implicit: {name} ({objective.method}) has no implicit reward; its loss must read "
                "the reference and have one beta"
            )

    def run(self, name: str) -> Run:
        return next(run for run in self.runs if run.name == name)


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"expected letters, digits and . _ + - (at most 80, no `..`), got {name!r}")
    return name


def read_suite(paths: list[str]) -> Suite:
    """Read one suite file, with further files merged over it key by key, as Snakemake's --configfile does."""
    values, stated = dict[str, Any](), dict[str, str]()
    for path in paths:
        read = read_yaml(Path(path))
        values, stated = merged(values, read), {**stated, **dict.fromkeys(read, path)}
    return resolve(values, paths[-1], stated)


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


def resolve(values: Mapping[str, Any], where: str, stated: Mapping[str, str] | None = None) -> Suite:
    """Validate a suite and expand its rows. `where` names the file in every mistake's sentence.

    stated: which file states a section, where several were merged; paths in it are taken from that file.
    """
    values, stated = dict(values), {**dict.fromkeys(values, where), **(stated or {})}
    if extended := values.pop("extends", None):
        path = Path(stated["extends"]).parent / str(extended)
        below = read_yaml(path)
        values, stated = merged(below, values), {**dict.fromkeys(below, str(path)), **stated}
    shared = {key: values[key] for key in ("seed", "threads") if key in values}
    for stage, section in Suite.model_fields.items():
        if stage in values and isinstance(values[stage], dict):
            fields = _fields_of(section.annotation)
            values[stage] = {**{key: value for key, value in shared.items() if key in fields}, **values[stage]}
    if "prepare" in values:
        values["prepare"] = files_located(values["prepare"], stated["prepare"])
    rows = [
        *_located(_rows(values.pop("runs", None), "runs", where), stated.get("runs", where)),
        *_located(_grid(values.pop("grid", None), where), stated.get("grid", where)),
    ]
    preference = values.get("preference") or {}
    Preference.parse(preference, where, "preference")
    runs = _expanded(rows, preference, where)
    lock = lock_path(stated.get("lock", where), str(values.pop("lock", None) or f"{values.get('name')}.lock.json"))
    try:
        return Suite.model_validate({**values, "lock": lock, "runs": runs})
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
            title = str(entry.get("name", entry.get("method"))).rpartition(":")[2]
            parts = [title, *(f"{key}{str(value).rpartition(':')[2]}" for key, value in chosen.items())]
            rows.append({**entry, **chosen, "name": "-".join(parts)})
    return rows


def _located(rows: list[dict[str, Any]], suite: str) -> list[dict[str, Any]]:
    """The rows with the files of the user's own losses found from the suite file that states them."""
    return [{**row, "method": located(row.get("method"), suite)} for row in rows]


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
    own = entry_of(row.get("method"), where, inside).model_fields
    training = {key: row.pop(key) for key in list(row) if key in Preference.model_fields and key not in own}
    about = (
        {"dataset": _dataset(row.pop("dataset"), where, inside)} if "dataset" in row and "dataset" not in own else {}
    )
    loss = objective(row, where, inside)
    runs = []
    for seed in seeds:
        chosen = {**preference, **training, **({} if seed is None else {"seed": seed})}
        suffix = "" if seed is None else f"-seed{seed}"
        settings = Preference.parse(chosen, where, inside)
        runs.append(Run(name=f"{name}{suffix}", objective=loss, preference=settings, **about))
    return runs


def _dataset(given: Any, where: str, inside: str) -> Dataset:
    if given not in get_args(Dataset):
        raise UserError(f"{where}: {inside}.dataset: expected one of {', '.join(get_args(Dataset))}, got {given!r}")
    found: Dataset = given
    return found
