"""The Hub: a repository's files at one commit. Only `fetch` comes here."""

from pathlib import Path
from typing import Literal

from prefdag.errors import UserError


def snapshot(
    name: str, kind: Literal["dataset", "model"], revision: str | None, patterns: tuple[str, ...]
) -> tuple[Path, str]:
    """Download the files that match into the Hub's cache; returns the folder and the commit.

    Raises `UserError` for a repository that is missing, gated or out of reach.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        commit = HfApi().repo_info(name, repo_type=kind, revision=revision).sha
        folder = snapshot_download(name, repo_type=kind, revision=commit, allow_patterns=list(patterns))
    except GatedRepoError:
        raise UserError(f"hub:{name}: gated; accept its terms on the Hub and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise UserError(f"hub:{name}: has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"hub:{name}: no such {kind} on the Hub, or it is private; check the name or set HF_TOKEN"
        ) from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise UserError(f"hub:{name}: the Hub cannot be reached ({type(error).__name__}); check the network") from None
    assert commit is not None
    return Path(folder), commit
