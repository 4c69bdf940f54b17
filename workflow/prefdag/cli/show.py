"""Print a suite as resolved: defaults filled in, grid and seeds expanded."""

import argparse

import yaml

from prefdag.cli.commands import options
from prefdag.config.suite import read_suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "suite")


def run(arguments: argparse.Namespace) -> int:
    suite = read_suite(arguments.suite)
    print(yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False, width=120), end="")
    return 0
