"""Browse all runs in MLflow, on this machine only."""

import argparse
import errno
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from prefdag.errors import UserError
from prefdag.tracking.environment import MLFLOW_VARIABLES, tracking_uri
from prefdag.tracking.links import DEFAULT_PORT, follow_port, view_address

# Once the server answers, show the page in the user's browser, if there is one.
OPEN = """
import sys, time, urllib.request, webbrowser
for _ in range(240):
    try:
        urllib.request.urlopen(sys.argv[1] + "/health", timeout=5).close()
        webbrowser.open(sys.argv[1] + sys.argv[2])
        break
    except OSError:
        time.sleep(0.5)
"""
NEWEST = "select experiment_id from runs where lifecycle_stage = 'active' order by start_time desc limit 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder of all suites (results)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)


def run(arguments: argparse.Namespace) -> int:
    """Replace this process with the MLflow server. Raises `UserError` when there are no runs to show."""
    uri = tracking_uri(arguments.results)
    if uri.startswith(("http:", "https:")):
        raise UserError(f"MLFLOW_TRACKING_URI is a server: open {uri} in a browser")
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.is_file():
        raise UserError(f"{file}: no runs there yet; `prefdag track {arguments.results}/<suite>` writes them")
    check_port(arguments.port)
    follow_port(arguments.results, arguments.port)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--artifacts-destination", (arguments.results.resolve() / "mlartifacts").as_uri()]
    command += ["--host", "127.0.0.1", "--port", str(arguments.port)]
    address = f"http://127.0.0.1:{arguments.port}", f"/{page_of_newest(file)}"
    print("".join(address), flush=True)
    if sys.stdout.isatty():
        subprocess.Popen([sys.executable, "-c", OPEN, *address], stderr=subprocess.DEVNULL)
    os.execve(sys.executable, command, MLFLOW_VARIABLES | dict(os.environ))


def check_port(port: int) -> None:
    """Raise `UserError` for a port that cannot be served."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port: expected a number from 1 to 65535, got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise UserError(f"port {port} {why}; choose another with --port") from None


def page_of_newest(database: Path) -> str:
    """Return the address, within MLflow's pages, of the policies of the suite that ran last."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            row = connection.execute(NEWEST).fetchone()
    except sqlite3.Error:  # another kind of database
        row = None
    return view_address(str(row[0])) if row else "#/experiments"
