"""Runs that share a process: forks of the one that has loaded the policy, and each on its own for all that."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Project, environment
from prefdag.warm import VARIABLE

INPUTS = {"policy": "sft", "comparisons": "prepare/comparisons", "reference": "reference/comparisons"}
PATIENCE = 300


@pytest.fixture
def variables(copy: Project) -> Iterator[dict[str, str]]:
    """The environment of a job below a warm server that runs beside `copy`."""
    own = {**environment(), "PYTHONPATH": str(copy.folder / "workflow")}
    socket = copy.folder / "w"
    server = subprocess.Popen([sys.executable, "-m", "prefdag.warm", str(socket), str(os.getpid())], env=own)
    while not socket.exists():
        assert server.poll() is None
        time.sleep(0.02)
    yield {**own, VARIABLE: str(socket), "PREFDAG_TOGETHER": "1"}
    server.terminate()
    server.wait()


def start(copy: Project, name: str, beta: float, variables: dict[str, str], **inputs: str) -> subprocess.Popen[str]:
    """A training of some seconds by its command, with its output in `again`."""
    config = {"objective": {"method": "dpo", "beta": beta}, "preference": {"batch_size": 2, "learning_rate": 1e-3}}
    config["preference"] |= {"epochs": 99, "max_steps": 240}
    read = [f"--{option}=results/mini/{folder}/manifest.json" for option, folder in {**INPUTS, **inputs}.items()]
    output = f"--output={variables.get('ROOT', 'again')}/preference/{name}/manifest.json"
    command = [sys.executable, "-m", "prefdag", "preference", f"--config={json.dumps(config)}", *read, output]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=copy.folder, env=variables, **pipes)


def process_of(copy: Project, name: str) -> int:
    """The process that trains, as its journal names it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for path in (copy.folder / "again/.journal").glob(f"preference-{name}-*.jsonl"):
            if line := path.read_text().partition("\n")[0]:
                return int(json.loads(line)["pid"])
        time.sleep(0.01)
    raise AssertionError(name)


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def holders(copy: Project) -> list[int]:
    """The processes that have loaded a policy for others."""
    return [int(path.read_text()) for path in (copy.folder / "again/.running").glob(".warm-*")]


def manifest(copy: Project, root: str, name: str) -> bytes:
    return (copy.folder / root / "preference" / name / "manifest.json").read_bytes()


def test_two_runs_are_forks_of_one_process_and_the_death_of_one_is_its_own(copy: Project, variables: dict[str, str]):
    jobs = {name: start(copy, name, beta, variables) for name, beta in (("a", 0.1), ("b", 1.0))}
    trainings = {name: process_of(copy, name) for name in jobs}
    (holder,) = holders(copy)
    assert {parent(parent(training)) for training in trainings.values()} == {holder}
    os.kill(trainings["a"], signal.SIGKILL)
    said, _ = jobs["a"].communicate(timeout=PATIENCE)
    assert jobs["a"].returncode == 137 and "was ended by SIGKILL, perhaps for its memory" in said
    said, _ = jobs["b"].communicate(timeout=PATIENCE)
    assert jobs["b"].returncode == 0, said
    again = start(copy, "a", 0.1, variables)
    assert again.wait(PATIENCE) == 0 and holders(copy) == [holder]
    cold = {name: value for name, value in variables.items() if not name.startswith("PREFDAG")} | {"ROOT": "cold"}
    for name, beta in (("a", 0.1), ("b", 1.0)):
        assert start(copy, name, beta, cold).wait(PATIENCE) == 0
        assert manifest(copy, "again", name) == manifest(copy, "cold", name)


def test_a_signal_reaches_the_run_and_it_goes_on_in_another(copy: Project, variables: dict[str, str]):
    job = start(copy, "a", 0.1, variables)
    process_of(copy, "a")
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 143 and "stopped by SIGTERM; the next run continues" in said
    assert start(copy, "a", 0.1, variables).wait(PATIENCE) == 0


def test_a_policy_that_cannot_be_loaded_is_the_runs_own_mistake(copy: Project, variables: dict[str, str]):
    (copy.folder / "results/mini/sft/model/model.safetensors").write_bytes(b"{}")
    job = start(copy, "a", 0.1, variables)
    said, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 2 and "results/mini/sft/model/model.safetensors" in said


def test_after_a_change_of_the_code_another_process_is_started(copy: Project, variables: dict[str, str]):
    assert start(copy, "a", 0.1, variables).wait(PATIENCE) == 0
    first = set(holders(copy))
    copy.edit("workflow/prefdag/loop.py", "PROBES = 10\n", "PROBES = 5\n")
    assert start(copy, "b", 0.1, variables).wait(PATIENCE) == 0
    assert len(holders(copy)) == 2 and first < set(holders(copy))


def test_a_suites_runs_share_one(finished: Project):
    """Unless a profile says otherwise; the three runs of the miniature suite start from one policy."""
    assert len(list((finished.folder / "results/mini/.running").glob(".warm-*"))) == 1
