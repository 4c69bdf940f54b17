"""Wait for the processes of a workflow at its end, and say what MLflow may lack."""

import subprocess
import time
from collections.abc import Callable, Mapping

from prefdag.tracking.environment import problem_with

ANNOUNCED = 2.0  # seconds after which the wait is announced


def wait_for_services(
    services: Mapping[str, "subprocess.Popen[bytes]"],
    results: str,
    uri: str,
    say: Callable[[str], None],
    patience: float = 120.0,
) -> str | None:
    """Wait until the processes, which have a signal to stop, have ended. Ctrl-C ends the wait, not the processes.

    Args:
        services: the processes by name; `writer` writes the runs into MLflow.
        results: the suite's folder.
        uri: the tracking database.
        say: called once, with what is waited for, if the wait is not short.
        patience: seconds to wait at most.

    Returns:
        What to do if MLflow may lack runs, else None.
    """
    writer = services.get("writer")
    try:
        _wait(services, time.monotonic() + min(ANNOUNCED, patience))
        if writer is not None and writer.poll() is None:
            say(f"waiting for the runs to be written into MLflow, at most {patience:.0f} s; Ctrl-C ends the wait")
        _wait(services, time.monotonic() + patience)
    except KeyboardInterrupt:
        return None if writer is None else f"MLflow: the runs are written by `prefdag track {results}` later"
    return None if writer is None else _advice(writer.poll(), results, uri)


def _wait(services: Mapping[str, "subprocess.Popen[bytes]"], deadline: float) -> None:
    for process in services.values():
        try:
            process.wait(timeout=max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            continue


def _advice(code: int | None, results: str, uri: str) -> str | None:
    """Return what to do about a writer with this exit code; None: it is still running."""
    if code == 0:
        return None
    command = f"`prefdag track {results}`"
    if problem := problem_with(uri):
        return f"MLflow: {problem}; run {command} once it is reachable"
    if code is None or code < 0:  # negative: stopped by the signal, before it was ready to write
        return f"MLflow: the writer was slower than the wait, so some of these runs may be missing; run {command}"
    return f"MLflow lacks some of these runs ({results}/.journal/writer.log says why); run {command}"
