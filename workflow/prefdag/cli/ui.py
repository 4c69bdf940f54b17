"""Browse all runs in MLflow, on this machine only."""

import argparse
import os
import sys
from pathlib import Path

from prefdag.errors import UserError
from prefdag.tracking.environment import MLFLOW_VARIABLES, tracking_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=Path("results"), help="the folder of all suites (results)")
    parser.add_argument("--port", type=int, default=5000)


def run(arguments: argparse.Namespace) -> int:
    """Replace this process with the MLflow server. Raises `UserError` when there are no runs to show."""
    uri = tracking_uri(arguments.results)
    if uri.startswith(("http:", "https:")):
        raise UserError(f"MLFLOW_TRACKING_URI is a server: open {uri} in a browser")
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.is_file():
        raise UserError(f"{file}: no runs there yet; `prefdag track {arguments.results}/<suite>` writes them")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--artifacts-destination", (arguments.results.resolve() / "mlartifacts").as_uri()]
    command += ["--host", "127.0.0.1", "--port", str(arguments.port)]
    print(f"http://127.0.0.1:{arguments.port}", flush=True)
    os.execve(sys.executable, command, MLFLOW_VARIABLES | dict(os.environ))
