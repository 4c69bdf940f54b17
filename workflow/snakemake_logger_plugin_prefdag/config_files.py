"""Check the files of --configfile before Snakemake reads them: its own error names neither the file nor the line."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefdag.config.loading import read_yaml
from prefdag.errors import UserError


def check_config_files(words: Sequence[str]) -> None:
    """End Snakemake with one sentence and exit code 2 if a file cannot be read as a suite.

    The logger is the first of a project's code that Snakemake runs, before it reads these files.

    Args:
        words: Snakemake's command line.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", default=[])
    for path in parser.parse_known_args(words)[0].configfile:
        try:
            read_yaml(Path(path))
        except UserError as mistake:
            print(f"prefdag: {mistake}", file=sys.stderr, flush=True)
            sys.exit(2)
