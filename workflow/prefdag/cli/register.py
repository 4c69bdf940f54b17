"""`prefdag register RUN`: a chosen policy into MLflow's model registry; `--alias`, `--upload` of its weights."""

import argparse
from pathlib import Path

from prefdag.cli.export import manifest_of, suite_folder
from prefdag.tracking.sync import Writer


def main(argv: list[str]) -> int:
    """Write what MLflow lacks of the suite, then register the run's weights. Raises `UserError`."""
    parser = argparse.ArgumentParser(prog="prefdag register", description=__doc__)
    parser.add_argument("run", help="a run's name, or sft")
    parser.add_argument("--results", type=Path, help="results/<suite>; left out: the one that has the run")
    parser.add_argument("--name", help="the registered model (the suite's name); a chosen policy is a version of it")
    parser.add_argument("--alias", help="a name for this version, such as champion; it moves from any other version")
    parser.add_argument("--upload", action="store_true", help="copy the weights into MLflow's artifact store too")
    given = parser.parse_args(argv)
    manifest = manifest_of(given.run, given.results)
    suite = suite_folder(manifest)
    writer = Writer(suite)
    name = given.name or suite.resolve().name
    version = writer.register(manifest, name, given.alias, given.upload)
    alias = f", alias {given.alias}" if given.alias else ""
    print(f"{given.run} is version {version} of {name}{alias}, in {writer.shown_uri}")
    return 0
