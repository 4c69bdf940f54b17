"""The Hub: a repository's commit and hashes for the lock, its files at that commit. Only `fetch` and `lock` come here.

Downloads lie in the Hub's own cache (`HF_HOME`). The client goes on with a file where a connection was cut; a job
that fails leaves the files that have come whole, and the next one takes them from there.
"""

import fnmatch
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefdag.config.hub_lock import Locked, Repository
from prefdag.errors import UserError
from prefdag.provenance.manifest import sha256_of

ATTEMPTS = 5


def lock_entry(repository: Repository) -> dict[str, Any]:
    """The lock's entry of a repository: what its revision is now. Raises `UserError` as `_sentences` does."""
    with _sentences(repository):
        about = _about(repository)
    files = {}
    for file in getattr(about, "siblings", None) or []:
        digest = {"sha256": file.lfs.sha256} if file.lfs else {"git_sha1": file.blob_id}
        files[file.rfilename] = {"size": file.size, **digest}
    assert about.sha is not None
    return {"commit": about.sha, "files": files}


def _about(repository: Repository) -> Any:
    """What the Hub says of a repository; asked again, ever later, where it is busy (429, 5xx)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    asked: dict[str, Any] = {"repo_type": repository.kind, "revision": repository.revision, "files_metadata": True}
    for attempt in range(1, ATTEMPTS):
        try:
            return HfApi().repo_info(repository.name, **asked)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status != 429 and status < 500:
                raise
        time.sleep(0.2 * 2**attempt)
    return HfApi().repo_info(repository.name, **asked)


def download(locked: Locked, patterns: tuple[str, ...]) -> dict[str, Path]:
    """The files of a locked repository that match, by name, each of the size and hash that the lock states.

    A file at hand is taken without asking the Hub. Raises `UserError` as `_sentences` does, and for a wrong hash.
    """
    from huggingface_hub import hf_hub_download

    repository = locked.repository
    names = [name for name in locked.files if any(matches(name, pattern) for pattern in patterns)]
    found = {}
    for name in sorted(names):
        with _sentences(repository):
            at = hf_hub_download(repository.name, name, repo_type=repository.kind, revision=locked.commit)
        found[name] = Path(at)
        _check(found[name], name, locked.files[name], repository)
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether a file's name fits a glob as `Path.glob` reads it: `*` stays within a folder, `**/` is any folders."""
    parts, wanted = name.split("/"), pattern.split("/")
    if "**" in wanted:
        at = wanted.index("**")
        rest = "/".join(wanted[at + 1 :])
        return parts[:at] == wanted[:at] and any(matches("/".join(parts[k:]), rest) for k in range(at, len(parts)))
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _check(path: Path, name: str, stated: Mapping[str, Any], repository: Repository) -> None:
    kind, wanted = next((kind, stated[kind]) for kind in ("sha256", "git_sha1") if kind in stated)
    if path.stat().st_size == stated["size"] and wanted == (sha256_of if kind == "sha256" else git_sha1)(path):
        return
    blob = path.resolve()
    raise UserError(
        f"hub:{repository.name}: {name} is not the file that the lock states ({kind} differs); delete {blob}"
    )


def git_sha1(path: Path) -> str:
    """The hash that Git, and so the Hub, gives a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _sentences(repository: Repository) -> Iterator[None]:
    """Everything that goes wrong between us and the Hub, as a sentence."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, kind = f"hub:{repository.name}", repository.kind
    try:
        yield
    except GatedRepoError:
        raise UserError(f"{name}: gated; accept its terms on the Hub and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise UserError(f"{name}: has no revision {repository.revision or 'at the locked commit'!r}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such {kind} on the Hub, or it is private; check the name or set HF_TOKEN"
        ) from None
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError by name, but the Hub gave no answer
        raise _unanswered(name, error.__cause__ or error) from None
    except EntryNotFoundError:
        raise UserError(f"{name}: a locked file is no longer there at its commit; lock the suite anew") from None
    except (HTTPError, OSError) as error:
        raise _unanswered(name, error) from None


def _unanswered(name: str, error: BaseException) -> UserError:
    """The sentence for a Hub that refuses for now, or does not answer at all."""
    response = getattr(error, "response", None)
    if response is None:
        kind = type(error).__name__
        return UserError(
            f"{name}: the Hub cannot be reached ({kind}); check the network, files that came whole are kept"
        )
    status = response.status_code
    told = {429: "asks for fewer requests", 401: "asks for a token: set HF_TOKEN"}.get(status, "answers with an error")
    return UserError(f"{name}: the Hub {told} (HTTP {status}); run again later, files that came whole are kept")
