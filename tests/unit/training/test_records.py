"""The progress lines of a training."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefdag.provenance.journal import Journal
from prefdag.training import records
from prefdag.training.records import Step, record_steps, time_left


@pytest.mark.parametrize(
    ("step", "first", "now", "text"),
    [
        (1, None, 100.0, ""),
        (11, (1, 100.0), 120.0, ", 2.6 min left"),  # 2 s a step, 79 to go
        (61, (51, 100.0), 110.0, ", 29 s left"),  # a resumed training knows the speed of this attempt alone
        (2, (1, 0.0), 100.0, ", 2.4 h left"),
        (90, (1, 100.0), 120.0, ""),
        (1, (1, 100.0), 120.0, ""),
    ],
)
def test_time_left_is_the_mean_speed_times_the_steps_to_go(
    step: int, first: tuple[int, float] | None, now: float, text: str
):
    assert time_left(step, 90, first, now) == text


def test_a_log_shows_the_time_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A training that continues at step 3 and takes 11 s a step; the end has no time left."""
    clock = [0.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: clock[0])

    def steps() -> Iterator[Step]:
        for number in range(3, 7):
            clock[0] += 11
            yield Step(number, 0.5, 1e-3, 1.0, 2, 10, {})

    journal = Journal(tmp_path / "journal.jsonl", root=tmp_path, stage="preference", name="dpo")
    record_steps(steps(), 6, journal, tmp_path / "curves.csv", "dpo")
    assert capsys.readouterr().err.splitlines() == [
        "dpo: step 3/6, loss 0.5000",
        "dpo: step 4/6, loss 0.5000, 22 s left",
        "dpo: step 5/6, loss 0.5000, 11 s left",
        "dpo: step 6/6, loss 0.5000",
    ]
