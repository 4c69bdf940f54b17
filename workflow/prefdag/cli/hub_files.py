"""Findings of `prefdag doctor`, and which locked files of the Hub are in its cache."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prefdag.config.data import HUB
from prefdag.config.hub_lock import Repository, read_lock, repositories
from prefdag.config.model import MODEL_FILES
from prefdag.config.reward_models.reward_set_jobs import further_rows
from prefdag.config.suite import ExactSuite, Suite
from prefdag.data.sources.hub import matches


@dataclass(frozen=True)
class Finding:
    """One line of output. remedy: what to do about a warning or an error."""

    level: Literal["ok", "warning", "error"]
    topic: str
    what: str
    remedy: str = ""


def hub_cache(suite: Suite | ExactSuite) -> Iterator[Finding]:
    """List the locked files that `fetch` has yet to download from the Hub."""
    if isinstance(suite, ExactSuite):
        return
    entries = read_lock(Path(suite.lock))
    reward = suite.reward.origin if suite.reward else None
    further = further_rows(suite)
    for repository in repositories(suite.data, suite.model, None, suite.sft.data, reward, further):
        name = f"{repository.kind} {repository.name}"
        if repository.key not in entries:
            yield Finding("warning", "hub", f"{name} is not in {suite.lock}", "`prefdag lock` writes it from the Hub")
            continue
        entry = entries[repository.key]
        wanted = _wanted(suite, repository, entry["files"])
        missing = [file for file in wanted if not _cached(repository, entry["commit"], file)]
        size = sum(entry["files"][file]["size"] for file in missing) / 1e9
        if missing:
            what = f"{len(missing)} of {len(wanted)} files ({size:.1f} GB) of {name} are not in the Hub's cache"
            remedy = "if jobs have no network, run `snakemake --until fetch` where there is one"
            yield Finding("warning", "hub", what, remedy)
        else:
            yield Finding("ok", "hub", f"{len(wanted)} files of {name} are in the Hub's cache")


def _wanted(suite: Suite, repository: Repository, files: Mapping[str, object]) -> list[str]:
    patterns: list[str] = list(MODEL_FILES)
    if repository.kind == "dataset":
        parts = [part for part in (suite.data, suite.sft.data, *further_rows(suite)) if part]
        sources = [source for part in parts for source in (*part.sources, part)]
        named = [one for one in sources if one.source == HUB + repository.name]
        patterns = [str(part) for one in named for part in (one.train, one.validation, one.test) if part]
    return [file for file in files if any(matches(file, pattern) for pattern in patterns)]


def _cached(repository: Repository, commit: str, file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository.name, file, repo_type=repository.kind, revision=commit), str)
