"""Download a file from an http(s) address, check its sha256, and continue a download that was cut off."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from prefdag.errors import UserError
from prefdag.provenance.manifest import sha256_of

ATTEMPTS = 5
TIMEOUT_SECONDS = 30
BLOCK = 1 << 20

Progress = Callable[[int, int | None], None]


def download(address: str, sha256: str, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Download the file into `folder` and return its path; a partial file stays there for the next attempt.

    Args:
        address: the file's http(s) address.
        sha256: what the file must have.
        folder: where the file is written.
        progress: called with the number of bytes that are there, and that of the whole file if the server states it.

    Raises:
        UserError: the server refuses or cannot be reached, or the file has another sha256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (Path(unquote(urlsplit(address).path)).name or "file")
    partial = target.with_name(f"{target.name}.partial")
    if not target.is_file():
        for attempt in range(ATTEMPTS):
            reason = _attempt(address, partial, progress)
            if reason is None:
                break
            time.sleep(0.2 * 2**attempt)
        else:
            raise UserError(f"{address}: cannot be downloaded ({reason}); run again later, the download continues")
        partial.replace(target)
    if (actual := sha256_of(target)) != sha256:
        target.unlink()
        raise UserError(f"{address}: its sha256 is {actual}, not {sha256}; correct `sha256` or the address")
    return target


def _attempt(address: str, partial: Path, progress: Progress) -> str | None:
    """Request the missing part. Return None if the file is complete, else what went wrong for now."""
    size = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={size}-"} if size else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            # 206: the missing part; 200: the whole file, from a server that ignores ranges.
            with partial.open("ab" if answer.status == 206 else "wb") as stream:
                total = None if answer.length is None else stream.tell() + answer.length
                while block := answer.read1(BLOCK):
                    stream.write(block)
                    progress(stream.tell(), total)
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
