"""Find the jobs whose results no longer fit the suite, from the manifests alone.

A manifest states the config, the code and the inputs that a result was made from, and the sha256 of every file. A
result is current where all of them are what the job has now. Modification times and Snakemake's own records play no
part: copied results, a fresh clone or a deleted `.snakemake` rerun nothing and hide nothing.
"""

import json
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from prefdag.config import jobs
from prefdag.config.answer_sets import AnswerSet
from prefdag.config.suite import ExactSuite, Suite
from prefdag.errors import UserError
from prefdag.planning.graph import inputs_of, jobs_of
from prefdag.planning.local_files import files_of
from prefdag.provenance.digests import Digests
from prefdag.provenance.manifest import MANIFEST, Manifest, read_manifest
from prefdag.provenance.redaction import redact_addresses
from prefdag.provenance.sources import code_digests

NEVER_RUN = "never run"
LARGE = 1 << 26  # bytes of a file that a plan does not read unless it is newer than its manifest
# Stages with a folder for each row of a suite, or for each round of a row.
NAMED_BY_ROW = (
    "gold",
    "discriminator",
    "rating",
    "pairing",
    "reference",
    "preference",
    "policy",
    "online",
    "generate",
    "score",
    "judge",
    "choose",
    "selected",
)
LOGS = ("log.txt", "log.1.txt", "log.2.txt", "log.reserve", "benchmark.tsv")  # of attempts that may have failed


def outdated(suite: Suite | ExactSuite, results: Path, digests: Digests) -> dict[str, list[str]]:
    """Return every job that has to run, with its reasons.

    Args:
        suite: the resolved suite.
        results: the suite's results folder.
        digests: remembers the sha256 of files between plans.

    Returns:
        The job's folder below `results` -> its reasons, one line each, in an order in which the jobs could run. A job
        that reads the result of a listed job is listed as well.
    """
    check = _Check(suite, results, digests)
    stale: dict[str, list[str]] = {}
    for folder in jobs_of(suite):
        reasons = check.reasons(folder, results / folder / MANIFEST)
        read = chain(*check.inputs(folder).values())
        before = dict.fromkeys(each.replace("/", " ") for each in read if each in stale)
        if reasons or before:
            stale[folder] = [*reasons, *([f"after: {', '.join(before)}"] if before else [])]
    digests.save()
    return stale


def renew(marker: Path) -> None:
    """Write a file that outdated jobs read, newer than any result and with new content, as Snakemake may compare it."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(str(time.time_ns()))


def take_over_renamed(suite: Suite | ExactSuite, results: Path, digests: Digests) -> dict[str, str]:
    """Move the results of jobs whose row was renamed, or got seeds, to their new folders.

    A manifest does not contain its job's name, so a result whose config, code and inputs are those of a job that has
    never run is that job's result. A folder is moved if no job of the suite uses it, or if its job has to run again:
    the answers of a run's last round are those of round 3 once the run has more rounds.

    Args:
        suite: the resolved suite.
        results: the suite's results folder.
        digests: remembers the sha256 of files between plans.

    Returns:
        New folder below `results` -> old folder, in an order in which each comes after those that it reads.
    """
    check = _Check(suite, results, digests)
    moved: dict[str, str] = {}
    wanted = jobs_of(suite)
    stale = None
    for folder in wanted:
        stage = folder.partition("/")[0]
        if stage not in NAMED_BY_ROW or (results / folder).exists():
            continue
        if not all((results / each / MANIFEST).is_file() for each in chain(*check.inputs(folder).values())):
            continue
        for path in sorted((results / stage).glob(f"*/{MANIFEST}")):
            old = f"{stage}/{path.parent.name}"
            if check.reasons(folder, path):
                continue
            if old in wanted and stale is None:
                stale = outdated(suite, results, digests)
            if old not in wanted or old in (stale or {}):
                path.parent.rename(results / folder)
                moved[folder] = old
                break
    return moved


def left_over_rounds(suite: Suite | ExactSuite, results: Path) -> dict[str, set[int]]:
    """Return the rounds that have results and that no job of the suite makes, by the runs that they are of."""
    left: dict[str, set[int]] = {}
    for run in suite.runs if isinstance(suite, Suite) else ():
        last = run.rounds.rounds if run.rounds else 0
        folders = (path.parent for stage in NAMED_BY_ROW for path in results.glob(f"{stage}/{run.name}@*/{MANIFEST}"))
        sets = (AnswerSet.parse(folder.name) for folder in folders)
        if rounds := {one.round or one.samples or 0 for one in sets if (one.round or one.samples or 0) > last}:
            left[run.name] = rounds
    return left


def config_of(suite: Suite | ExactSuite, stage: str, name: str | None, digests: Digests) -> str:
    """Return the config of a job as `prefdag.config.jobs.config_of`, with the content of the local files that it reads.

    Args:
        suite: the resolved suite.
        stage: the stage's name.
        name: the job's name where the stage has several jobs.
        digests: remembers the sha256 of files between plans.
    """
    config = jobs.config_of(suite, stage, name)
    files = files_of(suite, stage, name, digests)
    return (
        json.dumps({**json.loads(config), "files": files}, sort_keys=True, separators=(",", ":")) if files else config
    )


class _Check:
    """Compare manifests with what jobs have now, reading each file of code and each manifest once."""

    def __init__(self, suite: Suite | ExactSuite, results: Path, digests: Digests) -> None:
        self.suite, self.results, self.digests = suite, results, digests
        self._codes: dict[tuple[str, tuple[Path, ...]], Mapping[str, str]] = {}
        self._manifests: dict[Path, Manifest | None] = {}

    def inputs(self, folder: str) -> dict[str, list[str]]:
        """Return the folders that a job reads, by option."""
        return inputs_of(self.suite, *_split(folder))

    def reasons(self, folder: str, path: Path) -> list[str]:
        """Return the job's own reasons to run, if its manifest is `path`; not those of the jobs that it reads."""
        if not path.exists():
            return [f"missing: {path}" if _has_results(path.parent) else NEVER_RUN]
        manifest = self._manifest(path)
        if manifest is None:
            return [f"changed: {path}"]
        stage, name = _split(folder)
        expected = redact_addresses(json.loads(jobs.config_of(self.suite, stage, name)))
        files = files_of(self.suite, stage, name, self.digests)
        before = manifest.content["config"]
        damages = (self._damage(path, file, entry) for file, entry in manifest.content["files"].items())
        return [
            *config_changes(_restricted(before, expected), expected),
            *_changes("file", before.get("files") or {}, files),
            *_changes("code", manifest.content["code"], self._code(stage, name)),
            *self._changed_inputs(folder, manifest),
            *filter(None, damages),
        ]

    def _manifest(self, path: Path) -> Manifest | None:
        """The manifest at a path, None if it is missing or damaged."""
        if path not in self._manifests:
            try:
                self._manifests[path] = read_manifest(path)
            except UserError:
                self._manifests[path] = None
        return self._manifests[path]

    def _code(self, stage: str, name: str | None) -> Mapping[str, str]:
        source = stage, jobs.user_files_of(self.suite, stage, name)
        if source not in self._codes:
            self._codes[source] = code_digests(*source)
        return self._codes[source]

    def _changed_inputs(self, folder: str, manifest: Manifest) -> Iterator[str]:
        before = manifest.content["inputs"]
        now = {option: folders for option, folders in self.inputs(folder).items() if folders}
        for option in sorted(before.keys() | now.keys()):
            recorded = before.get(option, [])
            recorded = recorded if isinstance(recorded, list) else [recorded]
            current = [self._manifest(self.results / each / MANIFEST) for each in now.get(option, [])]
            # An input without a manifest is a reason of the job that makes it.
            if None not in current and recorded != [one.sha256 for one in current if one]:
                yield f"input: {option}: {', '.join(now.get(option, [])) or 'none'}, not what was read"

    def _damage(self, manifest: Path, name: str, entry: Mapping[str, Any]) -> str | None:
        """Why a listed file is not the one that the manifest states, or None.

        A large file of the right size that is no newer than its manifest, which is written last, is not read: the jobs
        that load it verify its sha256.
        """
        path = manifest.parent / name
        if not path.is_file():
            return f"missing: {path}"
        status = path.stat()
        if status.st_size != entry["size"]:
            return f"changed: {path}"
        if status.st_size > LARGE and status.st_mtime_ns <= manifest.stat().st_mtime_ns:
            return None
        return None if self.digests.of(path) == entry["sha256"] else f"changed: {path}"


def _split(folder: str) -> tuple[str, str | None]:
    """A job's stage and name."""
    stage, _, name = folder.partition("/")
    return stage, name or None


def _has_results(folder: Path) -> bool:
    """Whether a job's folder holds more than the logs of an attempt."""
    return folder.is_dir() and any(path.name not in LOGS for path in folder.iterdir())


def _changes(kind: str, before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Yield a reason for each file whose content changed, that is newly read, or no longer read."""
    for name in sorted(before.keys() | now.keys()):
        if name not in before:
            yield f"{kind}: {name} (newly read)"
        elif name not in now:
            yield f"{kind}: {name} (no longer read)"
        elif before[name] != now[name]:
            yield f"{kind}: {name}"


def _restricted(before: Any, now: Any) -> Any:
    """What a manifest states of the keys that a job gets now; the others are defaults, which its code states."""
    if isinstance(before, dict) and isinstance(now, dict):
        return {key: _restricted(value, now[key]) for key, value in before.items() if key in now}
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [_restricted(*pair) for pair in zip(before, now, strict=True)]
    return before


def config_changes(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Yield every key whose value differs, from what to what."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            inside = f"{key}.{name}" if key else str(name)
            yield from config_changes(before.get(name), now.get(name), inside)
    elif before != now:
        yield f"config: {key}: {json.dumps(before)} -> {json.dumps(now)}"
