"""`prefdag track results/<suite>`: write a suite's journals into MLflow, once, or for as long as a workflow runs."""

import argparse
import signal
from pathlib import Path

from prefdag.tracking.sync import Writer


def main(argv: list[str]) -> int:
    """Exit code 0 when everything is written; `--follow` always gives 0, for tracking never fails a workflow."""
    parser = argparse.ArgumentParser(prog="prefdag track", description=__doc__)
    parser.add_argument("suite", type=Path, help="the suite's folder, results/<suite>")
    parser.add_argument(
        "--follow", action="store_true", help="go on till the process --parent is gone or SIGTERM comes"
    )
    parser.add_argument("--parent", type=int, metavar="PID", help="the workflow that is followed")
    parser.add_argument("--poll", type=float, default=2.0, metavar="SECONDS", help="pause between two looks (2)")
    arguments = parser.parse_args(argv)
    if arguments.follow != (arguments.parent is not None):
        parser.error("--follow and --parent PID belong together")
    writer = Writer(arguments.suite)
    if arguments.follow:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too, and the jobs' last lines come after it
        writer.follow(arguments.parent, arguments.poll)
        return 0
    number = writer.replay()
    print(f"{number} runs of {arguments.suite.name} are in {writer.shown_uri}; `prefdag ui` shows them")
    return 0
