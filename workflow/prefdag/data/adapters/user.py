"""An adapter in a Python file of the user's own: `adapter: my_rows.py:my_rows`, the path from the suite's file."""

from collections.abc import Callable

from prefdag.config.adapters import split_adapter
from prefdag.data.adapters.records import TextComparison, Unusable
from prefdag.data.rows import Row
from prefdag.errors import Stopped, UserError
from prefdag.provenance.user_code import describe_error, import_user_file


def load_user_adapter(name: str) -> Callable[[Row], TextComparison]:
    """The function that `<file>.py:<function>` names: from a row to a `TextComparison`, or it raises `Unusable`.

    Raises `UserError` where the file cannot be run or holds no such function; and for what the function does to a row.
    """
    path, function = split_adapter(name)
    adapt = getattr(import_user_file(path), function, None)
    if not callable(adapt):
        raise UserError(f"prepare.adapter: {path} holds no function {function}; correct its name")

    def checked(row: Row) -> TextComparison:
        try:
            found = adapt(row)
        except (Unusable, Stopped):
            raise
        except Exception as error:
            raise UserError(
                f"{path}: {function} raised {describe_error(error, path)} on the row {str(row)[:80]}; mend it"
            ) from error
        if not isinstance(found, TextComparison):
            raise UserError(
                f"{path}: {function} must return a prefdag.data.adapters.records.TextComparison, "
                f"got {type(found).__name__}"
            )
        return found

    return checked
