"""Write a suite's journals into MLflow, once or while a workflow runs."""

import argparse
import signal

from prefdag.cli.commands import options
from prefdag.errors import UserError
from prefdag.tracking.sync import Writer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "results")
    parser.add_argument("--follow", action="store_true", help="go on until the process --parent ends or SIGTERM comes")
    parser.add_argument("--parent", type=int, metavar="PID", help="the workflow to follow")
    parser.add_argument("--poll", type=float, default=2.0, metavar="SECONDS", help="pause between two looks (2)")


def run(arguments: argparse.Namespace) -> int:
    """Return 0 when everything is written; with `--follow` 1 if not, which does not fail the workflow."""
    if arguments.follow != (arguments.parent is not None):
        raise UserError("prefdag track: --follow and --parent PID belong together; give both or neither")
    writer = Writer(arguments.results)
    if arguments.follow:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the jobs write their last lines after Ctrl-C
        return int(not writer.follow(arguments.parent, arguments.poll))
    number = writer.replay()
    print(f"{number} runs of {arguments.results.name} are in {writer.shown_uri}; `prefdag ui` shows them")
    return 0
