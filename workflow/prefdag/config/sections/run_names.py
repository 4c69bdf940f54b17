"""Names of runs, which must differ from one another, and lists of names, which must name something."""

import itertools
from collections.abc import Sequence

from prefdag.errors import Mistakes, UserError
from prefdag.schema import wording


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


def check_names(names: Sequence[str], known: Sequence[str], key: str, kind: str = "run", kinds: str = "runs") -> None:
    """Check that a list of a suite names what is there, and nothing twice.

    Args:
        names: the list.
        known: the names that it may hold.
        key: of the list, for the message.
        kind: what is named; `kinds`, several of them.

    Raises:
        UserError: a line for each name that is unknown, with the known one most like it, or is there twice.
    """
    mistakes = Mistakes()
    for name in dict.fromkeys(names):
        if name not in known:
            mistakes.add(f"{key}: there is no {kind} {name!r};{meant(name, known)} the {kinds} are {', '.join(known)}")
        elif names.count(name) > 1:
            mistakes.add(f"{key}: {name!r} is there twice; remove one")
    mistakes.check()


def meant(name: str, known: Sequence[str]) -> str:
    """Return a question for the known name most like another, with a space before it; empty if none is like it."""
    alike = {other.replace("-", "_").lower(): other for other in known}
    near = alike.get(wording().nearest(name, alike))
    return f" did you mean `{near}`?" if near else ""
