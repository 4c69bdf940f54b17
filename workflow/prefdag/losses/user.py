"""Run a loss from a Python file of the user's, in its job."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from prefdag.config.objectives import UserLoss
from prefdag.config.user_paths import split_path
from prefdag.errors import Stopped, UserError
from prefdag.models.logprobs import LogProbs
from prefdag.provenance.user_code import describe_error, import_user_file


def load_user_loss(objective: UserLoss) -> Callable[..., Any]:
    """Return the user's function with its options bound, to be called as `compute(policy, **inputs)`.

    Raises:
        UserError: the file cannot be imported. The returned function raises it, too: if the user's function raises, or
            returns other than one floating-point value per comparison, [B], and, with `state`, the next state.
    """
    path, name = split_path(objective.method)
    function = getattr(import_user_file(path), name)
    options = objective.parameters()

    def compute(policy: LogProbs, **inputs: Any) -> Any:
        try:
            result = function(policy, **inputs, **options)
        except (Stopped, UserError):
            raise
        except Exception as error:
            raise UserError(
                f"{path}: {name} raised {describe_error(error, path)}; fix the function and rerun"
            ) from error
        place = f"{path}: {name}"
        if "state" not in objective.reads:
            return _checked(result, policy, place)
        values, state = _with_state(result, place)
        return _checked(values, policy, place), state

    return compute


def _with_state(result: Any, place: str) -> tuple[Any, dict[str, float]]:
    """Return values and next state, checked: the state is saved as JSON between steps."""
    match result:
        case (values, dict(state)) if all(isinstance(key, str) for key in state):
            if all(isinstance(value, (int, float)) for value in state.values()):
                return values, state
    raise UserError(f"{place} reads `state`, so it must return (values, state), the state a dict of numbers by name")


def _checked(values: Any, policy: LogProbs, place: str) -> Tensor:
    """Return the values, checked: one float per comparison, with a gradient to the policy."""
    expected = f"expected one floating-point value per comparison, [{policy.shape[0]}]"
    if not isinstance(values, Tensor):
        raise UserError(f"{place} returned {type(values).__name__}; {expected}, as a tensor")
    if values.shape != policy.shape[:1] or not values.is_floating_point():
        kind = str(values.dtype).removeprefix("torch.")
        raise UserError(f"{place} returned {kind} values of shape {list(values.shape)}; {expected}")
    if policy.tokens.requires_grad and not values.requires_grad:
        raise UserError(f"{place} returned values without a gradient; compute them from `policy`, undetached")
    return values
