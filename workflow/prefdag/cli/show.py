"""Print a suite as resolved: grid and seeds expanded, every key with its value, and which values are defaults."""

import argparse
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic_core import to_jsonable_python

from prefdag.cli.commands import options
from prefdag.config.suite import read_suite
from prefdag.schema import Section

DEFAULT = "  # default"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "suite")


def run(arguments: argparse.Namespace) -> int:
    for line in lines_of(read_suite(arguments.suite)):
        print(line)
    return 0


def lines_of(value: Any) -> Iterator[str]:
    """Yield a section, or a mapping or a list of sections, as lines of YAML.

    Keys that jobs' configs leave out at their defaults are there as well.
    """
    if isinstance(value, Section):
        for name, field in type(value).model_fields.items():
            if not field.exclude:
                inner = getattr(value, name)
                is_default = not field.is_required() and inner == field.get_default(call_default_factory=True)
                yield from _entry(name, inner, DEFAULT if is_default else "")
        if candidates := getattr(value, "candidates", ()):  # of a row that `select` chooses, what is tried
            yield from _entry("candidates", {one.name: one.setting for one in candidates}, "")
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _entry(name, inner, "")
    else:
        for inner in value:
            first, *others = lines_of(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in others)


def _entry(name: str, value: Any, mark: str) -> Iterator[str]:
    if isinstance(value, Section) or _holds_sections(value):
        indent = "" if isinstance(value, tuple) else "  "
        yield f"{name}:"
        yield from (f"{indent}{line}" for line in lines_of(value))
    else:
        plain = to_jsonable_python(value)
        first, *others = yaml.safe_dump({name: plain}, sort_keys=False, width=1_000_000).splitlines()
        yield f"{first}{mark}"
        yield from others


def _holds_sections(value: Any) -> bool:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return any(isinstance(inner, Section) for inner in values)
