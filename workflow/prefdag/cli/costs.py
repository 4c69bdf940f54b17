"""Write time, memory and tokens of each finished job to costs.csv and costs.html."""

import argparse
import csv

from prefdag.cli.commands import options
from prefdag.errors import UserError
from prefdag.reporting.costs import COLUMNS, by_stage, costs
from prefdag.reporting.page import render_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "results")


def run(arguments: argparse.Namespace) -> int:
    """Write both files. They are no stage's output, because equal runs differ in them."""
    results = arguments.results
    rows = costs(results)
    if not rows:
        raise UserError(f"{results}: no journal of a finished job; run the suite first")
    with (results / "costs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    content = render_page({}, {}, "costs.html.jinja", suite=results.resolve().name, jobs=rows, stages=by_stage(rows))
    (results / "costs.html").write_text(content, encoding="utf-8")
    print(f"costs:   {results / 'costs.html'}")
    return 0
