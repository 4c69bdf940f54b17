"""`prefdag lock SUITE [MORE ...]`: commit and file hashes of every Hub repository that a suite names, in its lock."""

import argparse
from pathlib import Path

from prefdag.config.hub_lock import read_lock, repositories, unlocked, write_lock
from prefdag.config.suite import read_ordinary_suite
from prefdag.data.sources.hub import resolve


def main(argv: list[str]) -> int:
    """Write what the lock does not state yet; an entry that stands there is never changed."""
    parser = argparse.ArgumentParser(prog="prefdag lock", description=main.__doc__)
    parser.add_argument("suite", nargs="+", help="configs/<suite>.yaml, and files merged over it")
    suite = read_ordinary_suite(parser.parse_args(argv).suite)
    path, wanted = Path(suite.lock), repositories(suite.data, suite.model, suite.classifier)
    missing = unlocked(path, wanted)
    found = {repository.key: resolve(repository) for repository in missing}
    if found:
        write_lock(path, {**read_lock(path), **found})
    for repository in wanted:
        commit = read_lock(path)[repository.key]["commit"]
        print(f"{path}: {repository.key} is {commit}{' (new)' if repository in missing else ''}")
    if not wanted:
        print(f"{suite.name}: nothing comes from the Hub, so there is nothing to lock")
    return 0
