"""The Hub: a repository's commit and hashes for the lock, and its files at that commit, for `fetch` and `lock`.

Downloads go to the Hub client's cache (`HF_HOME`). The client continues files that were cut off; a job that fails
leaves complete files in the cache, and the next one uses them.
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
    """Return the lock's entry of a repository: its commit now, and the size and hash of each file."""
    with _hub_errors(repository):
        about = _about(repository)
    files = {}
    for file in getattr(about, "siblings", None) or []:
        digest = {"sha256": file.lfs.sha256} if file.lfs else {"git_sha1": file.blob_id}
        files[file.rfilename] = {"size": file.size, **digest}
    assert about.sha is not None
    return {"commit": about.sha, "files": files}


def _about(repository: Repository) -> Any:
    """Request a repository's description, again after growing pauses if the Hub is busy (429, 5xx)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    query: dict[str, Any] = {"repo_type": repository.kind, "revision": repository.revision, "files_metadata": True}
    for attempt in range(1, ATTEMPTS):
        try:
            return HfApi().repo_info(repository.name, **query)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status != 429 and status < 500:
                raise
        time.sleep(0.2 * 2**attempt)
    return HfApi().repo_info(repository.name, **query)


def download(locked: Locked, patterns: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of a locked repository that match, by name, and check their sizes and hashes.

    A file in the cache needs no request. Raises `UserError` if the Hub refuses, fails or sends another file.
    """
    from huggingface_hub import hf_hub_download

    repository = locked.repository
    names = [name for name in locked.files if any(matches(name, pattern) for pattern in patterns)]
    paths = {}
    for name in sorted(names):
        with _hub_errors(repository):
            path = hf_hub_download(repository.name, name, repo_type=repository.kind, revision=locked.commit)
        paths[name] = Path(path)
        _check(paths[name], name, locked.files[name], repository)
    return paths


def matches(name: str, pattern: str) -> bool:
    """Return whether a name matches a glob with the rules of `Path.glob`: `*` within a folder, `**/` any folders."""
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
        f"hub:{repository.name}: {name} has another {kind} than the lock states; delete {blob} and run again"
    )


def git_sha1(path: Path) -> str:
    """Return Git's hash of a file's content, which the Hub states for small files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _hub_errors(repository: Repository) -> Iterator[None]:
    """Turn errors of the Hub's client into a `UserError`."""
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
        raise UserError(
            f"{name}: has no revision {repository.revision or 'at the locked commit'!r}; correct `revision`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such {kind} on the Hub, or it is private; check the name or set HF_TOKEN"
        ) from None
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError, but the Hub did not answer
        raise _unavailable(name, error.__cause__ or error) from None
    except EntryNotFoundError:
        raise UserError(f"{name}: a locked file no longer exists at its commit; lock the suite again") from None
    except (HTTPError, OSError) as error:
        raise _unavailable(name, error) from None


def _unavailable(name: str, error: BaseException) -> UserError:
    """Return the error for a Hub that refuses for now, or does not answer."""
    response = getattr(error, "response", None)
    if response is None:
        kind = type(error).__name__
        return UserError(
            f"{name}: the Hub cannot be reached ({kind}); check the network; complete files stay in the cache"
        )
    status = response.status_code
    problem = {429: "asks for fewer requests", 401: "asks for a token: set HF_TOKEN"}.get(
        status, "answers with an error"
    )
    return UserError(f"{name}: the Hub {problem} (HTTP {status}); run again later, complete files stay in the cache")
