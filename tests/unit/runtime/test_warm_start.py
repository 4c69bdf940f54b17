"""Warm starts: a forked job does what a cold one does, and ends with its client."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, Project, environment
from prefdag.runtime import warm_start
from prefdag.runtime.warm_start import VARIABLE, ask, run_warm

STAGE = """
import os, signal, sys, time
import torch

def main(arguments):
    print("started with", *arguments, os.getcwd(), os.environ.get("MARK"), flush=True)
    print("aside", file=sys.stderr, flush=True)
    match arguments[0]:
        case "code":
            return int(arguments[1])
        case "raise":
            raise RuntimeError("boom")
        case "wait":
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(43))
            open(arguments[1], "w").write(str(os.getpid()))
            time.sleep(600)
"""
CLIENT = "import sys; from prefdag.runtime.warm_start import run_warm; sys.exit(run_warm(sys.argv[1:]))"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """Start a server of jobs that run `main` of another module, and return the environment of its clients."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "stand_in.py").write_text(STAGE)
    variables = {**environment(), "PYTHONPATH": f"{folder}:{ROOT / 'workflow'}"}
    command = [sys.executable, "-m", "prefdag.runtime.warm_start", str(folder / "socket"), str(os.getpid())]
    command.append("stand_in:main")
    process = subprocess.Popen(command, env=variables)
    while not (folder / "socket").exists():
        assert process.poll() is None
        time.sleep(0.05)
    yield folder, {**variables, VARIABLE: str(folder / "socket")}
    process.terminate()
    process.wait()


def client(variables: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", CLIENT, *arguments], env=variables, text=True, **pipes)


def test_a_job_has_its_clients_arguments_folder_environment_files_and_exit_code(server, tmp_path: Path):
    _, variables = server
    command = [sys.executable, "-c", CLIENT, "code", "7"]
    done = subprocess.run(command, env={**variables, "MARK": "x y"}, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (7, f"started with code 7 {tmp_path} x y\n", "aside\n")


def test_an_exception_shows_its_traceback_and_fails(server):
    _, variables = server
    out, err = (process := client(variables, "raise")).communicate()
    assert process.returncode == 1 and "RuntimeError: boom" in err and out.startswith("started with raise")


def test_a_signal_reaches_the_job(server, tmp_path: Path):
    process = waiting(server, tmp_path / "job")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 43


def test_a_killed_client_leaves_no_job_behind(server, tmp_path: Path):
    process = waiting(server, tmp_path / "job")
    job = int((tmp_path / "job").read_text())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 120
    while alive(job) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(job)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_killed_job_is_reported(number: signal.Signals, server, tmp_path: Path):
    """By the kernel for its memory, or by a library that aborts where it gets none."""
    process = waiting(server, tmp_path / "job")
    os.kill(int((tmp_path / "job").read_text()), number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert (
        f"the process that ran this job was ended by {number.name}, perhaps for its memory; rerun with more memory"
        in err
    )


def test_nothing_goes_to_a_server_of_another_user(server, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(warm_start, "peer", lambda connection: os.getuid() + 1)
    sent: list[bytes] = []
    monkeypatch.setattr(socket.socket, "sendall", lambda self, data: sent.append(data))
    monkeypatch.setattr(socket, "send_fds", lambda *arguments: sent.append(b"files"))
    assert ask(server[1][VARIABLE], ["code", "7"]) is None
    assert sent == [] and "belongs to another user" in caplog.text


def test_a_client_of_another_user_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours, theirs = socket.socketpair()
    assert warm_start.peer(ours) == os.getuid()
    monkeypatch.setattr(warm_start, "peer", lambda connection: os.getuid() + 1)
    monkeypatch.setattr(warm_start, "_receive", lambda client: pytest.fail("read from another user"))
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    warm_start._attend(ours, os.getpid(), "module:function")
    ours.close()
    theirs.close()


def waiting(server: tuple[Path, dict[str, str]], mark: Path) -> subprocess.Popen[str]:
    process = client(server[1], "wait", str(mark))
    while not (mark.exists() and mark.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    return process


def alive(job: int) -> bool:
    stat = Path(f"/proc/{job}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_without_a_server_the_caller_runs_the_command_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert run_warm(["sft"]) is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent"))
    assert run_warm(["sft"]) is None


def test_a_cold_job_writes_the_same_bits_as_a_warm_one(finished: Project, tmp_path: Path):
    """The finished run was forked; the same job by hand, in a process of its own, has an equal manifest."""
    results = finished.folder / "results/mini"
    made = json.loads((results / "preference/dpo/manifest.json").read_text())
    config = json.dumps(made["config"])
    inputs = {"policy": "sft", "comparisons": "prepare/comparisons", "reference": "reference/comparisons"}
    options = [f"--{name}={results / folder / 'manifest.json'}" for name, folder in inputs.items()]
    output = tmp_path / "mini/preference/dpo/manifest.json"
    command = [sys.executable, "-m", "prefdag", "preference", "--config", config, *options, f"--output={output}"]
    variables = {**environment(), "PYTHONPATH": str(finished.folder / "workflow")}
    subprocess.run(command, cwd=finished.folder, env=variables, check=True)
    assert json.loads(output.read_text()) == made
