"""`prefdag imdb`: the suite's files from the published archive, from a server or a file."""

import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prefdag.cli.main import main
from prefdag.data.sources import http

REVIEWS = {
    "train/neg/10_2": "Bad.", "train/neg/9_1": "Worse; caf\u00e9.", "train/pos/0_10": "Good.<br />",
    "test/neg/0_1": "No.",
    "test/pos/0_9": "Yes.", "train/unsup/1_0": "Who knows?", "train/unsup/0_0": "A film.",
}  # fmt: skip


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content), "/etc/passwd" if kind != tarfile.REGTYPE else ""
    return info, content


def packed(*further: tuple[tarfile.TarInfo, bytes], without: str = "") -> bytes:
    """Return the archive as it is published, at a small size, with further members."""
    members = [member("aclImdb/README", b"about"), member("aclImdb/train/labeledBow.feat", b"9 0:9")]
    members += [
        member(f"aclImdb/{name}.txt", text.encode())
        for name, text in REVIEWS.items()
        if not without or without not in name
    ]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for info, content in (*members, *further):
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


ARCHIVE = packed()


def imdb(source: str | Path, content: bytes) -> int:
    return main(["imdb", str(source), "out", "--sha256", hashlib.sha256(content).hexdigest()])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    return tmp_path


@pytest.fixture
def served() -> Iterator[tuple[str, list[str | None]]]:
    """A server whose first answer breaks off in the middle: its address, and the ranges that it was asked for."""
    ranges: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            ranges.append(wanted)
            content = ARCHIVE[int(wanted[6:-1]) if wanted else 0 :]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if wanted else content[: len(content) // 2])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/aclImdb_v1.tar.gz", ranges
    server.shutdown()
    server.server_close()


def rows(name: str) -> list[dict[str, object]]:
    with gzip.open(f"out/{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def test_a_download_continues_and_gives_the_files_of_the_suite(folder: Path, served: tuple[str, list[str | None]]):
    """Rows are in the order of their files' names, and texts are unchanged."""
    address, ranges = served
    assert imdb(address, ARCHIVE) == 0
    assert ranges == [None, f"bytes={len(ARCHIVE) // 2}-"]
    assert rows("train") == [
        {"id": "train/neg/10_2", "label": "neg", "rating": 2, "text": "Bad."},
        {"id": "train/neg/9_1", "label": "neg", "rating": 1, "text": "Worse; caf\u00e9."},
        {"id": "train/pos/0_10", "label": "pos", "rating": 10, "text": "Good.<br />"},
    ]
    assert [row["text"] for row in rows("unsup")] == ["A film.", "Who knows?"]
    assert [row["id"] for row in rows("test")] == ["test/neg/0_1", "test/pos/0_9"]
    assert imdb(address, ARCHIVE) == 0 and len(ranges) == 2, "what is there is not made again"


def test_a_file_gives_the_same_bytes(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("a.tar.gz").write_bytes(ARCHIVE)
    assert imdb("a.tar.gz", ARCHIVE) == 0
    assert "imdb: out/train.jsonl.gz: 3 reviews" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert sorted(before) == ["test.jsonl.gz", "train.jsonl.gz", "unsup.jsonl.gz"], "no partial file stays"
    Path("out/test.jsonl.gz").unlink()
    assert imdb("a.tar.gz", ARCHIVE) == 0
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            packed(member("aclImdb/train/pos/7_7.txt", kind=tarfile.SYMTYPE)),
            "aclImdb/train/pos/7_7.txt is no plain file",
        ),
        (
            packed(member("aclImdb/train/pos/7_7.txt", kind=tarfile.LNKTYPE)),
            "aclImdb/train/pos/7_7.txt is no plain file",
        ),
        (packed(member("aclImdb/train/neg/9_1.txt", b"x")), "holds aclImdb/train/neg/9_1.txt twice"),
        (packed(member("aclImdb/train/pos/7_7.txt", b"\xff")), "aclImdb/train/pos/7_7.txt is not UTF-8"),
        (packed(member("aclImdb/train/pos/7_7.txt", b" " * (2 << 20))), "is no plain file of at most 1,048,576 bytes"),
        (packed(without="unsup"), "no reviews at aclImdb/train/unsup; name the published aclImdb_v1.tar.gz"),
        (ARCHIVE[:-200], "not a whole .tar.gz"),
        (b"not an archive", "not a whole .tar.gz"),
    ],
)
def test_a_wrong_archive_is_a_sentence_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes, sentence: str
):
    Path("a.tar.gz").write_bytes(content)
    assert imdb("a.tar.gz", content) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1
    assert not Path("out").exists()


def test_no_member_is_written_outside_the_folder(folder: Path):
    """Paths that lead out of the archive are not reviews, and are not read."""
    content = packed(member("../aclImdb/train/pos/7_7.txt", b"x"), member("/tmp/aclImdb/train/pos/7_7.txt", b"x"))
    Path("a.tar.gz").write_bytes(content)
    assert imdb("a.tar.gz", content) == 0
    assert len(rows("train")) == 3 and sorted(path.name for path in folder.iterdir()) == ["a.tar.gz", "out"]


def test_another_hash_or_no_file_is_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("a.tar.gz").write_bytes(ARCHIVE)
    assert main(["imdb", "a.tar.gz", "out"]) == 2
    assert "download it again, or state --sha256 of another archive" in capsys.readouterr().err
    assert main(["imdb", "none.tar.gz"]) == 2
    assert "none.tar.gz is no file; name aclImdb_v1.tar.gz or its address" in capsys.readouterr().err
    assert main(["imdb", "a.tar.gz", "a.tar.gz"]) == 2
    assert "a.tar.gz is a file; name the folder to write to" in capsys.readouterr().err
    assert main(["imdb", "a.tar.gz", "out", "--sha256", "c0ffee"]) == 2
    assert "expected 64 hexadecimal digits, got 'c0ffee'" in capsys.readouterr().err
