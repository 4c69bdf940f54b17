"""A file behind an http(s) address, with its sha256 stated: downloaded once, and on from where it was cut off."""

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prefdag.errors import UserError
from prefdag.provenance.manifest import sha256_of

ATTEMPTS = 5
TIMEOUT_SECONDS = 30
BLOCK = 1 << 20


def download(address: str, sha256: str, folder: Path) -> Path:
    """The file, in `folder`; what has come of it stays there for the next attempt.

    Raises `UserError` when the server refuses, cannot be reached, or sends another file than `sha256` states.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (Path(unquote(urlsplit(address).path)).name or "file")
    partial = target.with_name(f"{target.name}.partial")
    if not target.is_file():
        for attempt in range(ATTEMPTS):
            reason = _attempt(address, partial)
            if reason is None:
                break
            time.sleep(0.2 * 2**attempt)
        else:
            raise UserError(f"{address}: cannot be downloaded ({reason}); run again later, what has come is kept")
        partial.replace(target)
    if (found := sha256_of(target)) != sha256:
        target.unlink()
        raise UserError(f"{address}: not the file that was stated: its sha256 is {found}, not {sha256}")
    return target


def _attempt(address: str, partial: Path) -> str | None:
    """One request for what is missing; None when all has come, else what went wrong and may go right again."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            # 206: what is missing; 200: the whole file, whatever was asked for.
            with partial.open("ab" if answer.status == 206 else "wb") as stream:
                while block := answer.read1(BLOCK):
                    stream.write(block)
            wanted, got = answer.headers.get("Content-Length"), answer.length
            return f"cut off, {got} of {wanted} bytes missing" if got else None
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return None
        if error.code not in (408, 429) and error.code < 500:
            raise UserError(f"{address}: the server refuses it (HTTP {error.code}); correct the address") from None
        return f"HTTP {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__
