"""The end of a workflow: what is waited for, Ctrl-C, and a slow writer against a server that does not answer."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefdag.tracking import waiting
from prefdag.tracking.waiting import wait_for_services

UNREACHABLE = "http://127.0.0.1:9"


def process(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", f"import os, time; {code}"])


def wait(tmp_path: Path, code: str, uri: str = "", patience: float = 30.0, name: str = "writer"):
    """Return the advice, the announcements and the seconds."""
    sentences: list[str] = []
    began = time.monotonic()
    with process(code) as one:
        try:
            uri = uri or f"sqlite:///{tmp_path}/x.db"
            advice = wait_for_services({name: one}, "results/toy", uri, sentences.append, patience)
        finally:
            seconds = time.monotonic() - began
            one.kill()
    return advice, sentences, seconds


def test_a_writer_that_ends_at_once_says_nothing(tmp_path: Path):
    assert wait(tmp_path, "pass", patience=120)[0] is None


def test_a_wait_is_announced_once_and_ctrl_c_ends_it_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting, "ANNOUNCED", 0.1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a stage in this process sets its own
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        advice, sentences, seconds = wait(tmp_path, "time.sleep(60)")
    finally:
        signal.signal(signal.SIGINT, before)
    assert advice == "MLflow: the runs are written by `prefdag track results/toy` later"
    assert sentences == ["waiting for the runs to be written into MLflow, at most 30 s; Ctrl-C ends the wait"]
    assert seconds < 20


@pytest.mark.parametrize("code", ["time.sleep(60)", "os.kill(os.getpid(), 15)"])
def test_a_slow_writer_is_not_called_unreachable(code: str, tmp_path: Path):
    """It has not ended in time, or the signal came before it listened for it."""
    advice = wait(tmp_path, code, patience=0.3 if "sleep" in code else 30.0)[0]
    assert str(advice).startswith("MLflow: the writer was slower than the wait")
    assert str(advice).endswith("; run `prefdag track results/toy`")


def test_a_server_that_does_not_answer_is_named(tmp_path: Path):
    advice = wait(tmp_path, "os._exit(1)", UNREACHABLE)[0]
    assert str(advice).startswith("MLflow: http://127.0.0.1:9 does not answer")
    assert str(advice).endswith("; run `prefdag track results/toy` once it is reachable")


def test_a_writer_that_failed_otherwise_names_its_log(tmp_path: Path):
    advice = wait(tmp_path, "os._exit(1)")[0]
    assert advice == (
        "MLflow lacks some of these runs (results/toy/.journal/writer.log says why); run `prefdag track results/toy`"
    )


def test_a_warm_start_server_that_does_not_end_says_nothing_of_mlflow(tmp_path: Path):
    assert wait(tmp_path, "time.sleep(60)", patience=0.3, name="warm")[0] is None
