"""`prefdag doctor [SUITE ...]`: is this machine, or cluster, fit to run the suite? A line each, with the remedy."""

import argparse
from pathlib import Path

from prefdag.config.suite import read_suite
from prefdag.health import findings


def main(argv: list[str]) -> int:
    """Print what is found; exit code 1 if anything is an error."""
    parser = argparse.ArgumentParser(prog="prefdag doctor", description=main.__doc__)
    parser.add_argument("suite", nargs="*", default=["configs/quickstart.yaml"], help="as for prefdag show")
    suite = read_suite(parser.parse_args(argv).suite)
    failed = False
    for one in findings(suite, Path("results")):
        failed |= one.level == "error"
        remedy = f"; {one.remedy}" if one.remedy else ""
        print(f"{one.level:8} {one.topic:9} {one.what}{remedy}", flush=True)
    return int(failed)
