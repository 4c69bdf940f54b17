"""A manifest is refused once it, or a file that it lists, is another one."""

import json
import os
from pathlib import Path

import pytest

from prefdag.errors import UserError
from prefdag.provenance.digests import Digests
from prefdag.provenance.manifest import MANIFEST, describe, publish, read_manifest, sha256_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published folder with one file, made from an address with a signature."""
    made, folder = tmp_path / "made", tmp_path / "folder"
    made.mkdir()
    folder.mkdir()
    (made / "table.csv").write_text("a,b\n1,2\n")
    config = {"source": "https://example.org/rows.csv?X-Amz-Signature=abcdef0123", "beta": 0.1}
    publish(made, folder, describe(made, "fetch", config, {}, {}, {}))
    return folder


def test_a_file_that_changed_is_refused(folder: Path) -> None:
    manifest = read_manifest(folder / MANIFEST)
    manifest.check(lambda name: True)
    (folder / "table.csv").write_text("a,b\n1,3\n")  # of the same size
    with pytest.raises(UserError, match="does not have the sha256"):
        manifest.check(lambda name: True)
    (folder / "table.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(UserError, match="missing, or not the file"):
        manifest.file("table.csv")


def test_an_edited_manifest_is_refused(folder: Path) -> None:
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    content["config"]["beta"] = 0.2
    path.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")
    with pytest.raises(UserError, match="was changed since it was written"):
        read_manifest(path)


def test_a_signature_is_not_published(folder: Path) -> None:
    assert "abcdef0123" not in (folder / MANIFEST).read_text()


def test_a_remembered_digest_is_of_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    digests = Digests(tmp_path / "digests.json")
    for number, text in enumerate(("one", "two")):
        path.write_text(text)
        os.utime(path, ns=(number, number))
        assert digests.of(path) == sha256_of(path)
