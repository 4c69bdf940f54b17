"""`prefdag why` before the first run, and after a part of it."""

from pathlib import Path

import pytest

from conftest import MINI
from prefdag.cli.main import main
from prefdag.config.suite import read_suite
from prefdag.planning.graph import jobs_of

SUITE = "mini.yaml"


@pytest.fixture(autouse=True)
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(SUITE).write_text(MINI)


def why(capsys: pytest.CaptureFixture[str], *names: str) -> list[str]:
    assert main(["why", SUITE, *names]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_suite_that_was_never_run_has_a_line_for_each_stage(capsys: pytest.CaptureFixture[str]):
    jobs = jobs_of(read_suite([SUITE]))
    first, *lines = why(capsys)
    assert first == f"{len(jobs)} jobs of stages that have never run:"
    numbers = {stage: int(number) for stage, number in map(str.split, lines)}
    assert numbers["preference"] == 3 and sum(numbers.values()) == len(jobs)
    assert list(numbers) == list(dict.fromkeys(job.partition("/")[0] for job in jobs))


def test_of_a_stage_that_ran_in_part_each_job_is_explained(capsys: pytest.CaptureFixture[str]):
    manifest = Path("results/mini/preference/dpo/manifest.json")
    manifest.parent.mkdir(parents=True)
    manifest.write_text("cut sho")
    lines = why(capsys, "judge/simpo")
    assert lines[:2] == ["preference simpo", "  never run"]  # the job that is there is not asked about
    assert any(line.split() == ["judge", "1"] for line in lines)
    lines = why(capsys)
    assert lines[lines.index("preference dpo") + 1] == f"  changed: {manifest}"
    assert not any(line.split()[:1] == ["preference"] and line.startswith(" ") for line in lines)
