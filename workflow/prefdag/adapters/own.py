"""An adapter in a Python file of the user's own: `adapter: my_rows.py:my_rows`, the path from the suite's file."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from prefdag.adapters.text import TextComparison, Unusable
from prefdag.config.adapters import own_parts
from prefdag.errors import UserError
from prefdag.rows import Row


def own_adapter(name: str) -> Callable[[Row], TextComparison]:
    """The function that `<file>.py:<function>` names: from a row to a `TextComparison`, or it raises `Unusable`.

    Raises `UserError` where the file cannot be run or holds no such function; and for what the function does to a row.
    """
    path, function = own_parts(name)
    adapt = getattr(_loaded(path), function, None)
    if not callable(adapt):
        raise UserError(f"prepare.adapter: {path} holds no function {function}; correct its name")

    def checked(row: Row) -> TextComparison:
        try:
            found = adapt(row)
        except Unusable:
            raise
        except Exception as error:
            raise UserError(
                f"{path}: {function} failed ({type(error).__name__}: {error}) on the row {_short(row)}"
            ) from None
        if not isinstance(found, TextComparison):
            raise UserError(
                f"{path}: {function} must return a TextComparison (prefdag.adapters.text), got {type(found).__name__}"
            )
        return found

    return checked


def _loaded(path: Path) -> object:
    if not path.is_file():
        raise UserError(f"prepare.adapter: {path}: no such file; its path is taken from the suite's")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # what it imports from beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path}: cannot be run ({type(error).__name__}: {error}); mend it") from None
    finally:
        sys.path.remove(str(path.parent))
    return module


def _short(row: Row) -> str:
    return str(row)[:80]
