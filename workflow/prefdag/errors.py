"""Exceptions that the command line reports as one sentence."""

from collections.abc import Callable
from typing import Any


class UserError(ValueError):
    """A mistake in a suite, a file or a command, as one sentence: where, what is wrong, and what to do.

    The command line prints it without a traceback and exits with 2.
    """


class Stopped(Exception):
    """The job received SIGTERM or SIGINT; the argument is the signal's name."""


class Mistakes:
    """Collect the mistakes of several parts of a suite, to raise them as one `UserError` of a line each."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def attempt(self, parse: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function and return its result; None if it raised `UserError`, whose sentences are added."""
        try:
            return parse(*arguments)
        except UserError as mistake:
            self.add(str(mistake))
            return None

    def add(self, sentences: str) -> None:
        """Add sentences, a line each."""
        self.sentences += sentences.split("\n") if sentences else []

    def check(self) -> None:
        """Raise `UserError` if there is a mistake; without repeated sentences."""
        if self.sentences:
            raise UserError("\n".join(dict.fromkeys(self.sentences)))
