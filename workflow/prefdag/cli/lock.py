"""Write the commit and file hashes of a suite's Hub repositories, and of wheels, to its lock file."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from prefdag.cli.commands import options
from prefdag.config.hub_lock import Repository, read_lock, repositories, unlocked, write_lock
from prefdag.config.reward_models.reward_set_jobs import further_rows
from prefdag.config.suite import read_ordinary_suite
from prefdag.data.sources.hub import lock_entry
from prefdag.data.sources.wheel import lock_wheel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options(parser, "suite")


def run(arguments: argparse.Namespace) -> int:
    """Add the missing entries. An existing entry never changes."""
    suite = read_ordinary_suite(arguments.suite)
    path = Path(suite.lock)
    reward = suite.reward.origin if suite.reward else None
    wanted = repositories(suite.data, suite.model, suite.classifier, suite.sft.data, reward, further_rows(suite))
    missing = unlocked(path, wanted)
    entries = {repository.key: _entry(repository) for repository in missing}
    if entries:
        write_lock(path, {**read_lock(path), **entries})
    for repository in wanted:
        commit = read_lock(path)[repository.key]["commit"]
        print(f"{path}: {repository.key} is {commit}{' (new)' if repository in missing else ''}")
    if not wanted:
        print(f"{suite.name}: nothing comes from the Hub or a package, so there is nothing to lock")
    return 0


def _entry(repository: Repository) -> dict[str, Any]:
    if repository.kind != "wheel":
        return lock_entry(repository)
    with tempfile.TemporaryDirectory() as folder:
        return lock_wheel(repository.name, Path(folder, "wheel"))
