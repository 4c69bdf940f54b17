"""Read the published archive of the Large Movie Review Dataset (Maas et al. 2011) without extracting it."""

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prefdag.errors import UserError

PUBLISHED = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
PUBLISHED_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
REVIEW = re.compile(r"(?:\./)?aclImdb/(train|test)/(neg|pos|unsup)/(\d{1,9})_(\d{1,2})\.txt")
MOST_BYTES = 1 << 20  # of a review; the longest of the published ones has 14 kB
# The files that are written, and the split and labels of their reviews.
FILES = {
    "unsup.jsonl.gz": ("train", ("unsup",)),
    "train.jsonl.gz": ("train", ("neg", "pos")),
    "test.jsonl.gz": ("test", ("neg", "pos")),
}

Row = dict[str, Any]
Key = tuple[str, str]  # split and label


def read_reviews(archive: Path, progress: Callable[[int], None] = lambda position: None) -> dict[Key, list[Row]]:
    """Return the reviews by split and label, in the order of their files' names.

    Members are read in memory and never written, so no path or link of the archive has an effect.

    Args:
        archive: a tar file, compressed by gzip.
        progress: called with the number of bytes of the archive that are read.

    Raises:
        UserError: the archive is damaged, has a review twice, or holds none of some kind.
    """
    reviews: dict[Key, dict[str, Row]] = {(split, label): {} for split, labels in FILES.values() for label in labels}
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|gz") as members:
            for member in members:
                progress(raw.tell())
                match = REVIEW.fullmatch(member.name)
                if match is None or (match[1], match[2]) not in reviews:
                    continue
                of_kind, name = reviews[match[1], match[2]], f"{match[3]}_{match[4]}"
                if name in of_kind:
                    raise UserError(f"{archive}: holds {member.name} twice; download the published archive again")
                of_kind[name] = _row(member, members, archive, match)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{archive}: not a whole .tar.gz ({error}); download it again") from None
    for (split, label), of_kind in reviews.items():
        if not of_kind:
            raise UserError(f"{archive}: no reviews at aclImdb/{split}/{label}; name the published aclImdb_v1.tar.gz")
    return {key: [of_kind[name] for name in sorted(of_kind)] for key, of_kind in reviews.items()}


def _row(member: tarfile.TarInfo, members: tarfile.TarFile, archive: Path, match: re.Match[str]) -> Row:
    """Return one review as a row. Raises `UserError` for a link, an oversized file, or text that is not UTF-8."""
    if not member.isreg() or member.size > MOST_BYTES:
        raise UserError(f"{archive}: {member.name} is no plain file of at most {MOST_BYTES:,} bytes; download it again")
    stream = members.extractfile(member)
    assert stream is not None, "a plain file has content"
    try:
        text = stream.read().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{archive}: {member.name} is not UTF-8; download the archive again") from None
    split, label, number, rating = match.groups()
    return {"id": f"{split}/{label}/{number}_{rating}", "label": label, "rating": int(rating), "text": text}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as compressed JSON lines; equal rows give equal bytes, and a cut-off write leaves no file."""
    partial = path.with_name(f"{path.name}.partial")
    with (
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as stream,
    ):
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)
