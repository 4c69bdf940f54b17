"""The base of every part of a suite: frozen, without unknown keys, one sentence per mistake.

Suites, stage commands, the reference table and the JSON schema for editors all come from `Section` models.
"""

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefdag.errors import UserError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
LabelSmoothing = Annotated[float, Field(ge=0, le=0.5, description="the fraction of labels taken to be wrong, 0 to 0.5")]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class Truth:
    """A truth value where none is allowed: no type of a key accepts it, while pydantic would take `yes` for 1."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __str__(self) -> str:
        return str(self.value).lower()


def wording() -> ModuleType:
    """Return the module that words mistakes; imported when there is one, so that no stage counts it as its code."""
    return import_module("prefdag.mistakes")


class Section(BaseModel):
    """A frozen part of a suite. Accepts text such as `5e-7` as a number: YAML 1.1 reads it as text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Keys that may differ between two attempts at one job: the second continues from the state that the first saved.
    changeable: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values_for_numbers(cls, values: Any) -> Any:
        """Reject `batch_size: yes` and `seeds: [yes]`, which pydantic would take for 1."""
        if not isinstance(values, dict):
            return values
        checked = dict(values)
        for key in values.keys() & cls.model_fields.keys():
            checked[key] = _with_truths(values[key], {*_types_in(cls.model_fields[key].annotation)})
        return checked

    def user_files(self) -> tuple[Path, ...]:
        """Return the user's files that this section, or one inside it, names; a job counts them as its code."""
        return tuple(path for _, value in self if isinstance(value, Section) for path in value.user_files())

    def stable_part(self) -> dict[str, Any]:
        """Return the section as plain values, without `changeable` keys at any level."""
        plain = self.model_dump(mode="json", exclude=set(self.changeable))
        return plain | {name: value.stable_part() for name, value in self if isinstance(value, Section)}

    def canonical(self) -> str:
        """Return the section as canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def parse(cls, values: Any, where: str, inside: str = "") -> Self:
        """Validate values.

        Args:
            values: the section's keys.
            where: the file that error messages name.
            inside: the keys that contain this section, such as `runs.dpo`.

        Raises:
            UserError: one sentence for each mistake, a line each.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(wording().explain(error.errors(), cls, where, inside)) from None

    @classmethod
    def parse_json(cls, text: str, where: str) -> Self:
        """Validate JSON text, such as a stage's `--config`."""
        return cls.parse(parse_json(text, where), where)


def _types_in(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of; for a literal, the types of its values."""
    if get_origin(annotation) is Literal:
        yield from map(type, get_args(annotation))
    elif parts := get_args(annotation):
        for part in parts:
            yield from _types_in(part)
    else:
        yield annotation


def _with_truths(value: Any, types: set[Any]) -> Any:
    """Return the value of a key of these types with each `Truth` that they do not accept: the value or an item of it.

    The items of a list or mapping are checked if it holds numbers. A section in it checks its own keys.
    """
    if bool in types:
        return value
    if isinstance(value, bool):
        return Truth(value)
    has_section = any(isinstance(one, type) and issubclass(one, Section) for one in types)
    if has_section or Any in types or not types & {int, float}:
        return value
    if isinstance(value, dict):
        return {key: _with_truths(item, types) for key, item in value.items()}
    return [_with_truths(item, types) for item in value] if isinstance(value, list | tuple) else value


def read_json(path: Path) -> Any:
    """Read a JSON file that a user names. Raises `UserError` if it cannot be read or is not valid."""
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def parse_json(text: str | bytes, where: str, remedy: str = "correct it") -> Any:
    """Parse JSON that a user wrote.

    Args:
        text: one JSON value.
        where: file and place that an error names.
        remedy: what to do about it.

    Raises:
        UserError: it is not JSON, not UTF-8, nested too deeply, has a number of too many digits, or a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; convert the file") from None
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:  # also a key that is there twice, and Python's limit on the digits of a number
        reason = str(error).partition(";")[0]
    raise UserError(f"{where}: not valid JSON ({reason}); {remedy}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises `ValueError` for a key that is there twice, of which JSON would keep the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return values


class Compute(Section):
    """The seed and the threads of a stage that samples or computes.

    The number of threads changes the order of sums, so the suite states it, not the machine.
    """

    seed: Seed = 0
    threads: Count = 1
