"""Plan a run of Snakemake: whose results these are, which have another name now, and which jobs have to run."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prefdag.config.suite import ExactSuite, Suite
from prefdag.planning.adapter_layers import adapter_doubts
from prefdag.planning.freshness import left_over_rounds, outdated, take_over_renamed
from prefdag.planning.machine import check_machine, is_dry_run
from prefdag.planning.suite_files import check_results, check_suite_files, record_suite_files
from prefdag.planning.suite_paths import check_paths
from prefdag.provenance.digests import Digests


def plan_run(suite: Suite | ExactSuite, results: Path, files: Sequence[str], digests: Digests) -> dict[str, list[str]]:
    """Return every job that has to run, with its reasons (see `freshness.outdated`).

    Results of renamed rows are moved first, except in a dry run or while another Snakemake is at work.

    Args:
        suite: the resolved suite.
        results: the suite's results folder.
        files: the suite files that the user named.
        digests: remembers the sha256 of files between plans.

    Raises:
        UserError: if the results are another user's or suite's, a path of the suite is wrong, or Slurm is absent.
    """
    check_results(results)
    check_suite_files(results, files)
    check_paths(suite, files[-1])
    check_machine(sys.argv[1:], os.environ)
    if not is_dry_run(sys.argv[1:]) and not any(Path(".snakemake/locks").glob("*")):
        for new, old in take_over_renamed(suite, results, digests).items():
            print(f"{new}: takes over the result of {old}, made with the same config, code and inputs", file=sys.stderr)
    for line in (*objectives_in_doubt(suite), *adapter_doubts(suite), *left_over_lines(suite, results)):
        print(line, file=sys.stderr)
    stale = outdated(suite, results, digests)
    if not stale:  # otherwise `onstart` records it
        record_suite_files(results, files)
    return stale


def objectives_in_doubt(suite: Suite | ExactSuite) -> list[str]:
    """Name the runs whose setting has no interior optimum, or optimises something else than its name says."""
    optima = {run.name: run.optimum for run in suite.runs} if isinstance(suite, Suite) else {}
    return [f"runs.{name}: {optimum.warning}" for name, optimum in optima.items() if optimum and optimum.warning]


def left_over_lines(suite: Suite | ExactSuite, results: Path) -> list[str]:
    """Say which rounds of each run have results although the suite no longer states them."""
    lines = []
    for run, rounds in left_over_rounds(suite, results).items():
        first, last = min(rounds), max(rounds)
        lines.append(
            f"{run}: results of round{f's {first} to' if first < last else ''} {last} are left over in {results}, and "
            f"nothing reads them; state `rounds: {last}` to use them, or delete the folders */{run}@*"
        )
    return lines
