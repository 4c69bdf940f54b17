"""A results folder belongs to one suite file."""

import json
from pathlib import Path

import pytest

from prefdag.cli.main import main
from prefdag.errors import UserError
from prefdag.planning.suite_files import RECORD, check_suite_files, record_suite_files

RESULTS = Path("results/mine")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "clone"
    (folder / "configs").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name in ("mine", "copy", "more"):
        Path(f"configs/{name}.yaml").write_text("name: mine\n")
    record_suite_files(RESULTS, [str(folder / "configs/mine.yaml")])
    return folder


def test_another_file_of_the_same_name_is_refused(clone: Path):
    check_suite_files(RESULTS, ["./configs/mine.yaml"])
    for files in (["configs/copy.yaml"], ["configs/mine.yaml", "configs/more.yaml"]):
        with pytest.raises(UserError, match="holds the results of configs/mine.yaml, .*; state another `name:`"):
            check_suite_files(RESULTS, files)


def test_a_renamed_file_and_a_moved_clone_keep_their_results(clone: Path, monkeypatch: pytest.MonkeyPatch):
    assert json.loads((RESULTS / RECORD).read_text()) == ["configs/mine.yaml"]
    moved = clone.rename(clone.parent / "moved")
    monkeypatch.chdir(moved)
    check_suite_files(RESULTS, ["configs/mine.yaml"])
    with pytest.raises(UserError):
        check_suite_files(RESULTS, ["configs/copy.yaml"])
    Path("configs/mine.yaml").rename("configs/renamed.yaml")
    check_suite_files(RESULTS, ["configs/renamed.yaml"])


def test_results_without_a_record_have_no_owner(clone: Path):
    for text in ("", "{}", "[1]"):
        (RESULTS / RECORD).write_text(text)
        check_suite_files(RESULTS, ["configs/copy.yaml"])
    (RESULTS / RECORD).unlink()
    check_suite_files(RESULTS, ["configs/copy.yaml"])


def test_why_refuses_too(clone: Path, capsys: pytest.CaptureFixture[str]):
    text = "{seed: 0, exact: {}, runs: [{name: dpo, method: dpo, beta: 0.1}], name: mine}"
    Path("configs/copy.yaml").write_text(text)
    assert main(["why", "configs/copy.yaml"]) == 2
    assert "results/mine holds the results of configs/mine.yaml" in capsys.readouterr().err
