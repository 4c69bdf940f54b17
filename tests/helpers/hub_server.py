"""A local server with the Hub's protocol: repositories, their file lists and files, and failures on demand."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from conftest import MINI
from prefdag.cli.main import main
from prefdag.config.loading import merge

DATA = {"source": "hub:some/pairs", "train": "data/train.jsonl.gz", "test": "data/test-*.jsonl", "world": None}
SUITE = {"data": DATA, "prepare": {"adapter": "pairs"}, "pairs": None, "score": {"reward": "trained"}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = re.compile(r"/api/(?P<kind>datasets|models)/(?P<name>[\w.-]+/[\w.-]+)(?:/revision/(?P<revision>[\w.%-]+))?")
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[\w.-]+)/(?P<file>.+)")


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Files at one commit. lfs: names of those that are large ones; token: what a request must bring."""

    files: dict[str, bytes]
    lfs: frozenset[str] = frozenset()
    commit: str = COMMIT
    token: str | None = None


@dataclass
class Hub:
    """The server's state. faults: for a path that ends so, what the next requests get: a status, or `cut`."""

    repositories: dict[tuple[str, str], Repository]
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    log: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    address: str = ""

    def cuts(self, path: str) -> bool:
        return any("cut" in faults for end, faults in self.faults.items() if path.endswith(end))

    def fault(self, path: str) -> int | str | None:
        pending = next((faults for end, faults in self.faults.items() if path.endswith(end) and faults), None)
        return pending.pop(0) if pending else None


@contextmanager
def serving(repositories: dict[tuple[str, str], Repository]) -> Iterator[Hub]:
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, folder: Path) -> None:
    """Point this process's Hub client at `address`, with its cache and token in `folder`."""
    from huggingface_hub import constants

    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(folder / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def write_suite(folder: Path, **changes: Any) -> Path:
    """Write the miniature suite on rows from the Hub, with `changes` merged over it."""
    path = folder / "configs/mini.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(merge(merge(yaml.safe_load(MINI), SUITE), changes)))
    return path


def lock(folder: Path, **changes: Any) -> int:
    """Run `prefdag lock` on that suite and return its exit code."""
    return main(["lock", str(write_suite(folder, **changes))])


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = urlsplit(self.path).path
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        fault = self.hub.fault(path) if body or not self.hub.cuts(path) else None
        if isinstance(fault, int):
            self._send(fault, b'{"error": "by the test"}')
            return
        match = API.fullmatch(path) or FILE.fullmatch(path)
        kind = "dataset" if match and (match["kind"] or "").startswith("datasets") else "model"
        repository = self.hub.repositories.get((kind, match["name"])) if match else None
        if match is None or repository is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})  # as the Hub says to who has no token
        elif repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif match["revision"] not in (None, "main", repository.commit):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif match.re is API:
            self._send(200, _about(match["name"], repository))
        elif match["file"] not in repository.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self._file(repository, match["file"], body, cut=fault == "cut")

    def _file(self, repository: Repository, name: str, body: bool, cut: bool) -> None:
        content = repository.files[name]
        digest = hashlib.sha256(content).hexdigest() if name in repository.lfs else git_sha1(content)
        about = {"X-Repo-Commit": repository.commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if begin:
            about["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._send(206 if begin else 200, content[begin:], about, body=body, cut=cut)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, body: bool = True, cut: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut


def _about(name: str, repository: Repository) -> bytes:
    siblings = [
        {
            "rfilename": file,
            "size": len(content),
            "blobId": git_sha1(content),
            **(
                {"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}}
                if file in repository.lfs
                else {}
            ),
        }
        for file, content in repository.files.items()
    ]
    return json.dumps({"id": name, "sha": repository.commit, "siblings": siblings, "tags": []}).encode()
