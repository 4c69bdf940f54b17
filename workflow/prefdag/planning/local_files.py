"""The user's local files that a job of `fetch` reads, by content: an edit of one reruns what it touches."""

from collections.abc import Iterator
from pathlib import Path

from prefdag.config import jobs
from prefdag.config.adapter_folder import base_of_model
from prefdag.config.data import ADDRESS, HUB, Data, Source
from prefdag.config.fetched_repositories import repositories_of
from prefdag.config.hub_lock import read_lock
from prefdag.config.model import GGUF, MODEL_FILES, TOKENIZER_FILES
from prefdag.config.reward_models.reward_set_jobs import rows_of
from prefdag.config.suite import ExactSuite, Suite
from prefdag.provenance.digests import Digests

BUILT_IN = ("world", "mixed", "scratch")


def files_of(suite: Suite | ExactSuite, stage: str, name: str | None, digests: Digests) -> dict[str, str]:
    """Return the content of what a job reads from outside the results folder.

    Args:
        suite: the resolved suite.
        stage: the stage's name; only `fetch` reads such files.
        name: what is fetched: data, sft_data, model, tokenizer, classifier, reward or evaluated-<set>.
        digests: remembers the sha256 of files between plans.

    Returns:
        Path as the suite names it -> sha256, and Hub repository -> locked commit. A missing file is left out: the job
        names it in its error.
    """
    if stage != "fetch" or isinstance(suite, ExactSuite):
        return {}
    files = {str(path): digests.of(path) for path in _paths(suite, name or "") if path.is_file()}
    return files | _commits(suite, name or "")


def _paths(suite: Suite, name: str) -> Iterator[Path]:
    if data := rows_of(suite, name):
        for source in (*data.sources, data):
            yield from _rows(source)
    elif name == "tokenizer":
        yield from _folder(str(suite.model.tokenizer), TOKENIZER_FILES)
    elif name == "model":
        yield from _folder(suite.model.source, MODEL_FILES)
        yield from _folder(base_of_model(suite.model) or "scratch", MODEL_FILES)
    elif name == "reward" and suite.reward is not None and suite.reward.source is not None:
        yield from _folder(suite.reward.source.source, MODEL_FILES)
    elif suite.classifier is not None:
        yield from _folder(suite.classifier.source, MODEL_FILES)


def is_local(source: str) -> bool:
    """Whether a source is a path: neither the Hub, nor an address, nor built in."""
    return not (source in BUILT_IN or source.startswith(HUB) or ADDRESS.match(source))


def _rows(source: Source | Data) -> Iterator[Path]:
    """Every file of a local source that a split names; a file by itself is the training split."""
    if is_local(source.source):
        folder = Path(source.source)
        if folder.is_file():
            yield folder
        for pattern in source.named.values():
            yield from sorted(folder.glob(pattern))


def _folder(source: str, patterns: tuple[str, ...]) -> Iterator[Path]:
    if is_local(source) and source.endswith(GGUF):
        yield Path(source)
    elif is_local(source):
        for pattern in patterns:
            yield from sorted(Path(source).glob(pattern))


def _commits(suite: Suite, name: str) -> dict[str, str]:
    """Commits that the lock states for the repositories of one job."""
    if jobs.lock_of(suite, name) is None:
        return {}
    entries = read_lock(Path(suite.lock))
    wanted = repositories_of(suite, name)
    return {one.key: str(entries[one.key]["commit"]) for one in wanted if one.key in entries}
