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
from prefdag.config.suite import ExactSuite, Suite
from prefdag.errors import UserError
from prefdag.planning.graph import inputs_of, jobs_of
from prefdag.planning.local_files import files_of
from prefdag.provenance.digests import Digests
from prefdag.provenance.manifest import MANIFEST, Manifest, read_manifest
from prefdag.provenance.sources import code_digests

NEVER_RUN = "never run"
NAMED_BY_ROW = ("preference", "generate", "score", "judge")  # stages with a folder for each row of a suite


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
    codes: dict[tuple[str, tuple[Path, ...]], Mapping[str, str]] = {}
    stale: dict[str, list[str]] = {}
    for folder in jobs_of(suite):
        stage, _, rest = folder.partition("/")
        name = rest or None
        source = stage, jobs.user_files_of(suite, stage, name)
        if source not in codes:
            codes[source] = code_digests(*source)
        inputs = inputs_of(suite, stage, name)
        reasons = _reasons(suite, results, folder, codes[source], digests)
        before = dict.fromkeys(
            each.replace("/", " ") for folders in inputs.values() for each in folders if each in stale
        )
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
    never run is that job's result. Only folders that no job of the suite uses are moved.

    Args:
        suite: the resolved suite.
        results: the suite's results folder.
        digests: remembers the sha256 of files between plans.

    Returns:
        New folder below `results` -> old folder, in an order in which each comes after those that it reads.
    """
    moved = {}
    wanted = jobs_of(suite)
    for folder in wanted:
        stage, _, name = folder.partition("/")
        if stage not in NAMED_BY_ROW or (results / folder).exists():
            continue
        if not all((results / each / MANIFEST).is_file() for each in chain(*inputs_of(suite, stage, name).values())):
            continue
        code = code_digests(stage, jobs.user_files_of(suite, stage, name))
        for path in sorted((results / stage).glob(f"*/{MANIFEST}")):
            old = f"{stage}/{path.parent.name}"
            if old not in wanted and not _reasons(suite, results, folder, code, digests, path):
                path.parent.rename(results / folder)
                moved[folder] = old
                break
    return moved


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


def _reasons(
    suite: Suite | ExactSuite,
    results: Path,
    folder: str,
    code: Mapping[str, str],
    digests: Digests,
    at: Path | None = None,
) -> list[str]:
    """Reasons of the job itself, without those of the jobs that it reads. at: its manifest, if in another folder."""
    stage, _, rest = folder.partition("/")
    path = at or results / folder / MANIFEST
    if not path.exists():
        return [f"missing: {path}" if _has_results(path.parent) else NEVER_RUN]
    try:
        manifest = read_manifest(path)
    except UserError:
        return [f"changed: {path}"]
    expected = json.loads(config_of(suite, stage, rest or None, digests))
    reasons = list(config_changes(_restricted(manifest.content["config"], expected), expected))
    reasons += _changed_code(manifest.content["code"], code)
    return [*reasons, *_changed_inputs(suite, results, folder, manifest), *_damaged(manifest, digests)]


def _has_results(folder: Path) -> bool:
    """Whether a job's folder holds more than the logs of an attempt."""
    return folder.is_dir() and any(path.name not in ("log.txt", "benchmark.tsv") for path in folder.iterdir())


def _changed_code(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return a reason for each file of the code that says something else, came or went."""
    changed = [f"code: {name}" for name in sorted(now) if before.get(name, now[name]) != now[name]]
    added = [f"code: {name} (newly read)" for name in sorted(now.keys() - before.keys())]
    return [*changed, *added, *(f"code: {name} (no longer read)" for name in sorted(before.keys() - now.keys()))]


def _changed_inputs(suite: Suite | ExactSuite, results: Path, folder: str, manifest: Manifest) -> Iterator[str]:
    stage, _, rest = folder.partition("/")
    before = manifest.content["inputs"]
    now = {option: folders for option, folders in inputs_of(suite, stage, rest or None).items() if folders}
    for option in sorted(before.keys() | now.keys()):
        recorded = before.get(option, [])
        recorded = recorded if isinstance(recorded, list) else [recorded]
        current = [_digest_of(results / each / MANIFEST) for each in now.get(option, [])]
        # An input without a manifest is another job's reason to run.
        if None not in current and recorded != current:
            yield f"input: {option}: {', '.join(now.get(option, [])) or 'none'}, not what was read"


def _digest_of(path: Path) -> str | None:
    try:
        return read_manifest(path).sha256
    except UserError:
        return None


def _damaged(manifest: Manifest, digests: Digests) -> Iterator[str]:
    """Files that are missing, or are not what the manifest states."""
    for name, entry in manifest.content["files"].items():
        path = manifest.folder / name
        if not path.is_file():
            yield f"missing: {path}"
        elif path.stat().st_size != entry["size"] or digests.of(path) != entry["sha256"]:
            yield f"changed: {path}"


def _restricted(before: Any, now: Any) -> Any:
    """What a manifest states of the keys that a job is given now; the others are defaults, which its code states."""
    if isinstance(before, dict) and isinstance(now, dict):
        restricted = {key: _restricted(value, now[key]) for key, value in before.items() if key in now}
        # Unlike other keys, local files that are no longer there count.
        return restricted | ({"files": before["files"]} if before.get("files") else {})
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
