"""What every entry of the registry of preference losses states."""

from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import model_validator

from prefdag.schema import Section

Responses = Literal["one", "two", "many"]
Scope = Literal["comparison", "step"]
# What a loss may read beside the policy's log-probs; `prefdag.losses.registry` says what each is.
INPUTS = ("reference", "scores", "labels", "mismatched", "collision", "divergence", "noise", "state")
# What may be said below a function of the user's own, and how.
STATED = {"responses": get_args(Responses), "scope": get_args(Scope)}


class Objective(Section):
    """One preference loss.

    title: as papers print it; empty where that is the method's own name.
    reads: which of `INPUTS` its function takes beside the policy's log-probs, by keyword.
    responses: how many a comparison has; "one" with a label, "two" a pair, "many" two or more, best first.
    scope: "step" where a comparison's value depends on the others, so that it must see an optimizer step at once.
    first_step: its value where the policy is the reference, as Python, of its options; empty where that varies.
    conventions: where tools disagree about what goes by this name.
    read_with: (option, other, choice) for an option that is read with one choice of another option only.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str]
    formula: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    responses: ClassVar[Responses] = "two"
    scope: ClassVar[Any] = "comparison"
    first_step: ClassVar[str] = ""
    conventions: ClassVar[str] = ""
    read_with: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    method: str

    @model_validator(mode="after")
    def _reads_its_options(self) -> Self:
        for option, other, choice in self.read_with:
            if getattr(self, other) != choice and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option} is read with {other}: {choice} alone; leave it out")
        return self

    def parameters(self) -> dict[str, Any]:
        """The loss's own keyword arguments."""
        return self.model_dump(exclude={"method"})


class StepIfPerToken:
    """The scope of an entry whose `nll` may be a mean over the step's tokens: "step" of such a row and of the class."""

    def __get__(self, row: Any, entry: type) -> Scope:
        return "step" if row is None or row.nll == "per_token" else "comparison"
