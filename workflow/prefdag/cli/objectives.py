"""Print a Markdown page of every loss (docs/objectives.md)."""

import argparse
import inspect
import json
import re
from typing import get_args

from pydantic.fields import FieldInfo

from prefdag.cli.schema import allowed
from prefdag.config.objectives import OBJECTIVES, Objective, StepWith

LEGEND = r"""# Objectives

Every preference loss of the package, as a row of a suite names it (`method: dpo`). `prefdag objectives` writes this
page from the functions in `workflow/prefdag/losses/`, and a test compares the two. A loss in a Python file of yours
(`method: my_losses.py:my_loss`) works in the same way: see [A new loss](tutorials/new-loss.md).

## Notation

A prompt has K responses, the best first. Of a pair, `w` is the chosen (preferred) and `l` the rejected response.

| sign | meaning |
|---|---|
| `S_w`, `S_l` | summed log-prob under the policy of a response's counted tokens, its end of turn among them, in nats |
| `R_w`, `R_l` | the same under the reference policy |
| `n_w`, `n_l` | number of counted tokens |
| `A = S / n` | average log-prob of a token |
| `d_w`, `d_l` | log-ratio to the reference, `d = S - R` |
| `D` | `d_w - d_l`, the margin of the log-ratios |
| `r_w`, `r_l` | score of a response: the reward or rating by which the comparisons were labelled |
| `s` | the sigmoid; `log s` its logarithm, `softplus(x) = log(1 + e^x)` |
| `beta`, `gamma`, ... | the options of the method, by the names of its table |

A loss returns one value per comparison. A step's loss is the sum of the values of its comparisons, divided by their
number. **Scope** says what a value depends on: its comparison only, or the whole step (then the batch size is part of
the method). **Reads** lists what a loss needs in addition to the policy's log-probs; without `reference`, the DAG
computes no log-probs of the reference. **First step** is the value at policy = reference, where it depends on the
options only.

| input | what it is |
|---|---|
| `reference` | the reference's log-probs of the same tokens |
| `scores` | a score of every response |
| `labels` | whether the one response is desirable |
| `mismatched` | log-ratio of another prompt's response after this prompt, without gradient |
| `collision` | `log sum_v p_v^2` at every response token, without gradient |
| `divergence` | `KL(reference \|\| policy)` over the vocabulary at every response token |
| `noise` | uniform numbers of the step's own stream |
| `state` | numbers carried from step to step |
"""
KINDS = {
    "Preference pairs, against a reference": ("two", True),
    "Preference pairs, without a reference": ("two", False),
    "Single labelled responses": ("one", None),
    "K responses": ("many", None),
}
RESPONSES = {"one": "one, labelled", "two": "two, chosen and rejected", "many": "K, best first"}
SCOPES = {"comparison": "a comparison", "step": "a whole step"}
NAMES = {float: "a number", int: "a whole number", str: "text", bool: "`true` or `false`"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the page has one form."""


def run(arguments: argparse.Namespace) -> int:
    print(page(), end="")
    return 0


def page() -> str:
    """Return the legend and the losses in groups, each in the order of the registry."""
    return "\n".join([LEGEND, *(_group(title) for title in KINDS if _members(title))])


def _members(title: str) -> dict[str, type[Objective]]:
    """Select the losses of one group: by number of responses and, for pairs, by whether they read the reference."""
    responses, referred = KINDS[title]
    return {
        method: entry
        for method, entry in OBJECTIVES.items()
        if entry.responses == responses and referred in (None, "reference" in entry.reads)
    }


def _group(title: str) -> str:
    members = _members(title)
    links = ", ".join(f"[`{method}`](#{method})" for method in members)
    return "\n".join([f"## {title}\n", f"{links}\n", *(_entry(method, entry) for method, entry in members.items())])


def _entry(method: str, entry: type[Objective]) -> str:
    """Describe one method: formula, source, inputs, options, and where tools differ."""
    reads = ", ".join(f"`{name}`" for name in sorted(entry.reads)) or "nothing but the policy's log-probs"
    facts = {
        "Source": _inline(entry.paper),
        "Reads": reads,
        "Responses": RESPONSES[entry.responses],
        "Scope": _scope(entry),
        "First step": f"`{entry.first_step}`" if entry.first_step else "",
        "Conventions": _inline(entry.conventions),
    }
    lines = [f"### `{method}`\n", _inline(inspect.cleandoc(entry.__doc__ or "")) + "\n"]
    lines += ["```text", *(line.strip() for line in entry.formula.splitlines()), "```\n"]
    lines += [*(f"- **{name}**: {text}" for name, text in facts.items() if text), ""]
    options = [_option(entry, key, field) for key, field in entry.model_fields.items() if key != "method"]
    table = ["| option | default | allowed | meaning |", "|---|---|---|---|", *options, ""]
    return "\n".join([*lines, *(table if options else ["No options.\n"])])


def _scope(entry: type[Objective]) -> str:
    """Describe the scope, and the option that changes it."""
    scope = inspect.getattr_static(entry, "scope")
    if isinstance(scope, StepWith):
        return f"a comparison; with `{scope.option}: {scope.choice}` a whole step"
    return SCOPES[entry.scope]


def _option(entry: type[Objective], name: str, field: FieldInfo) -> str:
    default = "**stated**" if field.is_required() else f"`{json.dumps(field.default, default=str)}`"
    read_with = "with `{}: {}` alone".format(*entry.read_with[name]) if name in entry.read_with else ""
    meaning = "; ".join(filter(None, [_inline(field.description or ""), read_with]))
    cells = (f"`{name}`", default, _allowed(field), meaning)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _allowed(field: FieldInfo) -> str:
    """Return the choices, or the type and its limits."""
    kinds = (field.annotation, *get_args(field.annotation))
    words = [*(NAMES[kind] for kind in kinds if kind in NAMES), allowed(field)]
    return " ".join(filter(None, words)) + (", or `null`" if type(None) in kinds else "")


def _inline(text: str) -> str:
    """Put prose on one line, and escape what Markdown or HTML would interpret, except inside `code`."""
    prose = " ".join(text.split()).split("`")
    return "`".join(re.sub(r"([*_<>\[\]])", r"\\\1", part) if at % 2 == 0 else part for at, part in enumerate(prose))
