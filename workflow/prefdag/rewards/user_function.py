"""A user's function of prompts and responses as the reward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefdag.errors import Stopped, UserError
from prefdag.provenance.user_code import describe_error, import_user_file


def user_function(path: Path, name: str) -> Callable[[list[str], list[str]], NDArray[np.float64]]:
    """Return a user's function of prompts and responses; what it returns is checked."""
    module = import_user_file(path)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{path}: has no function {name}; write `def {name}(prompts, responses)`")

    def call(prompts: list[str], responses: list[str]) -> NDArray[np.float64]:
        try:
            values = function(prompts, responses)
        except (Stopped, UserError):
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{path}: {name} raised {describe_error(error, path)}; fix it and rerun") from error
        try:
            numbers = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor that needs its gradient
            numbers = None
        if numbers is None or np.asarray(values).dtype.kind in "US":  # texts such as "1" would be converted
            raise UserError(
                f"{path}: {name} returned {_kind_of(values)}; return a list of numbers, one for each response"
            )
        if numbers.shape != (len(responses),):
            raise UserError(
                f"{path}: {name} returned values of shape {list(numbers.shape)} for {len(responses)} responses; "
                "return one number for each"
            )
        return numbers

    return call


def _kind_of(values: Any) -> str:
    """Describe what is no list of numbers by its type, and that of its first entry."""
    kind = type(values).__name__
    return f"{kind} of {type(values[0]).__name__}" if isinstance(values, list | tuple) and values else kind
