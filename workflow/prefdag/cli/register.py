"""Register a policy in MLflow's model registry."""

import argparse

from prefdag.cli.commands import options
from prefdag.cli.export import manifest_of
from prefdag.cli.exporting.model_card import suite_folder
from prefdag.tracking.sync import Writer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run's name, or sft")
    options(parser, "--results")
    parser.add_argument("--name", help="the registered model (default: the suite's name)")
    parser.add_argument("--alias", help="a name for this version, such as champion; it moves from any other version")
    parser.add_argument("--upload", action="store_true", help="also copy the weights into MLflow's artifact store")


def run(arguments: argparse.Namespace) -> int:
    """Bring MLflow up to date with the suite, then register the run's weights."""
    manifest = manifest_of(arguments.run, arguments.results)
    suite = suite_folder(manifest)
    writer = Writer(suite)
    name = arguments.name or suite.resolve().name
    version = writer.register(manifest, name, arguments.alias, arguments.upload)
    alias = f", alias {arguments.alias}" if arguments.alias else ""
    print(f"{arguments.run} is version {version} of {name}{alias}, in {writer.shown_uri}")
    return 0
