"""Print diagnostics on stderr, one line each: `prefdag: <message>`, with secrets removed."""

import logging
import sys

from prefdag.provenance.redaction import redact


class _Diagnostics(logging.Handler):
    """Print a record; `sys.stderr` is looked up each time because tests and notebooks replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(redact(self.format(record)), file=sys.stderr, flush=True)


def show_diagnostics(level: int) -> logging.Logger:
    """Print the package's log records from `level` upwards, and return its logger."""
    logger = logging.getLogger("prefdag")
    handler = _Diagnostics()
    handler.setFormatter(logging.Formatter("prefdag: %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)
    return logger
