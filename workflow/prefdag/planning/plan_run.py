"""Plan a run of Snakemake: whose results these are, which have another name now, and which jobs have to run."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from prefdag.config.suite import ExactSuite, Suite
from prefdag.planning.freshness import outdated, take_over_renamed
from prefdag.planning.suite_files import check_suite_files, record_suite_files
from prefdag.provenance.digests import Digests

DRY_RUN = re.compile(r"--dry-?run|-[A-Za-z]*n[A-Za-z]*")  # Snakemake itself knows it only after the rules are read


def plan_run(suite: Suite | ExactSuite, results: Path, files: Sequence[str], digests: Digests) -> dict[str, list[str]]:
    """Return every job that has to run, with its reasons (see `freshness.outdated`).

    Results of renamed rows are moved first, except in a dry run or while another Snakemake is at work.

    Args:
        suite: the resolved suite.
        results: the suite's results folder.
        files: the suite files that the user named.
        digests: remembers the sha256 of files between plans.

    Raises:
        UserError: if the results belong to another suite file.
    """
    check_suite_files(results, files)
    if not any(map(DRY_RUN.fullmatch, sys.argv[1:])) and not any(Path(".snakemake/locks").glob("*")):
        for new, old in take_over_renamed(suite, results, digests).items():
            print(f"{new}: takes over the result of {old}, made with the same config, code and inputs", file=sys.stderr)
    stale = outdated(suite, results, digests)
    if not stale:  # otherwise `onstart` records it
        record_suite_files(results, files)
    return stale
