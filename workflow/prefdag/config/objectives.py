"""The registry of preference losses: what each reads, its options, and where it comes from.

Torch-free, so that every row of every suite is checked while Snakemake parses. An entry is read from the source text of
the loss's function in `prefdag/losses/`, or in a Python file of the user's (`prefdag.config.loss_source`).

These files are read as data: a stage that imports this module does not count them among its sources. A stage that runs
a loss imports `prefdag.losses.registry`, so an edit of a loss reruns it. The report reads titles alone, and follows the
reruns of the trainings. Every job has its options, defaults included, in its own config.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import create_model, model_validator

from prefdag.config.loss_source import LossSource, Responses, Scope, read_loss, registered_losses
from prefdag.config.user_paths import split_path
from prefdag.errors import Mistakes, UserError
from prefdag.provenance.sources import PACKAGE, user_sources
from prefdag.schema import Section, wording

# The modules of `prefdag/losses/` with losses of policies, in the order of the documentation, and what points.csv of an
# exact suite calls each module's family.
FAMILIES = {
    "pairwise": "pairs",
    "pointwise": "absolute",
    "batchwise": "batch",
    "tokenwise": "tokens",
    "reference_free": "free",
    "unpaired": "singles",
    "listwise": "rankings",
}


class Objective(Section):
    """One preference loss, with its options as fields; the decorator `loss` documents its other attributes.

    Attributes:
        family: the kind of loss, as `FAMILIES` names it.
        reads: which of `prefdag.config.loss_source.INPUTS` the function takes, by keyword.
    """

    family: ClassVar[str] = ""
    reads: ClassVar[frozenset[str]] = frozenset()
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    first_step: ClassVar[str] = ""
    responses: ClassVar[Responses] = "two"
    scope: ClassVar[Any] = "comparison"
    read_with: ClassVar[dict[str, tuple[str, str]]] = {}
    conventions: ClassVar[str] = ""
    method: str

    @model_validator(mode="after")
    def _check_unread_options(self) -> Self:
        for option, (other, choice) in self.read_with.items():
            if getattr(self, other) != choice and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option}: read with {other}: {choice} alone; leave it out")
        return self

    @property
    def of_pairs_alone(self) -> bool:
        """Whether the loss is one of a pair's log-probs, and the reference's, which has a value in both orders."""
        return self.responses == "two" and self.scope == "comparison" and not self.reads - {"reference"}

    def parameters(self) -> dict[str, Any]:
        """Return the options, as the keyword arguments of the loss's function."""
        return self.model_dump(exclude={"method"})


class StepWith:
    """A scope that depends on an option: "step" with one choice of it, and of the class; else "comparison"."""

    def __init__(self, option: str, choice: str) -> None:
        self.option, self.choice = option, choice

    def __get__(self, row: Any, entry: type) -> Scope:
        return "step" if row is None or getattr(row, self.option) == self.choice else "comparison"


class UserLoss(Objective):
    """A loss in a Python file of the user's."""

    family = "own"

    @classmethod
    def parse(cls, values: Any, where: str, inside: str = "") -> Self:
        try:
            return super().parse(values, where, inside)
        except UserError as mistake:
            raise UserError(f"{mistake} (an option of {values['method']})") from None

    def user_files(self) -> tuple[Path, ...]:
        return (split_path(self.method)[0],)


def _entry(name: str, source: LossSource, base: type[Objective], **fields: Any) -> type[Objective]:
    entry = create_model(name, __base__=base, __doc__=source.description, **fields, **source.options)
    facts = dict(source.facts)
    if "step_with" in facts:
        facts["scope"] = StepWith(*facts.pop("step_with"))
    for key, value in {**facts, "reads": source.reads}.items():
        setattr(entry, key, value)
    return entry


def _registry() -> dict[str, type[Objective]]:
    """Read the losses of the package."""
    entries: dict[str, type[Objective]] = {}
    for module, family in FAMILIES.items():
        for name, source in registered_losses(PACKAGE / f"losses/{module}.py").items():
            entries[name] = _entry(name, source, Objective, method=(Literal[name], ...))
            entries[name].family = family
    return entries


OBJECTIVES = _registry()
ON_POLICY = ("dr_grpo", "grpo", "ppo", "reinforce", "rloo")  # of `prefdag.config.online.methods`, which imports this


def entry_of(method: Any, where: str, inside: str) -> type[Objective]:
    """Return the entry of a method: of the package, or of the user's function that `my_losses.py:my_loss` names.

    Raises:
        UserError: an unknown method, or a file, function or signature that cannot be used.
    """
    if _is_user_loss(method):
        return _user_loss(method, where, inside)
    if not isinstance(method, str) or method not in OBJECTIVES:
        known = f"the losses are {', '.join(sorted(OBJECTIVES))}; the on-policy methods are {', '.join(ON_POLICY)}"
        raise UserError(f"{where}: {inside}.method: {_unknown(method)}; {known}")
    return OBJECTIVES[method]


def _unknown(method: Any) -> str:
    if method is None:
        return "missing; name a loss"
    match = wording().nearest(method, (*OBJECTIVES, *ON_POLICY))
    return f"there is no loss {method!r}" + (f", did you mean `{match}`?" if match else "")


def objective(values: dict[str, Any], where: str, inside: str, others: Sequence[str] = ()) -> Objective:
    """Validate the objective of one row.

    Args:
        values: the method and its options.
        where: the suite's file, for messages.
        inside: the row's place in it, for messages.
        others: further keys of a row, to name the one that was probably meant.

    Raises:
        UserError: an unknown method, an option that the method does not read, or a value that it does not allow.
    """
    method = values.get("method")
    entry = entry_of(method, where, inside)
    options = [name for name in entry.model_fields if name != "method"]
    mistakes = Mistakes()
    known, meant = (*options, *others), set[str | None]()
    for key in values:
        if key not in entry.model_fields:
            meant.add(wording().nearest(key, known))
            unread = f"{method} does not read {key}; its options are {', '.join(options) or 'none'}"
            mistakes.add(f"{where}: {inside}.{key}: {'; '.join([unread, *wording().hints(key, known)])}")
    if not meant.intersection(name for name, field in entry.model_fields.items() if field.is_required()):
        stated = {key: value for key, value in values.items() if key in entry.model_fields}
        loss: Objective = mistakes.attempt(entry.parse, stated, where, inside)
    mistakes.check()
    return loss


def _is_user_loss(method: Any) -> bool:
    """Return whether a row's method is meant as a file and a function, well written or not."""
    return isinstance(method, str) and (":" in method or ".py" in method)


def _user_loss(method: str, where: str, inside: str) -> type[Objective]:
    """Read the entry of a user's function; its path is from the working directory."""
    try:
        path, name = split_path(method)
        if not path.is_file():
            raise UserError(f"{path}: no such file; the path of {name}'s file is taken from the suite's")
        user_sources(path)
        return _entry(name, read_loss(path, name), UserLoss)
    except UserError as mistake:
        raise UserError(f"{where}: {inside}.method: {mistake}") from None
