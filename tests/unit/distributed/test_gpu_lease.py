"""A machine's GPUs, a job each: real processes that take, wait, end, and are killed."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, environment
from prefdag.distributed import gpu_lease
from prefdag.distributed.gpu_lease import devices
from prefdag.errors import UserError
from prefdag.runtime.warm_start import VARIABLE as WARM

# The package as it is but for the stages: one that runs a model (says the import), one that does not.
REAL = ("__init__", "__main__", "errors", "os_errors", "provenance/__init__")
REAL += (
    "cli/__init__",
    "cli/commands",
    "cli/console",
    "cli/main",
    "provenance/journal",
    "provenance/redaction",
    "provenance/sources",
    "distributed/__init__",
    "distributed/gpu_lease",
)
REAL += ("distributed/launch", "distributed/ranks", "runtime/__init__", "runtime/warm_start")
RUN = "def run(job, workspace): ...\n"
STAGE = """
import os, sys, time
from pathlib import Path

def run_stage(name, stage, config, paths, mark):
    began = time.time()
    mark.write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'all')} {os.getpid()}")
    time.sleep(float(config))
    with open(mark.parent / "ended", "a") as stream:
        print(os.environ.get('CUDA_VISIBLE_DEVICES'), began, time.time(), file=stream)
"""


class Machine:
    """Two pretended GPUs of names that no other machine has, and jobs that want one."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.gpus = [f"{uuid.uuid4()}" for _ in range(2)]
        self.variables = {**variables, "PREFDAG_GPUS": ",".join(self.gpus)}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, name: str, seconds: float = 600, stage: str = "model") -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "prefdag",
            stage,
            "--config",
            str(seconds),
            "--output",
            str(self.folder / name),
        ]
        job = subprocess.Popen(command, env=self.variables, stderr=subprocess.PIPE, text=True)
        self.started.append(job)
        return job

    def device(self, name: str) -> str:
        return self._mark(name)[0]

    def process(self, name: str) -> int:
        return int(self._mark(name)[1])

    def _mark(self, name: str) -> list[str]:
        deadline = time.monotonic() + 300
        while not self.runs(name):
            assert time.monotonic() < deadline, f"{name} never began"
            time.sleep(0.05)
        return (self.folder / name).read_text().split()

    def runs(self, name: str) -> bool:
        return (self.folder / name).exists() and bool((self.folder / name).read_text())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    made = {"runtime/stage": STAGE, "models/__init__": "", "models/loading": "", "stages/__init__": ""}
    made |= {"stages/rows": RUN, "stages/model": f"import prefdag.models.loading\n{RUN}"}
    for name in (*REAL, *made):
        path = folder / f"prefdag/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[name] if name in made else (ROOT / f"workflow/prefdag/{name}.py").read_text())
    return folder


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[Path]:
    """The process that local jobs are forked from, with nothing to import."""
    code = "import sys; from pathlib import Path; from prefdag.runtime import warm_start as warm; warm.IMPORTS = (); "
    code += "warm.serve(Path(sys.argv[1]), int(sys.argv[2]), 'prefdag.cli.main:main')"
    socket = package / "socket"
    command = [sys.executable, "-c", code, str(socket), str(os.getpid())]
    process = subprocess.Popen(command, env={**environment(), "PYTHONPATH": str(package)})
    while not socket.exists():
        assert process.poll() is None
        time.sleep(0.05)
    yield socket
    process.terminate()
    process.wait()


@pytest.fixture(params=["cold", "warm"])
def machine(request: pytest.FixtureRequest, package: Path, server: Path, tmp_path: Path) -> Iterator[Machine]:
    variables = {**environment(), "PYTHONPATH": str(package)}
    variables = {name: value for name, value in variables.items() if name != "CUDA_VISIBLE_DEVICES"}
    made = Machine(tmp_path, {**variables, **({WARM: str(server)} if request.param == "warm" else {})})
    yield made
    for job in made.started:
        job.kill()
        job.communicate()
    for gpu in made.gpus:
        Path("/dev/shm/prefdag-gpu-" + gpu).unlink(missing_ok=True)


def test_two_jobs_have_two_gpus_and_a_third_waits_for_the_first_to_be_killed(machine: Machine):
    first = machine.start("first")
    machine.device("first")
    machine.start("second")
    assert {machine.device("first"), machine.device("second")} == set(machine.gpus)
    third = machine.start("third")
    assert third.stderr is not None
    assert third.stderr.readline() == f"prefdag: waiting for a GPU, as {', '.join(machine.gpus)} are taken\n"
    time.sleep(1)
    assert not machine.runs("third")
    first.send_signal(signal.SIGKILL)
    assert machine.device("third") == machine.device("first")


def test_the_lease_is_the_jobs_own(machine: Machine):
    """Also of a forked job: its own process is killed, not the one that requested it."""
    machine.start("first")
    machine.device("first")
    machine.start("second")
    machine.device("second")
    machine.start("third")
    os.kill(machine.process("second"), signal.SIGKILL)
    assert machine.device("third") == machine.device("second")


def test_more_jobs_than_gpus_all_come_to_their_turn_and_none_shares(machine: Machine):
    jobs = [machine.start(str(number), seconds=0.3) for number in range(6)]
    assert [job.wait(timeout=300) for job in jobs] == [0] * 6
    turns = [line.split() for line in (machine.folder / "ended").read_text().splitlines()]
    assert len(turns) == 6
    for gpu in machine.gpus:
        held = sorted((float(began), float(ended)) for device, began, ended in turns if device == gpu)
        assert held, "each GPU had work"
        assert all(before[1] <= after[0] for before, after in zip(held, held[1:]))


def test_a_stage_without_a_model_leases_nothing(machine: Machine):
    for name in ("first", "second", "third"):
        machine.start(name, stage="rows")
        assert machine.device(name) == "all"


def test_a_slurm_job_with_one_gpu_has_it_already(machine: Machine):
    """Elsewhere on the node another job's only GPU may have the same number."""
    machine.variables |= {"SLURM_JOB_ID": "1", "PREFDAG_GPUS": machine.gpus[0]}
    machine.start("first")
    machine.start("second")
    assert (machine.device("first"), machine.device("second")) == ("all", "all")


def test_a_job_of_several_processes_takes_as_many_gpus(monkeypatch: pytest.MonkeyPatch):
    gpus = [str(uuid.uuid4()) for _ in range(3)]
    monkeypatch.setenv("PREFDAG_GPUS", ",".join(gpus))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # what was is noted now, and put back after the test
    for number, taken in ((2, gpus[:2]), (1, gpus[2:])):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        gpu_lease.take_gpus("sft", number)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(taken)
    with pytest.raises(UserError, match="sft: 4 processes on this machine need a GPU each, and it has 3"):
        gpu_lease.take_gpus("sft", 4)
    for gpu in gpus:
        Path("/dev/shm/prefdag-gpu-" + gpu).unlink()


def test_who_finds_too_few_free_holds_none_meanwhile(monkeypatch: pytest.MonkeyPatch):
    """Two of three are wanted and one is free: at the next look that one was to be had by another."""
    gpus, looks = [str(uuid.uuid4()) for _ in range(3)], []
    gpu_lease._lock(gpus, 2)

    def look(seconds: float) -> None:
        looks.append(gpu_lease._lock(gpus, 1))
        raise TimeoutError

    monkeypatch.setattr(gpu_lease.time, "sleep", look)
    with pytest.raises(TimeoutError):
        gpu_lease._lock(gpus, 2)
    assert looks == [gpus[2:]]
    for gpu in gpus:
        Path("/dev/shm/prefdag-gpu-" + gpu).unlink()


def test_which_devices_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert devices({"PREFDAG_GPUS": "0, 1", "CUDA_VISIBLE_DEVICES": "2"}) == ["0", "1"]
    assert devices({"PREFDAG_GPUS": "", "CUDA_VISIBLE_DEVICES": "2"}) == []
    assert devices({"CUDA_VISIBLE_DEVICES": "2,GPU-8f9a"}) == ["2", "GPU-8f9a"]
    assert devices({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    with pytest.raises(UserError, match="PREFDAG_GPUS: expected devices such as 0,1"):
        devices({"PREFDAG_GPUS": "0;1"})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices({}) == [], "no nvidia-smi, no GPUs"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert devices({}) == ["0", "1", "2"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert devices({}) == []
