"""Where runs are tracked, and the environment variables that MLflow reads."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

SCHEMES = re.compile(r"|file|sqlite|https?|databricks(-uc)?|(postgresql|mysql|mssql)(\+\w+)?")
TIMEOUT = 3.0  # seconds to wait for a server's answer
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


def problem_with(uri: str) -> str | None:
    """Return what is wrong with a database's address in a few words; None if it can be used, as far as it shows.

    A server is asked for a connection only, unless a proxy is set.
    """
    shown = uri.rpartition("@")[2]
    try:
        parts = urlsplit(uri)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        return f"{shown} is no address ({error})"
    if not SCHEMES.fullmatch(parts.scheme):
        return f"{shown} begins with {parts.scheme}:, which MLflow does not know"
    if parts.scheme not in ("http", "https") or parts.scheme in getproxies():
        return None
    if not parts.hostname:
        return f"{shown} names no server"
    try:
        with socket.create_connection((parts.hostname, port), timeout=TIMEOUT):
            return None
    except OSError as error:
        return f"{shown} does not answer ({error.strerror or error})"


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
