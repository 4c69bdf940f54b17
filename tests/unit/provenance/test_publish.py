"""A job's files are published whole: on disk before the manifest, which is the last to appear."""

import os
from pathlib import Path

import pytest

from prefdag.provenance.journal import Journal
from prefdag.provenance.manifest import describe, publish, read_manifest


def test_every_file_is_on_disk_before_the_manifest_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut there is no manifest whose files are missing or empty."""
    made, folder = tmp_path / "made", tmp_path / "folder"
    (made / "model").mkdir(parents=True)
    folder.mkdir()
    for name in ("model/a.safetensors", "model/b.json", "table.csv"):
        (made / name).write_text(name)
    events: list[tuple[str, str]] = []
    flush, replace = os.fsync, os.replace

    def fsync(file: int) -> None:
        events.append(("fsync", str(Path(f"/proc/self/fd/{file}").resolve().relative_to(tmp_path))))
        flush(file)

    def moved(source: Path, target: Path) -> None:
        events.append(("replace", str(Path(target).relative_to(tmp_path))))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", moved)
    publish(made, folder, describe(made, "sft", {}, {"stages/sft.py": "c0de"}, {}, {}))
    first = events.index(("replace", "folder/model"))
    flushed = {path for kind, path in events[:first] if kind == "fsync"}
    assert flushed == {"made/model", "made/model/a.safetensors", "made/model/b.json", "made/table.csv"}
    assert events[-2:] == [("fsync", "made/manifest.json"), ("replace", "folder/manifest.json")]
    read_manifest(folder / "manifest.json").check(lambda name: True)
    assert not made.exists()


def test_an_old_manifest_is_gone_while_files_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that dies between two files leaves no manifest that lists the files of the run before."""
    for content in ("old", "new"):
        (tmp_path / "made").mkdir()
        (tmp_path / "made/table.csv").write_text(content)
        if content == "new":
            monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                publish(tmp_path / "made", tmp_path, b"{}\n")
        else:
            publish(tmp_path / "made", tmp_path, b"{}\n")
            assert (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "manifest.json").exists()


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path, root=tmp_path, stage="sft")
    first.metrics(1, {"loss": 1.0})
    with pytest.raises(FileExistsError):
        Journal(path, root=tmp_path, stage="sft")
    first.metrics(2, {"loss": 0.5})
    assert len(path.read_text().splitlines()) == 2
