"""A loss in a Python file of the user's own: `method: my_losses.py:my_loss`, the path taken from the suite's file.

The file is read here and never run: a plan must not execute what it plans, and Snakemake parses in every cluster job.
From the function's signature come what the loss reads (parameters with the name of an input) and its options (all
others; annotated `float`, `int`, `str`, `bool` or `Literal[...]`, or of the type of their default). A module-level
`my_loss.responses = "one"` or `my_loss.scope = "step"` says what differs from a loss of pairs, a comparison at a time.
The docstring's first line is read as `<paper>: <formula>`. `prefdag.losses.user` runs the function, in its job alone.
"""

import ast
import os
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, create_model

from prefdag.config.objectives.entry import INPUTS, STATED, Objective
from prefdag.errors import UserError
from prefdag.provenance.sources import parse_file, user_sources

TAKEN = ("name", "method", "seeds", "paper", "formula")
KINDS = {"float": float, "int": int, "str": str, "bool": bool}
FORM = re.compile(r"(?!/)([\w./+ -]+\.py):([^\W\d]\w*)")


class UserLoss(Objective):
    """A loss in a Python file of the user's own."""

    @classmethod
    def parse(cls, values: Any, where: str, inside: str = "") -> Self:
        try:
            return super().parse(values, where, inside)
        except UserError as mistake:
            raise UserError(f"{mistake} (an option of {values['method']})") from None

    def user_files(self) -> tuple[Path, ...]:
        return (split_path(self.method)[0],)


def is_user_loss(method: Any) -> bool:
    """Whether a row's method is meant as a file and a function, well written or not."""
    return isinstance(method, str) and (":" in method or ".py" in method)


def relative_path(method: Any, suite: str) -> Any:
    """The method as jobs know it: a path taken from the suite's file becomes one from the working directory.

    Relative, so that neither a config nor a manifest says where the project lies on this machine.
    """
    if not (is_user_loss(method) and FORM.fullmatch(method)):
        return method
    path, name = split_path(method)
    return f"{os.path.relpath(Path(suite).parent / path)}:{name}"


def split_path(method: str) -> tuple[Path, str]:
    """File and function. Raises `UserError` where the method is not of that form."""
    found = FORM.fullmatch(method)
    if found is None:
        raise UserError(
            f"expected <file>.py:<function> with the file's path relative to the suite's "
            f"(letters, digits and . _ + - / or blanks), got {method!r}"
        )
    return Path(found[1]), found[2]


def user_loss(method: str, where: str, inside: str) -> type[UserLoss]:
    """The registry entry that a file of the user's own makes, its path taken from the working directory.

    Raises `UserError`, one sentence, where file, function or signature cannot be used.
    """
    try:
        path, name = split_path(method)
        if not path.is_file():
            raise UserError(f"{path}: no such file; the path of {name}'s file is taken from the suite's")
        user_sources(path)
        return _entry(path, parse_file(path), name)
    except UserError as mistake:
        raise UserError(f"{where}: {inside}.method: {mistake}") from None


def _entry(path: Path, tree: ast.Module, name: str) -> type[UserLoss]:
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        there = ", ".join(functions) or "none"
        raise UserError(f"{path}: no function {name} at its top level; write it or name one that is there ({there})")
    reads, options = set(), dict[str, Any]()
    for argument, default in _parameters(functions[name], f"{path}: {name}"):
        if argument.arg in INPUTS:
            reads.add(argument.arg)
        else:
            options[argument.arg] = _option(argument, default, f"{path}: {name}")
    entry = create_model(name, __base__=UserLoss, **options)
    paper, _, formula = (ast.get_docstring(functions[name]) or "").partition("\n")[0].rpartition(": ")
    stated = _stated(tree, path, name)
    if "state" in reads and stated.get("scope") != "step":
        raise UserError(
            f'{path}: {name} reads `state`, which is carried from step to step; write {name}.scope = "step"'
        )
    for key, value in {**stated, "reads": frozenset(reads), "paper": paper, "formula": formula.rstrip(".")}.items():
        setattr(entry, key, value)
    return entry


def _parameters(function: ast.FunctionDef, place: str) -> list[tuple[ast.arg, ast.expr | None]]:
    """Every parameter after `policy`, with its default."""
    given = function.args
    if given.vararg or given.kwarg:
        raise UserError(f"{place} takes *args or **kwargs; name every input and option, the plan is read off them")
    positional = [*given.posonlyargs, *given.args]
    if not positional or positional[0].arg != "policy":
        first = positional[0].arg if positional else "none"
        raise UserError(f"{place} must take `policy`, the policy's LogProbs, as its first parameter; found {first}")
    if len(given.posonlyargs) > 1:
        raise UserError(f"{place}: inputs and options are passed by name; move the `/` to just behind `policy`")
    defaults = [*([None] * (len(positional) - len(given.defaults))), *given.defaults]
    pairs = [*zip(positional, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return pairs[1:]


def _option(argument: ast.arg, default: ast.expr | None, place: str) -> tuple[Any, Any]:
    """The option as a field: its type and its default. A default must be a literal, as the config states its value."""
    name = argument.arg
    if name in TAKEN or name.startswith(("_", "model_")) or hasattr(UserLoss, name):
        raise UserError(f"{place}: an option cannot be called {name}, the name is taken; choose another")
    try:
        value = ... if default is None else ast.literal_eval(default)
    except ValueError:
        raise UserError(f"{place}: the default of {name} must be written out (a number, text, true or false)") from None
    kind = _annotated(argument.annotation) or (type(value) if type(value) in KINDS.values() else None)
    if kind is None:
        raise UserError(f"{place}: {name} needs a type: annotate it with float, int, str, bool or Literal[...]")
    return kind, Field(value, validate_default=True)


def _annotated(annotation: ast.expr | None) -> Any:
    """The type that an annotation names, None where it is not one of those that a suite can state."""
    match annotation:
        case ast.Name(id=name) if name in KINDS:
            return KINDS[name]
        case ast.BinOp(left=kind, op=ast.BitOr(), right=ast.Constant(value=None)):
            inner = _annotated(kind)
            return inner and inner | None
        case ast.Subscript(value=ast.Name(id="Literal") | ast.Attribute(attr="Literal"), slice=choices):
            try:
                values = ast.literal_eval(choices)
            except ValueError:
                return None
            return Literal.__getitem__(values)  # type: ignore[attr-defined]
    return None


def _stated(tree: ast.Module, path: Path, name: str) -> dict[str, str]:
    """What module-level lines such as `my_loss.scope = "step"` say of the function."""
    stated = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=of), attr=key)], value=value) if of == name:
                choices = STATED.get(key)
                if choices is None:
                    raise UserError(f"{path}: {name}.{key} says nothing here; {' and '.join(STATED)} can be stated")
                if not isinstance(value, ast.Constant) or value.value not in choices:
                    allowed = ", ".join(f'"{choice}"' for choice in choices)
                    raise UserError(f"{path}: {name}.{key}: expected one of {allowed}, got {ast.unparse(value)}")
                stated[key] = str(value.value)
    return stated
