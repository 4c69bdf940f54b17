"""The base of every part of a suite: frozen, without unknown keys, one sentence per mistake.

Suites, stage commands, the reference table and the JSON schema for editors all come from `Section` models.
"""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefdag.errors import UserError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
LabelSmoothing = Annotated[float, Field(ge=0, le=0.5, description="the fraction of labels taken to be wrong, 0 to 0.5")]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A frozen part of a suite. Accepts text such as `5e-7` as a number: YAML 1.1 reads it as text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # Keys that may differ between two attempts at one job: the second continues from the state that the first saved.
    changeable: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values_for_numbers(cls, values: Any) -> Any:
        """Reject `batch_size: yes`, which pydantic would take for 1."""
        for key, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(key)
            if isinstance(value, bool) and field is not None and "bool" not in str(field.annotation):
                raise ValueError(f"{key}: expected {_kind(field.annotation)}, got {str(value).lower()}")
        return values

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
            UserError: for the first mistake.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(explain(error, where, inside)) from None

    @classmethod
    def parse_json(cls, text: str, where: str) -> Self:
        """Validate JSON text, such as a stage's `--config`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not valid JSON ({error.msg} at character {error.pos})") from None
        return cls.parse(values, where)


class Compute(Section):
    """The seed and the threads of a stage that samples or computes.

    The number of threads changes the order of sums, so the suite states it, not the machine.
    """

    seed: Seed = 0
    threads: Count = 1


def _kind(annotation: Any) -> str:
    return {"int": "a whole number", "float": "a number", "str": "text"}.get(
        getattr(annotation, "__name__", ""), "a number"
    )


def explain(error: ValidationError, where: str, inside: str = "") -> str:
    """Return the first mistake of a validation as one sentence: where, key, what is allowed, what was stated."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in (*filter(None, [inside]), *first["loc"]))
    place = f"{where}: {key}" if key else where
    context = first.get("ctx", {})
    value = json.dumps(first["input"], default=str)
    match first["type"]:
        case "extra_forbidden":
            return f"{place}: unknown key; remove it or correct its spelling"
        case "missing":
            return f"{place}: missing; this key has no default and must be stated"
        case "greater_than":
            return f"{place}: expected a number above {context['gt']:g}, got {value}"
        case "greater_than_equal":
            return f"{place}: expected a number of at least {context['ge']:g}, got {value}"
        case "less_than":
            return f"{place}: expected a number below {context['lt']:g}, got {value}"
        case "less_than_equal":
            return f"{place}: expected a number of at most {context['le']:g}, got {value}"
        case "literal_error" | "enum":
            return f"{place}: expected one of {context['expected']}, got {value}"
        case "int_parsing" | "int_type" | "int_from_float":
            return f"{place}: expected a whole number, got {value}"
        case "float_parsing" | "float_type" | "finite_number":
            return f"{place}: expected a finite number, got {value}"
        case "string_type":
            return f"{place}: expected text, got {value}"
        case "value_error":
            return f"{place}: {context['error']}"
        case _:
            return f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {value}"
