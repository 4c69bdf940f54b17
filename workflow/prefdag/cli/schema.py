"""Print the JSON schema of suites, for editors, or a table of their keys (configs/README.md)."""

import argparse
import json
from collections.abc import Container, Iterator
from typing import Any, get_args

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from prefdag.config.exact import Exact
from prefdag.config.objectives import OBJECTIVES
from prefdag.config.online.methods import METHODS
from prefdag.config.rounds import RoundPairs
from prefdag.config.sections.adapter import Adapter
from prefdag.config.sections.discriminator import Discriminator
from prefdag.config.suite import ExactSuite, Suite
from prefdag.schema import Section

INTRODUCTION = """# Suites

One YAML file is one suite. `prefdag schema --table` writes this page from the config models, and a test keeps them
equal. A key without a default is required. `seed` and `threads` of the suite apply to every section that does not set
its own.

`runs:` lists rows `{name, method, <the method's options>, <any key of preference>, seeds: [..]}`; `grid:` lists rows
in which every list is swept and named. A method is a loss below, or your own loss in a Python file next to the suite
(`my_losses.py:my_loss`); `docs/objectives.md` explains each. `extends: other.yaml` starts from another suite.

A row with `pairs: {law: ..}`, and perhaps `rounds: N`, draws its pairs from its own policy, round by round: see
[pairs of a row](#pairs-of-a-row) and `docs/howto/on-policy.md`. `pairs: max_min` is short for `pairs: {law: max_min}`.
`discriminator: {gold_pairs: 64}` in such a row trains a reward model again in every round, as D2PO does: see
[discriminator of a row](#discriminator-of-a-row).

`adapter: {rank: 16}` in `sft`, `reward`, `preference`, `online` or a row trains low-rank updates of frozen weights: see
[adapter](#adapter) and `docs/howto/adapters.md`. A row's keys of it replace the section's, and `adapter: null` in a row
trains every weight.

`dataset: rankings` in a row trains it on all K responses to a prompt as one comparison; the default is pairs,
`dataset: comparisons`. A loss of single responses splits comparisons: the best response is desirable, the others are
not, and `batch_size` counts responses.

A row with a method of the last table trains on rewards of the policy's own answers. It takes any key of `online` in
place of `preference`'s, and `preset:` with the settings of a paper or of another tool.

A suite with the section `exact` (`configs/exact.yaml`) has no other section than `name`, `seed` and `threads`: its rows
take the method's options and `flips`, the fraction of flipped labels, and an entry of its `grid:` is one job.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table", action="store_true", help="print Markdown tables of every key and every loss instead"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.table:
        print(table(), end="")
    else:
        print(json.dumps(TypeAdapter(Suite | ExactSuite).json_schema(), indent=1))
    return 0


def table() -> str:
    """Return every section's keys, and the registry of losses, as Markdown."""
    parts = [
        INTRODUCTION,
        *_sections("", Suite),
        *_sections("pairs of a row", RoundPairs),
        *_sections("discriminator of a row", Discriminator),
        *_sections("adapter", Adapter),
        *_sections("exact", Exact),
        _losses(),
        _methods(),
    ]
    return "\n".join(parts)


def _sections(name: str, section: type[Section]) -> list[str]:
    inner = {key: kind for key, field in section.model_fields.items() if (kind := _section_of(field)) and key != "runs"}
    rows = [_row(key, field) for key, field in section.model_fields.items() if _has_row(key, field, inner)]
    title = f"\n## {name or 'The suite'}\n\n{(section.__doc__ or '').strip().splitlines()[0]}\n"
    parts = [title + "\n| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows)] if rows else []
    for key, kind in inner.items():
        if kind is Adapter:  # four sections have one; its table comes once
            continue
        parts += _sections(f"{name}.{key}" if name else key, kind)
    return parts


def _has_row(key: str, field: FieldInfo, inner: Container[str]) -> bool:
    """Whether a key has a row: a section has its own table, and a row only if it has a description."""
    return key != "runs" and (key not in inner or field.description is not None)


def _section_of(field: FieldInfo) -> type[Section] | None:
    return next(_sections_in(field.annotation), None)


def _sections_in(kind: Any) -> Iterator[type[Section]]:
    if isinstance(kind, type) and issubclass(kind, Section):
        yield kind
    for part in get_args(kind):
        yield from _sections_in(part)


def _row(key: str, field: FieldInfo) -> str:
    default = "**stated**" if field.is_required() else f"`{json.dumps(field.default, default=str)}`"
    return f"| `{key}` | {default} | {field.description or allowed(field)} |"


def allowed(field: FieldInfo) -> str:
    """Return the choices or the limits of a key in words; empty if it has none."""
    choices = getattr(field.annotation, "__args__", ())
    texts = [choice for choice in choices if isinstance(choice, str)]
    if texts:
        return " or ".join(f"`{choice}`" for choice in texts)
    limits = [
        f"{name} {getattr(limit, name):g}"
        for limit in field.metadata
        for name in ("gt", "ge", "lt", "le")
        if hasattr(limit, name)
    ]
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    return ", ".join(f"{signs[limit.split()[0]]} {limit.split()[1]}" for limit in limits)


def _losses() -> str:
    """Return the table of losses: method, formula, options with their defaults, what it reads, paper."""
    lines = [
        "\n## Losses\n",
        "D: difference of summed log-ratios, S: summed log-prob, A: average log-prob, s: sigmoid.\n",
    ]
    lines += ["| method | formula | options | reads | paper |", "|---|---|---|---|---|"]
    for name, entry in OBJECTIVES.items():
        options = ", ".join(_option(key, field) for key, field in entry.model_fields.items() if key != "method")
        reads = ", ".join(sorted(entry.reads)) or "-"
        formula = entry.formula.replace("|", "\\|")
        lines.append(f"| `{name}` | {formula} | {options or '-'} | {reads} | {entry.paper} |")
    return "\n".join(lines) + "\n"


def _methods() -> str:
    """Return the table of policy-gradient methods."""
    lines = ["\n## On-policy methods\n", "pi*: pi_ref exp(r / beta) / Z, with beta the coefficient of the KL.\n"]
    lines += ["| method | formula | options | optimum | paper |", "|---|---|---|---|---|"]
    for name, entry in METHODS.items():
        options = ", ".join(_option(key, field) for key, field in entry.model_fields.items() if key != "method")
        lines.append(f"| `{name}` | {entry.formula} | {options} | {entry.optimum} | {entry.paper} |")
    return "\n".join(lines) + "\n"


def _option(key: str, field: FieldInfo) -> str:
    default: Any = "stated" if field.is_required() else field.default
    meaning = allowed(field)
    return f"`{key}` = {default}" + (f" ({meaning})" if meaning else "")
