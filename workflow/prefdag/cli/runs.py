"""Print the table of runs, the path of the report, and how to open MLflow."""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from prefdag.config.suite import read_suite
from prefdag.errors import UserError
from prefdag.evaluation.over_seeds import ONE_SEED
from prefdag.provenance.manifest import checked
from prefdag.tracking.environment import problem_with, tracking_uri

# Metrics of every suite; the table has columns for the first three alone.
COMMON = ("reward", "kl", "length", "k1", "k3", "distinct1", "distinct2", "trained", "untrained")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", type=Path, nargs="?", help="results/<suite>, or the suite's name (default: if there are no others)"
    )


def run(arguments: argparse.Namespace) -> int:
    results = arguments.results or _only_results(Path("results"))
    if results.is_file():  # a suite instead of its results
        results = Path("results", read_suite([str(results)]).name)
    elif not results.exists() and (named := Path("results") / results).is_dir():
        results = named
    path = results / "report" / "runs.csv"
    if not path.is_file():
        raise UserError(f"{path}: does not exist yet; run the suite first")
    table = Table(title=f"{results.name}: runs (95 % intervals over prompts)", title_justify="left")
    with checked(path).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    metrics = _further_metrics(rows[0]) if rows else []
    for column in ("run", "reward", "KL to SFT", "length", f"win rate vs {_against(results)}", *metrics):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for row in rows:
        table.add_row(row["run"], *_cells(row, metrics))
    console = Console(width=None if sys.stdout.isatty() else 110 + 24 * len(metrics))
    console.print(table)
    print(f"each row is {ONE_SEED}")
    print(f"report:  {results / 'report' / 'index.html'}")
    print(f"table:   {path}")
    print(f"MLflow:  {_where_runs_are(results)}")
    return 0


def _only_results(folder: Path) -> Path:
    """Return the one suite's results in a folder. Raises `UserError` if there are none, or several."""
    finished = sorted(path.parent.parent for path in folder.glob("*/report/runs.csv"))
    if len(finished) == 1:
        return finished[0]
    if not finished:
        raise UserError(f"runs: {folder} holds no finished suite; run one first, or name the folder of its results")
    raise UserError(f"runs: {folder} holds several suites; name one of {', '.join(map(str, finished))}")


def _where_runs_are(results: Path) -> str:
    """Return the command that opens MLflow, or its server's address, or the command that catches up."""
    uri = tracking_uri(results.resolve().parent)
    if problem := problem_with(uri):
        return f"prefdag track {results}  (when it is reachable: {problem})"
    return uri.rpartition("@")[2] if uri.startswith(("http:", "https:")) else "make ui"


def _against(results: Path) -> str:
    """Return what the judgements compare a run with."""
    path = next(results.glob("judge/*/summary.json"), None)
    return "chosen" if path and json.loads(checked(path).read_text()).get("held_against") == "chosen" else "SFT"


def _further_metrics(columns: Iterable[str]) -> list[str]:
    """Return the metrics that not every suite has, but for implicit rewards: the user's, and those added to `score`."""
    measured = [column.removesuffix("_se") for column in columns if column.endswith("_se")]
    return [name for name in measured if name not in COMMON and not name.startswith("implicit_")]


def _cells(row: dict[str, str], metrics: Sequence[str]) -> list[str]:
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
        *(interval(name, f"{name}_low", f"{name}_high") for name in metrics),
    ]
