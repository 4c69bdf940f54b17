"""A user's function of prompts and responses as the reward."""

from collections.abc import Callable
from pathlib import Path

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
        except Exception as error:
            raise UserError(f"{path}: {name} raised {describe_error(error, path)}; fix it and rerun") from error
        try:
            numbers = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(f"{path}: {name} returned {type(values).__name__} that is no list of numbers") from None
        if numbers.shape != (len(responses),):
            raise UserError(
                f"{path}: {name} returned values of shape {list(numbers.shape)} for {len(responses)} responses; "
                "return one number for each"
            )
        return numbers

    return call
