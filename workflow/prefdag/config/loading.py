"""Read the YAML of suites, merge mappings key by key, and add the defaults that follow from other sections."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from prefdag.errors import Mistakes, UserError
from prefdag.mistakes import explain, models_in
from prefdag.schema import Section

# Keys of a suite that may state a path.
PATH_KEYS = frozenset(
    ("extends", "lock", "source", "tokenizer", "train", "validation", "test", "labelled", "ood", "file")
    + ("adapter", "template", "prompt", "people", "method")
)


class WholeSuite(Section):
    """A suite of any kind."""

    def disagreements(self, *, rows_are_whole: bool) -> list[str]:
        """Return a sentence for whatever its sections and its rows need of one another and do not have.

        Args:
            rows_are_whole: whether every row is there; one with a mistake of its own is not.
        """
        return []


SuiteType = TypeVar("SuiteType", bound=WholeSuite)
MOST_VALUES = 100_000
# Sections that every suite has, stated or not, with the suite's seed. An empty one has its defaults.
ALWAYS = ("prepare", "sft", "reference", "preference", "generate", "score")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: no such file, no YAML (with line and column), a duplicate key, of which YAML would keep the last, or
            aliases that expand without end.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            values = yaml.load(stream, Loader=_StrictLoader)
    except FileNotFoundError:
        hint = "" if path.suffix in (".yaml", ".yml") else "; a target of Snakemake's comes before --configfile"
        raise UserError(f"{path}: no such suite file{hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the YAML file of a suite") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{path}: {_where(error)}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, dates and numbers that are none
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        stated = "an empty file" if values is None else "a list" if isinstance(values, list) else f"{values!r:.60}"
        raise UserError(f"{path}: expected sections such as `name: mine` and `model: ...`, got {stated}")
    _check_size(values, path)
    return values


def _where(error: yaml.MarkedYAMLError) -> str:
    """Say at which line YAML stopped, and what to look at."""
    mark, problem = error.problem_mark or error.context_mark, error.problem or error.context or "an error"
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    hint = ""
    if "\\t" in problem:
        hint = "; indent with spaces, not with tabs"
    elif "mapping values" in problem or "block" in problem or "expected <document start>" in problem:
        hint = "; check the indentation of this line and of the one above"
    return f"{place}not valid YAML: {problem}{hint}"


def _check_size(values: Any, path: Path) -> None:
    """Raise `UserError` if aliases make a file endless: each is counted as often as it is used."""
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise UserError(f"{path}: holds more than {MOST_VALUES:,} values; an alias (`*name`) repeats itself")
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise UserError(f"{path}: expected text as a key, got {key!r}; put it in quotes")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def check_no_home(values: Any, where: str, inside: str = "") -> None:
    """Raise `UserError` if a path begins with `~`: no shell expands it, and its home is this machine's alone."""
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        name = f"{inside}.{key}" if inside else str(key)
        if key in PATH_KEYS and isinstance(value, str) and value.startswith("~"):
            raise UserError(f"{where}: {name}: `~` is not expanded, got {value!r}; write the path without it")
        if isinstance(value, Mapping | list):
            check_no_home(value, where, name)


class _StrictLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"duplicate key {key!r} in the mapping of line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `above` over `below`: mappings key by key; other values are replaced."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a suite's keys with the sections that are not stated, and keys whose default follows from other sections.

    Args:
        values: the keys as stated, not validated yet; what has the wrong type is left for validation.
    """
    filled = {**values, **{name: {} for name in ALWAYS if values.get(name) is None}}
    stated = values.get("data")
    data: dict[str, Any] = stated if isinstance(stated, dict) else {}
    score, prepare = filled["score"], filled["prepare"]
    if isinstance(score, dict):
        filled["score"] = score = {"reward": _reward_of(filled, data), **score}
        if score["reward"] == "trained":
            filled.setdefault("reward", {})
    if isinstance(prepare, dict):
        world = {"adapter": "world", "template": "continuation"} if data.get("source") == "world" else {}
        filled["prepare"] = {**world, **prepare}
    return filled


def _reward_of(values: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return what measures answers: the classifier of the suite, the world's ground truth, or a reward model."""
    if values.get("classifier"):
        return "classifier"
    return "vader" if data.get("source") == "world" else "trained"


def share_defaults(values: dict[str, Any], kind: type[Section]) -> dict[str, Any]:
    """Give the suite's seed and threads to every section that has such a key and does not state its own."""
    shared: dict[str, Any] = {key: values[key] for key in ("seed", "threads") if key in values}
    for stage, section in kind.model_fields.items():
        if stage in values and isinstance(values[stage], dict):
            fields = {name for model in models_in(section.annotation) for name in model.model_fields}
            values[stage] = {**{key: value for key, value in shared.items() if key in fields}, **values[stage]}
    return shared


def checked_suite(kind: type[SuiteType], values: dict[str, Any], where: str, mistakes: Mistakes) -> SuiteType:
    """Validate a suite's sections. Raises `UserError` with all mistakes, those of the rows included."""
    # Rows with mistakes are missing from the runs, so what the whole suite says of its runs does not hold.
    rows_are_whole = not mistakes.sentences
    try:
        suite = kind.model_validate(values)
    except ValidationError as error:
        mistakes.add(explain(error.errors(), kind, where))
        suite = _parsed_part(kind, values, {str(one["loc"][0]) for one in error.errors() if one["loc"]})
    for sentence in suite.disagreements(rows_are_whole=rows_are_whole):
        mistakes.add(f"{where}: {sentence}")
    mistakes.check()
    return suite


class Unparsed:
    """Take the place of a section with a mistake of its own: of what reads it, `Mistakes.attempt` says nothing."""

    def __getattr__(self, name: str) -> Any:
        raise UserError("")

    def __bool__(self) -> bool:
        raise UserError("")

    def __iter__(self) -> Iterator[Any]:
        raise UserError("")


def _parsed_part(kind: type[SuiteType], values: Mapping[str, Any], failed: set[str]) -> SuiteType:
    """Return a suite with `Unparsed` in place of the sections that failed, to compare the others with one another."""
    parsed: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name in failed:
            parsed[name] = Unparsed()
        elif name in values:
            annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            parsed[name] = TypeAdapter(annotation).validate_python(values[name])
    return cast(SuiteType, kind.model_construct(**parsed))


def with_extended(values: dict[str, Any], stated: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge a suite over the one that it extends, and over that one's, and so on.

    Args:
        values: the suite's YAML.
        stated: the file of each section.

    Returns:
        The merged suite and the file of each of its sections.

    Raises:
        UserError: a file that cannot be read, or that extends itself.
    """
    values, read = dict(values), set[Path]()
    while extended := values.pop("extends", None):
        origin = stated.pop("extends")
        check_no_home({"extends": extended}, origin)
        path = Path(origin).parent / str(extended)
        if path.resolve() in read:
            raise UserError(f"{origin}: extends: {extended} is extended already; a suite cannot extend itself")
        read.add(path.resolve())
        below = read_yaml(path)
        values, stated = merge(below, values), {**dict.fromkeys(below, str(path)), **stated}
    return values, stated
