"""`prefdag show SUITE [MORE ...]`: the suite as resolved, defaults filled in, grid and seeds expanded."""

import argparse

import yaml

from prefdag.config.suite import read_suite


def main(argv: list[str]) -> int:
    """Print a suite as YAML; further files are merged over the first, as Snakemake's --configfile does."""
    parser = argparse.ArgumentParser(prog="prefdag show", description=main.__doc__)
    parser.add_argument("suite", nargs="+", help="configs/<suite>.yaml, and files merged over it")
    suite = read_suite(parser.parse_args(argv).suite)
    print(yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False, width=120), end="")
    return 0
