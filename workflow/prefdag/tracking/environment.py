"""Where runs are tracked, and the environment variables that MLflow reads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MLFLOW_VARIABLES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A server that is down is noticed soon, but not before it has waited its own 20 s for a locked database.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Defaults to set before MLflow is imported: no telemetry, no notices, short retries."""


def tracking_uri(results: Path) -> str:
    """Return the database that runs go to: MLFLOW_TRACKING_URI, else a SQLite file in the results folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results.resolve()}/mlflow.db"


@contextmanager
def no_retries() -> Iterator[None]:
    """Turn MLflow's retries off for a request that creates something: repeated, it would create a second one."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
