"""Print the table of runs, the path of the report, and how to open MLflow."""

import argparse
import csv
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from prefdag.cli.commands import options
from prefdag.config.suite import read_suite
from prefdag.errors import UserError
from prefdag.tracking.environment import problem_with, tracking_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "results")


def run(arguments: argparse.Namespace) -> int:
    results = arguments.results
    if results.is_file():  # a suite instead of its results
        results = Path("results", read_suite([str(results)]).name)
    path = results / "report" / "runs.csv"
    if not path.is_file():
        raise UserError(f"{path}: does not exist yet; run the suite first")
    table = Table(title=f"{results.name}: runs (95 % intervals over prompts)", title_justify="left")
    for column in ("run", "reward", "KL to SFT", "length", f"win rate vs {_against(results)}"):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            table.add_row(row["run"], *_cells(row))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    print(f"report:  {results / 'report' / 'index.html'}")
    print(f"table:   {path}")
    print(f"MLflow:  {_where_runs_are(results)}")
    return 0


def _where_runs_are(results: Path) -> str:
    """Return the command that opens MLflow, or its server's address, or the command that catches up."""
    uri = tracking_uri(results.resolve().parent)
    if problem := problem_with(uri):
        return f"prefdag track {results}  (when it is reachable: {problem})"
    return uri.rpartition("@")[2] if uri.startswith(("http:", "https:")) else "make ui"


def _against(results: Path) -> str:
    """Return what the judgements compare a run with."""
    path = next(results.glob("judge/*/summary.json"), None)
    return "chosen" if path and json.loads(path.read_text()).get("held_against") == "chosen" else "SFT"


def _cells(row: dict[str, str]) -> list[str]:
    def interval(name: str, low: str, high: str) -> str:
        if not row[name]:
            return ""
        around = f" [{float(row[low]):.2f}, {float(row[high]):.2f}]" if row[low] else ""
        return f"{float(row[name]):.2f}{around}"

    spread = 1.96 * float(row["kl_se"])
    return [
        interval("reward", "reward_low", "reward_high"),
        f"{float(row['kl']):.2f} ± {spread:.2f}",
        f"{float(row['length']):.1f}",
        interval("win_rate", "win_low", "win_high"),
    ]
