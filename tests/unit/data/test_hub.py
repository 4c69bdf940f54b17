"""The Hub's real client against a local server: lock, fetch, resume, and every kind of failure."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, environment
from hub_server import COMMIT, DATA, Hub, Repository, git_sha1, lock, serving, use_hub, write_suite
from prefdag.cli.main import main
from prefdag.data.rows import read_rows
from prefdag.data.sources.hub import matches

ROWS = b"".join(json.dumps({"prompt": f"p{n}", "chosen": "a", "rejected": "b"}).encode() + b"\n" for n in range(5000))
PACKED = gzip.compress(ROWS, mtime=0)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n"
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{}",
    "big.bin": b"no",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A dataset and a model; the client of this process talks to them, with a separate cache, and never sleeps."""
    data = {"README.md": b"about", "data/train.jsonl.gz": PACKED, "data/test-0.jsonl": ROWS[:600].rpartition(b"\n")[0]}
    repositories = {
        ("dataset", "some/pairs"): Repository(data, frozenset({"data/train.jsonl.gz"})),
        ("model", "some/model"): Repository(dict(MODEL), frozenset({"model.safetensors", "big.bin"})),
    }
    with serving(repositories) as server:
        use_hub(monkeypatch, server.address, tmp_path)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


def fetch(folder: Path, **what: Any) -> int:
    (name,) = what
    config = json.dumps({**what, "lock": str(folder / "configs/mini.lock.json")})
    return main(["fetch", "--config", config, "--output", str(folder / f"out/fetch/{name}/manifest.json")])


def rows(folder: Path, split: str = "train") -> list[str]:
    return [row["prompt"] for row in read_rows(folder / f"out/fetch/data/{split}.jsonl")]


def test_a_branch_is_locked_once_and_then_fetched_as_it_was(hub: Hub, tmp_path: Path):
    """The lock holds the server's commit and hashes; after the branch has moved, the locked files are still fetched."""
    assert lock(tmp_path) == 0
    entries = json.loads((tmp_path / "configs/mini.lock.json").read_text())
    entry = entries["dataset some/pairs@main"]
    about = {"git_sha1": git_sha1(b"about"), "size": 5}
    assert (entry["commit"], entry["files"]["README.md"]) == (COMMIT, about)
    assert set(entry["files"]["data/train.jsonl.gz"]) == {"sha256", "size"}
    assert fetch(tmp_path, data=DATA) == 0
    assert (len(rows(tmp_path)), rows(tmp_path, "test")[:2]) == (5000, ["p0", "p1"])
    manifest = json.loads((tmp_path / "out/fetch/data/manifest.json").read_text())
    source = manifest["facts"]["sources"][0]["train"]
    assert source["commit"] == COMMIT
    assert source["files"] == {"data/train.jsonl.gz": entry["files"]["data/train.jsonl.gz"]["sha256"]}
    assert not [path for _, path, _ in hub.log if path.endswith("README.md")], "only what is named is fetched"

    num_requests = len(hub.log)
    hub.repositories["dataset", "some/pairs"].commit = "f" * 40
    assert lock(tmp_path) == 0
    assert json.loads((tmp_path / "configs/mini.lock.json").read_text()) == entries, "an entry is never changed"
    assert fetch(tmp_path, data=DATA) == 0
    assert len(hub.log) == num_requests, "a file in the cache needs no request"


def test_a_model_is_fetched_without_what_is_no_part_of_it(hub: Hub, tmp_path: Path):
    model = {"source": "hub:some/model"}
    assert lock(tmp_path, model={**model, "scratch": None}) == 0
    assert fetch(tmp_path, model=model) == 0
    folder = tmp_path / "out/fetch/model/model"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    hub.repositories["model", "some/model"].files["model.safetensors"] = POINTER


def test_nothing_is_fetched_that_is_not_locked(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert lock(tmp_path) == 0
    assert fetch(tmp_path, data={**DATA, "source": "hub:other/pairs"}) == 2
    assert "no entry for dataset other/pairs@main; `prefdag lock` writes it" in capsys.readouterr().err
    assert fetch(tmp_path, data={**DATA, "train": "*.csv"}) == 2
    assert "data.train: no file matches '*.csv' in hub:some/pairs" in capsys.readouterr().err


def test_a_download_cut_off_goes_on_where_it_was(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Cut, the client asks for the rest; cut for good, a sentence, and the next run asks only for the missing file."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    assert lock(tmp_path) == 0
    hub.faults["train.jsonl.gz"] = ["cut"] * 99
    assert fetch(tmp_path, data=DATA) == 2
    assert "complete files stay in the cache" in capsys.readouterr().err
    hub.faults["train.jsonl.gz"] = ["cut"] * 3
    num_requests = len(hub.log)
    assert fetch(tmp_path, data=DATA) == 0
    assert len(rows(tmp_path)) == 5000
    assert {path.rpartition("/")[2] for _, path, _ in hub.log[num_requests:]} == {"train.jsonl.gz"}
    begins = [int(wanted[6:-1]) for _, _, wanted in hub.log[num_requests:] if wanted]
    assert len(begins) == 3 and 0 < begins[0] < begins[1] < begins[2] < len(PACKED)


@pytest.mark.parametrize(("status", "message"), [(429, "asks for fewer requests"), (503, "answers with an error")])
def test_the_hub_is_asked_again_and_then_it_is_a_sentence(
    status: int, message: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """For the file list and for a file, a hundred failures are an error, and two are retried."""
    for path, work in (("some/pairs", lock), ("train.jsonl.gz", lambda folder: fetch(folder, data=DATA))):
        hub.faults[path] = [status] * 100
        assert work(tmp_path) == 2
        assert f"hub:some/pairs: the Hub {message}" in capsys.readouterr().err
        hub.faults[path] = [status] * 2
        assert (work(tmp_path), hub.faults.pop(path)) == (0, [])


def test_a_gated_repository_asks_for_a_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    hub.repositories["dataset", "some/pairs"].token = "hf_secret"
    assert lock(tmp_path) == 2
    assert "hub:some/pairs: gated; accept its terms on the Hub and set HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (lock(tmp_path), fetch(tmp_path, data=DATA)) == (0, 0)
    for path in [*tmp_path.glob("out/**/*.json*"), tmp_path / "configs/mini.lock.json"]:
        assert "hf_secret" not in path.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "hub:no/where"}, "hub:no/where: no such dataset on the Hub, or it is private; check the name"),
        ({"revision": "v9"}, "hub:some/pairs: has no revision 'v9'"),
    ],
)
def test_what_is_not_there_is_a_sentence(
    changes: dict[str, str], message: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert lock(tmp_path, data=changes) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "configs/mini.lock.json").exists()


def test_a_file_that_is_gone_or_another_is_refused(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of the same size and name with other bytes; then not there at all."""
    assert lock(tmp_path) == 0
    files = hub.repositories["dataset", "some/pairs"].files
    files["data/train.jsonl.gz"] = bytes(len(PACKED))
    assert fetch(tmp_path, data=DATA) == 2
    assert "data/train.jsonl.gz has another sha256 than the lock states; delete" in capsys.readouterr().err
    (tmp_path / "cache").rename(tmp_path / "old")
    del files["data/train.jsonl.gz"]
    assert fetch(tmp_path, data=DATA) == 2
    assert "a locked file no longer exists at its commit; lock the suite again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(POINTER, "a Git-LFS pointer, not the file itself"), (PACKED[:-90], "the archive is broken or cut short")],
)
def test_a_repository_may_hold_what_is_no_data(
    content: bytes, message: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hub.repositories["dataset", "some/pairs"].files["data/train.jsonl.gz"] = content
    assert (lock(tmp_path), fetch(tmp_path, data=DATA)) == (0, 2)
    assert message in capsys.readouterr().err


def test_without_a_network(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    assert lock(tmp_path) == 0
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    assert fetch(tmp_path, data=DATA) == 2
    assert "hub:some/pairs: the Hub cannot be reached" in capsys.readouterr().err
    (tmp_path / "configs/mini.lock.json").unlink()
    assert lock(tmp_path) == 2
    assert "hub:some/pairs: the Hub cannot be reached" in capsys.readouterr().err


def test_as_a_user_would_with_hf_endpoint(hub: Hub, tmp_path: Path):
    """Two commands in separate processes, nothing patched."""
    inside = {**environment(), "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    inside = {**inside, "PYTHONPATH": str(ROOT / "workflow"), "HF_HUB_OFFLINE": "0"}
    where = {"lock": os.path.relpath(write_suite(tmp_path), tmp_path)}
    config = json.dumps({"data": DATA, "lock": "configs/mini.lock.json"})
    for command in (["lock", where["lock"]], ["fetch", "--config", config, "--output", "out/fetch/data/manifest.json"]):
        done = subprocess.run(
            [sys.executable, "-m", "prefdag", *command], cwd=tmp_path, env=inside, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path)) == 5000


def test_globs_stay_within_a_folder():
    assert matches("a/train.jsonl", "*/train.jsonl") and not matches("a/b/train.jsonl", "*/train.jsonl")
    assert matches("a/b/train.jsonl", "**/train.jsonl") and matches("train.jsonl", "**/train.jsonl")
