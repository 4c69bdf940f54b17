"""Names of runs, which must differ from one another."""

import itertools

from prefdag.errors import UserError


def named_once(names: list[str], where: str) -> None:
    """Raise `UserError` if two names are equal, or differ in case alone."""
    first: dict[str, str] = {}
    for name in names:
        before = first.setdefault(name.casefold(), name)
        if before != name:
            raise UserError(
                f"{where}: runs.{name}: differs from `{before}` in case only, and some file systems ignore case; "
                "rename one of them"
            )
    if len(first) < len(names):
        name = next(name for name, other in itertools.combinations(names, 2) if name == other)
        raise UserError(f"{where}: runs.{name}: duplicate run name; run names must be unique")
