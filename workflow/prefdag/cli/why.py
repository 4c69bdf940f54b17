"""Explain why Snakemake would run each job: what is missing, or what changed from what to what.

A dry run of Snakemake lists the jobs; its records of the last run (.snakemake/metadata) say what each was made from.
"""

import argparse
import ast
import hashlib
import json
import re
import shlex
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

RECORDS = Path(".snakemake/metadata")
MAX_NAME = 254  # characters of a record's file name; Snakemake splits longer ones into folders
MAX_COMMITS = 200  # of a file, searched for the version that a job was run with


@dataclass(frozen=True)
class Planned:
    """A job of a dry run. command: its shell command. reason: as Snakemake states it."""

    stage: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    command: str
    reason: str

    @property
    def title(self) -> str:
        return " ".join(filter(None, [self.stage, self.name]))


def planned_jobs(output: str) -> list[Planned]:
    """Parse the jobs from the output of `snakemake -n --printshellcmds`, without `all`."""
    jobs = []
    blocks = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)(?:Shell command: (.*)\n)?", output, re.M)
    for stage, about, command in blocks:
        stated = dict(re.findall(r"^    (\w+): (.*)$", about, re.M))
        files = [tuple(filter(None, stated.get(key, "").split(", "))) for key in ("input", "output")]
        name = stated.get("wildcards", "").rpartition("=")[2]
        jobs.append(Planned(stage, name, files[0], files[1], command, stated.get("reason", "")))
    return [job for job in jobs if job.outputs]


def explain_jobs(jobs: list[Planned]) -> Iterator[tuple[Planned, list[str]]]:
    """Yield each job with its reasons, one line each: what is missing, what changed, which jobs it follows."""
    makers = {path: job for job in jobs for path in job.outputs}
    for job in jobs:
        before = dict.fromkeys(makers[path].title for path in job.inputs if path in makers)
        lines = [*_missing(job), *_changes(job, makers), *([f"after: {', '.join(before)}"] if before else [])]
        yield job, lines or [job.reason]


def _missing(job: Planned) -> Iterator[str]:
    lost = [path for path in job.outputs if not Path(path).exists()]
    if len(lost) == len(job.outputs) and _record(job) is None:
        yield "never run"
    else:
        yield from (f"missing: {path}" for path in lost)


def _record(job: Planned) -> dict[str, Any] | None:
    """Return what Snakemake recorded when it last made the job's outputs."""
    for path in job.outputs:
        name = urlsafe_b64encode(path.encode()).decode()
        parts = [name[start : start + MAX_NAME] for start in range(0, len(name), MAX_NAME)]
        file = RECORDS.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])
        if file.is_file():
            record: dict[str, Any] = json.loads(file.read_text())
            return record
    return None


def _changes(job: Planned, makers: Mapping[str, Planned]) -> Iterator[str]:
    record = _record(job)
    if record is None:
        return
    yield from _config_changes(_config_of(record["params"]), _config(shlex.split(job.command)))
    if "Code has changed" in job.reason:
        yield f"rule: the command of {job.stage} in its .smk file"
    yield from (f"no longer read: {path}" for path in sorted(set(record["input"]) - set(job.inputs)))
    yield from (f"newly read: {path}" for path in sorted(set(job.inputs) - set(record["input"])))
    for path, checksum in sorted(record["input_checksums"].items()):
        if path in job.inputs and path not in makers and (now := _checksum(path)) != checksum:
            yield f"changed: {path}" if now is None else f"changed: {path}{_lines_changed(path, checksum)}"


def _checksum(path: str) -> str | None:
    file = Path(path)
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" if file.is_file() else None


def _config_of(params: list[str]) -> dict[str, Any]:
    """Return the config among a record's parameters, which are Python literals."""
    for parameter in params:
        try:
            config = json.loads(ast.literal_eval(parameter))
        except (ValueError, SyntaxError, TypeError):
            continue
        if isinstance(config, dict):
            return config
    return {}


def _config(command: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(command[command.index("--config") + 1]) if "--config" in command else {}
    return config


def _config_changes(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Yield a line for every key whose value differs."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            inside = f"{key}.{name}" if key else str(name)
            yield from _config_changes(before.get(name), now.get(name), inside)
    elif before != now:
        yield f"config: {key}: {json.dumps(before)} -> {json.dumps(now)}"


@cache
def _lines_changed(path: str, checksum: str) -> str:
    """Return which lines differ from the version with that checksum, and how many were added and removed.

    Empty outside a Git repository.
    """
    for commit in _git("log", f"--max-count={MAX_COMMITS}", "--format=%H", "--", path).split():
        content = subprocess.run(["git", "show", f"{commit}:./{path}"], capture_output=True).stdout
        if f"sha256:{hashlib.sha256(content).hexdigest()}" == checksum:
            hunks = re.findall(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", _git("diff", "-U0", commit, "--", path), re.M)
            spans = [(int(start), int(start) + max(int(count or 1), 1) - 1) for start, count in hunks]
            places = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
            added, removed = _git("diff", "--numstat", commit, "--", path).split()[:2]
            return f" (+{added} -{removed} since {commit[:8]}, lines {places})"
    return " (Git does not have the earlier version)" if _git("rev-parse", "--git-dir") else ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="*", help="files to make, as for snakemake (default: the whole suite)")
    parser.add_argument("--configfile", nargs="+", default=[], help="as for snakemake")


def run(arguments: argparse.Namespace) -> int:
    """Run Snakemake dry, and print every job with what changed since its outputs were made."""
    configfile = ["--configfile", *arguments.configfile] if arguments.configfile else []
    command = [sys.executable, "-m", "snakemake", *arguments.target, "--dry-run", "--printshellcmds", "--quiet", "host"]
    done = subprocess.run([*command, *configfile], capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr, end="", file=sys.stderr)
        return done.returncode
    jobs = planned_jobs(done.stdout + done.stderr)
    if not jobs:
        print("nothing would run")
    for job, reasons in explain_jobs(jobs):
        print(job.title, *reasons, sep="\n  ")
    return 0
