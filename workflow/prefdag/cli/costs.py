"""`prefdag costs results/<suite>`: what each job cost, as costs.csv and costs.html beside the stages' folders."""

import argparse
import csv
from pathlib import Path

from prefdag.errors import UserError
from prefdag.reporting.costs import COLUMNS, by_stage, costs
from prefdag.reporting.page import render_page


def main(argv: list[str]) -> int:
    """Write time, memory and tokens of every finished job. They are no stage's output: equal runs differ in them."""
    parser = argparse.ArgumentParser(prog="prefdag costs", description=main.__doc__)
    parser.add_argument("results", type=Path, help="results/<suite>")
    results = parser.parse_args(argv).results
    rows = costs(results)
    if not rows:
        raise UserError(f"{results}: no journal of a finished job there; run the suite first")
    with (results / "costs.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    content = render_page({}, "costs.html.jinja", suite=results.resolve().name, jobs=rows, stages=by_stage(rows))
    (results / "costs.html").write_text(content, encoding="utf-8")
    print(f"costs:   {results / 'costs.html'}")
    return 0
