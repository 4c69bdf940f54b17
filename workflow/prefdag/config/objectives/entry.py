"""What every entry of the registry of preference losses states."""

from typing import Any, ClassVar, Literal

from prefdag.config.section import Section


class Objective(Section):
    """One preference loss.

    reads: what its function takes beside the policy's log-probs, by keyword (see `prefdag.losses`).
    responses: how many a comparison has; "one" is a response with a label, "two" a pair, "many" two or more, best first.
    scope: "step" where a comparison's value depends on the others, so that it must see the whole optimizer step at once.
    first_step: its value where the policy is the reference, as Python, of its options; empty where that depends on data.
    conventions: where tools disagree about what goes by this name.
    """

    paper: ClassVar[str]
    formula: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    responses: ClassVar[Literal["one", "two", "many"]] = "two"
    scope: ClassVar[Any] = "comparison"
    first_step: ClassVar[str] = ""
    conventions: ClassVar[str] = ""
    method: str

    def parameters(self) -> dict[str, Any]:
        """The loss's own keyword arguments."""
        return self.model_dump(exclude={"method"})


class StepIfPerToken:
    """The scope of an entry whose `nll` may be a mean over the step's tokens: "step" of such a row and of the class."""

    def __get__(self, row: Any, entry: type) -> Literal["comparison", "step"]:
        return "step" if row is None or row.nll == "per_token" else "comparison"
