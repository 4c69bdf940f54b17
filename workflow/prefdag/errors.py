"""Exceptions that the command line reports as one sentence."""


class UserError(ValueError):
    """A mistake in a suite, a file or a command, as one sentence: where, what is wrong, and what to do.

    The command line prints it without a traceback and exits with 2.
    """


class Stopped(Exception):
    """The job received SIGTERM or SIGINT; the argument is the signal's name."""
