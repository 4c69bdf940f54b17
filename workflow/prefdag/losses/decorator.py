"""The decorator that states what a loss's signature cannot."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def loss(
    *,
    title: str = "",
    paper: str = "",
    formula: str = "",
    first_step: str = "",
    responses: Literal["one", "two", "many"] = "two",
    scope: Literal["comparison", "step"] = "comparison",
    step_with: tuple[str, str] | None = None,
    read_with: Mapping[str, tuple[str, str]] | None = None,
    conventions: str = "",
) -> Callable[[Function], Function]:
    """Describe a loss; the function itself is unchanged.

    `prefdag.config.objectives` reads the arguments from the source text, so write them as literals.

    Args:
        title: the name as papers print it; by default the function's name.
        paper: the source, with the number of the equation.
        formula: the loss of one comparison, in the notation of docs/objectives.md.
        first_step: the value where the policy is the reference, as a Python expression of the options.
        responses: per comparison, "one" with a label, "two" (a pair), or "many" (two or more, best first).
        scope: "step" if a comparison's value depends on the other comparisons of its optimizer step.
        step_with: (option, choice) with which the scope is "step".
        read_with: for an option that is read with one choice of another option only, that (option, choice).
        conventions: where tools disagree about this name.
    """
    return lambda function: function
