"""`prefdag runs`: whose table it prints where no folder is named."""

from pathlib import Path

import pytest

from prefdag.cli.main import main

COLUMNS = ("run", "reward", "reward_low", "reward_high", "kl", "kl_se", "length", "win_rate", "win_low", "win_high")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")
    return tmp_path


def finish(folder: Path, suite: str) -> None:
    table = folder / "results" / suite / "report/runs.csv"
    table.parent.mkdir(parents=True)
    table.write_text(f"{','.join(COLUMNS)}\ndpo-of-{suite},0.5,0.4,0.6,2,0.1,30,0.6,0.5,0.7\n")


def test_the_only_suite_needs_no_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(folder, "mine")
    (folder / "results/unfinished/sft").mkdir(parents=True)
    assert main(["runs"]) == 0
    assert "dpo-of-mine" in capsys.readouterr().out


def test_of_several_suites_one_is_to_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 2
    assert "results holds no finished suite; run one first" in capsys.readouterr().err
    finish(folder, "mine")
    finish(folder, "yours")
    assert main(["runs"]) == 2
    assert "results holds several suites; name one of results/mine, results/yours" in capsys.readouterr().err
    for named in ("results/yours", "yours"):
        assert main(["runs", named]) == 0
        assert "dpo-of-yours" in capsys.readouterr().out
