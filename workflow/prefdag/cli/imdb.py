"""Make the files of the IMDb suites from the published archive of reviews.

The archive (80 MB) is downloaded, or read from a file, and checked against its sha256. FOLDER gets `unsup.jsonl.gz`,
`train.jsonl.gz` and `test.jsonl.gz`, with a review a line: id, label, rating and text. A download that is cut off
continues when the command runs again. Then run

    snakemake --configfile configs/imdb-scratch.yaml configs/local/imdb-files.yaml
"""

import argparse
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from prefdag.config.data import ADDRESS
from prefdag.data.imdb_archive import FILES, PUBLISHED, PUBLISHED_SHA256, read_reviews, write_rows
from prefdag.data.sources.http import download
from prefdag.errors import UserError
from prefdag.provenance.manifest import sha256_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", default=PUBLISHED, help="address or file (default: %(default)s)")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/imdb"), help="(default: %(default)s)")
    parser.add_argument("--sha256", default=PUBLISHED_SHA256, help="of another archive than the published one")


def run(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"imdb: {folder} is a file; name the folder to write to")
    if all((folder / name).is_file() for name in FILES):
        print(f"imdb: {folder} holds {', '.join(FILES)} already; remove one of them to make all again")
        return 0
    if not re.fullmatch("[0-9a-f]{64}", arguments.sha256):
        raise UserError(f"imdb --sha256: expected 64 hexadecimal digits, got {arguments.sha256!r}")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        archive = _archive(arguments.source, arguments.sha256, folder, bar)
        print(f"imdb: reading {archive}", flush=True)
        task = bar.add_task("reading", total=archive.stat().st_size)
        reviews = read_reviews(archive, lambda position: bar.update(task, completed=position))
    folder.mkdir(parents=True, exist_ok=True)
    for name, (split, labels) in FILES.items():
        rows = [row for label in labels for row in reviews[split, label]]
        write_rows(folder / name, rows)
        print(f"imdb: {folder / name}: {len(rows):,} reviews", flush=True)
    return 0


def _archive(source: str, sha256: str, folder: Path, bar: Progress) -> Path:
    """Return the archive's file, downloaded into `folder` if the source is an address. Raises `UserError`."""
    if ADDRESS.match(source):
        print(f"imdb: downloading {source}", flush=True)
        task: TaskID = bar.add_task("downloading", total=None)
        return download(source, sha256, folder, lambda done, total: bar.update(task, completed=done, total=total))
    archive = Path(source)
    if not archive.is_file():
        raise UserError(f"imdb: {source} is no file; name aclImdb_v1.tar.gz or its address")
    if (actual := sha256_of(archive)) != sha256:
        raise UserError(
            f"imdb: {source}: its sha256 is {actual}, not {sha256}; download it again, or state "
            "--sha256 of another archive"
        )
    return archive
