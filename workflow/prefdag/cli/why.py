"""Explain why each job would run: what is missing, or what changed from what to what."""

import argparse
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prefdag.config.suite import ExactSuite, Suite, read_suite
from prefdag.errors import UserError
from prefdag.planning.freshness import NEVER_RUN, outdated
from prefdag.planning.graph import inputs_of, jobs_of
from prefdag.planning.plan_run import left_over_lines
from prefdag.planning.suite_files import check_suite_files
from prefdag.provenance.digests import Digests
from prefdag.provenance.manifest import MANIFEST, read_manifest
from prefdag.provenance.sources import PACKAGE, digest_of

DEFAULT_SUITE = "configs/quickstart.yaml"
VERSIONS = 200  # commits of a file that are searched for the version that a job ran with
CODE = "code: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", help=f"suite files (default: {DEFAULT_SUITE}), and jobs or their manifests")
    parser.add_argument("--configfile", nargs="+", default=[], help="suite files, as for snakemake")


def run(arguments: argparse.Namespace) -> int:
    """Print every job that would run, with what changed since its results were made; of new stages their number."""
    names = [*arguments.names, *arguments.configfile]
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    suite = read_suite(files or [DEFAULT_SUITE])
    results = Path("results") / suite.name
    check_suite_files(results, files or [DEFAULT_SUITE])
    reasons_by_job = outdated(suite, results, Digests(results / ".cache/digests.json"))
    wanted = needed_by(suite, [_folder(name, results, suite) for name in names if name not in files])
    jobs = [folder for folder in reasons_by_job if folder in wanted]
    for line in left_over_lines(suite, results):
        print(line)
    if not jobs:
        print("nothing would run")
    new = stages_never_run(reasons_by_job, jobs_of(suite))
    for folder in jobs:
        if _stage(folder) not in new:
            lines = [_with_lines(reason, results / folder) for reason in reasons_by_job[folder]]
            print(folder.replace("/", " "), *lines, sep="\n  ")
    if numbers := Counter(_stage(folder) for folder in jobs if _stage(folder) in new):
        print(f"{sum(numbers.values())} jobs of stages that have never run:")
        for stage, number in numbers.items():
            print(f"  {stage:<13} {number:>4}")
    return 0


def stages_never_run(reasons_by_job: Mapping[str, list[str]], jobs: Iterable[str]) -> set[str]:
    """Return the stages of which no job has ever run: a list of their jobs would explain nothing.

    Args:
        reasons_by_job: jobs that would run, with their reasons.
        jobs: all jobs of the suite.
    """
    jobs = list(jobs)
    tried = {_stage(folder) for folder in jobs if NEVER_RUN not in reasons_by_job.get(folder, ())}
    return {_stage(folder) for folder in jobs} - tried


def _stage(folder: str) -> str:
    return folder.partition("/")[0]


def needed_by(suite: Suite | ExactSuite, targets: Iterable[str]) -> set[str]:
    """Return the targets and every job that they depend on; all jobs of the suite where no target is named."""
    needed, waiting = set[str](), list(targets) or jobs_of(suite)
    while waiting:
        folder = waiting.pop()
        if folder not in needed:
            needed.add(folder)
            name = folder.partition("/")[2]
            waiting += [each for folders in inputs_of(suite, _stage(folder), name or None).values() for each in folders]
    return needed


def _folder(name: str, results: Path, suite: Suite | ExactSuite) -> str:
    """The job's folder below the results, from that folder, its path, or the path of its manifest."""
    folder = os.path.relpath(name, results) if Path(name).is_relative_to(results) else name
    folder = folder.removesuffix(f"/{MANIFEST}")
    if folder not in jobs_of(suite):
        raise UserError(f"{name}: no job of suite {suite.name}; name one such as `score/sft` or its manifest")
    return folder


def _with_lines(reason: str, folder: Path) -> str:
    """A reason; of code also which lines differ from the version that the job ran with, where Git has it."""
    name = reason.removeprefix(CODE)
    if not reason.startswith(CODE) or " (" in name:
        return reason
    before = read_manifest(folder / MANIFEST).content["code"][name]
    path = os.path.relpath(PACKAGE / name) if (PACKAGE / name).is_file() else name
    return f"{CODE}{path}{lines_changed(path, before)}"


def lines_changed(path: str, digest: str) -> str:
    """Return which lines of a file differ from its version with a digest: how many were added and removed, and where.

    Empty outside a Git repository.
    """
    for commit in _git("log", f"--max-count={VERSIONS}", "--format=%H", "--", path).split():
        content = subprocess.run(["git", "show", f"{commit}:./{path}"], capture_output=True).stdout
        if _has_digest(content, path, digest):
            hunks = re.findall(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", _git("diff", "-U0", commit, "--", path), re.M)
            added, removed = _git("diff", "--numstat", commit, "--", path).split()[:2]
            return f" (+{added} -{removed} since {commit[:8]}, lines {', '.join(_spans(hunks))})"
    return " (Git has no version of it as it was)" if _git("rev-parse", "--git-dir") else ""


def _has_digest(content: bytes, path: str, digest: str) -> bool:
    try:
        return digest_of(content, Path(path)) == digest
    except UserError:  # a commit with a syntax error
        return False


def _spans(hunks: Iterable[tuple[str, str]]) -> Iterator[str]:
    for start, count in hunks:
        last = int(start) + max(int(count or 1), 1) - 1
        yield start if int(start) == last else f"{start}-{last}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""
