"""The exceptions that a command turns into a sentence."""


class UserError(ValueError):
    """A mistake in a suite, a file or a command: one sentence saying what, where and how to mend it.

    The command line prints it without a traceback and exits with 2.
    """


class Stopped(Exception):
    """The job was told to stop (SIGTERM or SIGINT); the argument is the signal's name."""
