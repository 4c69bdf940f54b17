"""Results that lead elsewhere, or belong to another user, are refused before anything is written."""

import os
from pathlib import Path

import pytest

from prefdag.errors import UserError
from prefdag.planning.suite_files import check_results
from prefdag.runtime.job_lock import hold_job_lock


def test_a_link_among_results_is_refused(tmp_path: Path) -> None:
    results = tmp_path / "disk/mini"
    (results / "sft").mkdir(parents=True)
    check_results(tmp_path / "absent")
    check_results(results)
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    check_results(tmp_path / "results/mini")
    for name in (".suite.json", "sft/model", "sft/log.txt"):
        (results / name).symlink_to(tmp_path / "precious")
        with pytest.raises(UserError, match=f"{name}: a symbolic link among results"):
            check_results(results)
        (results / name).unlink()


def test_results_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        check_results(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 0)  # root in a container sees files of the host's user
    check_results(tmp_path)


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    (tmp_path / ".running").mkdir()
    (tmp_path / ".running/sft").symlink_to(precious)
    with pytest.raises(UserError, match="a symbolic link where a lock belongs"), hold_job_lock(tmp_path, "sft"):
        pass
    assert precious.read_text() == "data"
