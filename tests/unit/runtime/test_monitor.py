"""Samples of what a job takes of its machine, in its journal."""

import os
import time
from pathlib import Path

import psutil
import pytest

from prefdag.provenance.journal import Journal, open_journal, read_journal
from prefdag.runtime.monitor import ResourceMonitor, read_gpu, take_sample
from prefdag.tracking.records import Record


def test_a_job_is_sampled_while_it_runs(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "suite", "sft")
    with ResourceMonitor(journal, first=0.02):
        journal.metrics(7, {"loss": 1.0})
        deadline = time.monotonic() + 30
        while len(read_journal(journal.path)[0]) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    journal.metrics(None, {"result": 2.0})
    events, _ = read_journal(journal.path)
    samples = [event for event in events if event["event"] == "system"]
    assert [event["step"] for event in samples] == list(range(len(samples))) and len(samples) >= 3
    record = Record(journal.path)
    record.advance()
    by_name = {name: point for point in record.points for name in point.values}
    assert by_name["result"].step == 7, "a result has the last optimizer step, not at the last sample"
    mega = by_name["system/process_memory_usage_megabytes"].values["system/process_memory_usage_megabytes"]
    assert 10 < mega < psutil.virtual_memory().total / 1e6
    assert not any(point.measured for point in record.points if "result" not in point.values)


def test_names_are_those_that_mlflow_shows_apart() -> None:
    values = take_sample(psutil.Process())
    assert all(name.startswith("system/") for name in values)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= values.keys()


def test_an_answer_of_nvidia_smi() -> None:
    assert read_gpu("87, 40536, 312.50\n") == {
        "gpu_utilization_percentage": 87.0,
        "gpu_memory_usage_megabytes": 40536.0,
        "gpu_power_usage_watts": 312.5,
    }
    partly = read_gpu("5, 12, [N/A]\n9, 9, 9\n")
    assert partly == {"gpu_utilization_percentage": 5.0, "gpu_memory_usage_megabytes": 12.0}
    assert read_gpu("") == {}


def test_a_full_disk_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal: Journal = open_journal(tmp_path / "suite", "sft")
    journal.metrics(0, {"loss": 1.0})
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[: len(line) // 2]))
    with pytest.raises(OSError, match="No space left"):
        journal.metrics(1, {"loss": 2.0})
    monkeypatch.undo()
    journal.metrics(2, {"loss": 3.0})
    assert [event["step"] for event in read_journal(journal.path)[0]] == [0, 2]


def test_a_job_does_not_wait_for_a_sampler_that_never_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without memory for it, a new thread dies before its first line, silently."""
    monkeypatch.setattr("_thread.start_new_thread", lambda *arguments: 0)
    monkeypatch.setattr("threading._start_new_thread", lambda *arguments: 0)
    began = time.monotonic()
    with ResourceMonitor(open_journal(tmp_path, "sft"), first=0.02):
        pass
    assert time.monotonic() - began < 20
