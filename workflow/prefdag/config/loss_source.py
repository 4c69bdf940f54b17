"""Read what a loss function states, from its source text and without running it.

A plan must not execute what it plans, must not import torch, and Snakemake parses in every cluster job. The losses of
the package and a user's own (`method: my_losses.py:my_loss`) are read in the same way:

- a parameter with the name of one of `INPUTS` is an input, unless it is annotated `Literal[...]`;
- every other parameter after `policy` is an option, with its annotation as the type and its default;
- the decorator `@loss(...)` of `prefdag.losses.decorator` states the rest;
- the first paragraph of the docstring describes the loss.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from prefdag.errors import UserError
from prefdag.provenance.sources import parse_file
from prefdag.schema import Count, Fraction, LabelSmoothing, NonNegative, Positive, Section

Responses = Literal["one", "two", "many"]
Scope = Literal["comparison", "step"]
# What a loss may read in addition to the policy's log-probs; `prefdag.losses.registry` describes each.
INPUTS = ("reference", "scores", "labels", "mismatched", "collision", "divergence", "noise", "state")
FACTS = ("title", "paper", "formula", "first_step", "responses", "scope", "step_with", "read_with", "conventions")
CHOICES = {"responses": get_args(Responses), "scope": get_args(Scope)}
RESERVED = ("name", "method", "seeds", "family", "reads", "parameters", *FACTS)
KINDS = {"float": float, "int": int, "str": str, "bool": bool}
LIMITED = {
    "Positive": Positive,
    "NonNegative": NonNegative,
    "Fraction": Fraction,
    "Count": Count,
    "LabelSmoothing": LabelSmoothing,
}


@dataclass(frozen=True)
class LossSource:
    """A loss function as its source text states it.

    Attributes:
        description: the first paragraph of the docstring.
        reads: the `INPUTS` that it takes.
        options: by name, the type and the pydantic field of each option.
        facts: the arguments of its decorator.
    """

    description: str
    reads: frozenset[str]
    options: dict[str, Any]
    facts: dict[str, Any]


def registered_losses(path: Path) -> dict[str, LossSource]:
    """Return the functions of a file that carry the decorator `@loss(...)`, by name, in the file's order."""
    functions = _functions(parse_file(path))
    return {name: _read(node, f"{path}: {name}") for name, node in functions.items() if _decorators(node)}


def read_loss(path: Path, name: str) -> LossSource:
    """Read one function, decorated or not.

    Raises:
        UserError: the file has no such function, or its signature or decorator cannot be used.
    """
    functions = _functions(parse_file(path))
    if name not in functions:
        names = ", ".join(functions) or "none"
        raise UserError(f"{path}: no function {name} at its top level; write it or name one that is there ({names})")
    return _read(functions[name], f"{path}: {name}")


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _read(function: ast.FunctionDef, place: str) -> LossSource:
    reads, options = set(), dict[str, Any]()
    for argument, default in _parameters(function.args, place):
        if argument.arg in INPUTS and not _is_literal(argument.annotation):
            reads.add(argument.arg)
        else:
            options[argument.arg] = _option(argument, default, place)
    facts = _facts(function, place)
    if "state" in reads and facts.get("scope") != "step":
        raise UserError(f'{place} reads `state`, which is carried from step to step; write @loss(scope="step")')
    description = (ast.get_docstring(function) or "").partition("\n\n")[0]
    return LossSource(description, frozenset(reads), options, facts)


def _parameters(arguments: ast.arguments, place: str) -> list[tuple[ast.arg, ast.expr | None]]:
    """Return every parameter after `policy`, with its default."""
    if arguments.vararg or arguments.kwarg:
        raise UserError(f"{place} takes *args or **kwargs; name every input and option, the plan is read off them")
    positional = [*arguments.posonlyargs, *arguments.args]
    if not positional or positional[0].arg != "policy":
        first = positional[0].arg if positional else "none"
        raise UserError(f"{place} must take `policy`, the policy's LogProbs, as its first parameter; found {first}")
    if len(arguments.posonlyargs) > 1:
        raise UserError(f"{place}: inputs and options are passed by name; move the `/` to just behind `policy`")
    defaults = [*([None] * (len(positional) - len(arguments.defaults))), *arguments.defaults]
    by_keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [*zip(positional, defaults, strict=True), *by_keyword][1:]


def _option(argument: ast.arg, default: ast.expr | None, place: str) -> tuple[Any, Any]:
    """Return the option's type and field. A default must be a literal, because the config states its value."""
    name = argument.arg
    if name in RESERVED or name.startswith(("_", "model_")) or hasattr(Section, name):
        raise UserError(f"{place}: an option cannot be called {name}, the name is taken; choose another")
    try:
        value = ... if default is None else ast.literal_eval(default)
    except ValueError:
        raise UserError(f"{place}: the default of {name} must be written out (a number, text, true or false)") from None
    kind = _type_of(argument.annotation) or (type(value) if type(value) in KINDS.values() else None)
    if kind is None:
        names = ", ".join([*KINDS, *LIMITED])
        raise UserError(
            f"{place}: {name} needs a type: annotate it with {names}, Literal[...] or Annotated[float, Field(...)]"
        )
    return kind, Field(value, validate_default=True)


def _type_of(annotation: ast.expr | None) -> Any:
    """Return the type that an annotation names; None if a suite cannot state values of it."""
    match annotation:
        case ast.Name(id=name):
            return KINDS.get(name) or LIMITED.get(name)
        case ast.BinOp(left=kind, op=ast.BitOr(), right=ast.Constant(value=None)):
            inner = _type_of(kind)
            return inner and inner | None
        case ast.Subscript(slice=choices) if _is_literal(annotation):
            values = _value(choices)
            return values and Literal.__getitem__(values)  # type: ignore[attr-defined]
        case ast.Subscript(
            value=ast.Name(id="Annotated"),
            slice=ast.Tuple(elts=[kind, ast.Call(func=ast.Name(id="Field"), args=[], keywords=keywords)]),
        ):
            inner = _type_of(kind)
            return inner and Annotated[inner, Field(**{str(one.arg): _value(one.value) for one in keywords})]
    return None


def _is_literal(annotation: ast.expr | None) -> bool:
    match annotation:
        case ast.Subscript(value=ast.Name(id="Literal") | ast.Attribute(attr="Literal")):
            return True
    return False


def _value(node: ast.expr) -> Any:
    """Return a literal's value; None if the expression is not a literal."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _decorators(function: ast.FunctionDef) -> list[ast.expr]:
    """Return the decorators called `loss`."""
    return [node for node in function.decorator_list if _name_of(node) == "loss"]


def _name_of(decorator: ast.expr) -> str | None:
    match decorator.func if isinstance(decorator, ast.Call) else decorator:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def _facts(function: ast.FunctionDef, place: str) -> dict[str, Any]:
    """Return the arguments of the decorator, checked."""
    facts: dict[str, Any] = {}
    for node in _decorators(function):
        if not isinstance(node, ast.Call) or node.args:
            raise UserError(f'{place}: write the decorator with named arguments, such as @loss(title="My loss")')
        for argument in node.keywords:
            name, value = argument.arg, _value(argument.value)
            if name not in FACTS:
                raise UserError(f"{place}: @loss has no argument {name}; its arguments are {', '.join(FACTS)}")
            if name in CHOICES and value not in CHOICES[name]:
                allowed = ", ".join(f'"{choice}"' for choice in CHOICES[name])
                got = ast.unparse(argument.value)
                raise UserError(f"{place}: @loss({name}=...): expected one of {allowed}, got {got}")
            if value is None:
                raise UserError(f"{place}: @loss({name}=...): write the value out, as text, numbers or tuples of them")
            facts[name] = value
    return facts
