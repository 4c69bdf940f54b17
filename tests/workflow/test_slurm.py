"""`snakemake --profile slurm` on a real Slurm, undisturbed and not: a job cancelled, out of time, on a node that dies.

The suite is run to its end on this machine first. Three copies of it then lack a training and what follows, make it on
the cluster at the same time, each on a node of its own, and must come to the very same manifests.
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from conftest import MINI, ROOT, Project, checkout
from slurm_cluster import Cluster, cluster, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")

STEPS = 60
CALLS = STEPS + 1  # of the loss: its value where policy and reference agree is taken once, before the first step
# DPO that notes which job and GPU takes a step. On the cluster it is slow until disturbed: in the first process of all.
LOSS = """
import os, time
import torch.nn.functional as F
from prefdag.models.logprobs import margin

def patient(policy, reference, beta: float = 0.1):
    with open("steps", "a+") as stream:
        print(os.getpid(), os.environ.get("SLURM_JOB_ID", "-"), file=stream, flush=True)
        stream.seek(0)
        if stream.readline().split()[0] == str(os.getpid()) and os.path.exists("slowly"):
            time.sleep(2)
    return -F.logsigmoid(beta * margin((policy - reference).total))
"""
SUITE = MINI.partition("runs:")[0].replace("reward: {batch_size: 8, learning_rate: 1e-3, max_steps: 6}\n", "")
SUITE = SUITE.replace(
    "preference: {batch_size: 2, epochs: 1, max_steps: 5,",
    f"preference: {{batch_size: 2, epochs: 99, max_steps: {STEPS},",
)
SUITE += "runs:\n  - {name: dpo, method: patient.py:patient}\n"
RESULTS = "results/mini"
TRAINING = f"{RESULTS}/preference/dpo/manifest.json"
GPU_STAGES, CPU_STAGES = {"preference", "generate", "score"}, {"judge", "report"}


@dataclass
class Scene:
    """A copy of the project whose workflow runs on the node, and partition, of its name."""

    name: str
    project: Project
    on: Cluster
    workflow: subprocess.Popen[bytes]

    def steps(self) -> list[str]:
        """Slurm's job of every training step so far."""
        path = self.project.folder / "steps"
        return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []

    def training(self) -> str:
        """Slurm's id of the training that has taken a few steps."""
        self.on.wait(
            lambda: self.workflow.poll() is not None or len(self.steps()) > 3, f"training\n{self.output()}", 180
        )
        assert self.workflow.poll() is None, self.output()
        return self.steps()[-1]

    def finished(self) -> list[str]:
        """Wait for the workflow's end; the jobs that took a step, in their order."""
        assert self.workflow.wait(timeout=300) == 0, self.output()
        return list(dict.fromkeys(self.steps()))

    def output(self) -> str:
        return (self.project.folder / "snakemake.log").read_text()[-3000:]

    def equals(self, local: Project) -> bool:
        """Whether every manifest here is the local run's, byte for byte."""
        paths = sorted((self.project.folder / RESULTS).rglob("manifest.json"))
        assert self.project.folder / TRAINING in paths
        return all(
            path.read_bytes() == (local.folder / path.relative_to(self.project.folder)).read_bytes() for path in paths
        )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The suite, run to its end on this machine."""
    project = checkout(tmp_path_factory.mktemp("local") / "prefdag")
    (project.folder / "configs/mini.yaml").write_text(SUITE)
    (project.folder / "configs/patient.py").write_text(LOSS)
    done = project.snakemake()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len((project.folder / "steps").read_text().splitlines()) == CALLS
    (project.folder / "steps").unlink()
    return project


@pytest.fixture(scope="module")
def scenes(local: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Scene]]:
    """Three workflows at once, each disturbed in mid-training: by `scancel`, by its time limit, by its node's death."""
    with cluster({"cancelled": 2, "limited": 1, "lost": 1}) as running:
        begun: dict[str, Scene] = {}
        try:
            for name in running.nodes:
                begun[name] = _begin(name, local, running, tmp_path_factory.mktemp(name) / "prefdag")
            running.ask("scancel", begun["cancelled"].training())
            begun["lost"].training()
            running.stop_node("lost")
            running.start_node("lost")
            yield begun
        finally:
            for scene in begun.values():
                scene.workflow.kill()
                scene.workflow.wait()


def _begin(name: str, local: Project, running: Cluster, folder: Path) -> Scene:
    """`cancelled` makes everything from the training on, and generations of the base model at the same time."""
    shutil.copytree(local.folder, folder, symlinks=True)
    redone = ["preference/dpo", "generate/dpo", "score/dpo", "judge/dpo", "report"]
    for path in (*redone, "generate/base", "score/base") if name == "cancelled" else redone:
        shutil.rmtree(folder / RESULTS / path)
    (folder / "slowly").touch()
    site = {"PREFDAG_SLURM_PARTITION": name}
    if name == "limited":
        site |= {"PREFDAG_SLURM_MINUTES": "2", "PREFDAG_SLURM_NOTICE": "30"}
    target = [] if name == "cancelled" else [TRAINING]
    workflow = running.snakemake(folder, *target, **site)
    return Scene(name, Project(folder), running, workflow)


def test_a_cancelled_training_continues_and_the_suite_comes_to_its_end(scenes: dict[str, Scene], local: Project):
    scene = scenes["cancelled"]
    assert len(scene.finished()) == 2
    assert len(scene.steps()) == CALLS, "every step was taken once"
    assert scene.equals(local)


def test_model_stages_have_a_gpu_each_and_the_others_none(scenes: dict[str, Scene]):
    """CUDA_VISIBLE_DEVICES as the tasks had it; `generate` of the base model ran at the same time as the training."""
    scene = scenes["cancelled"]
    trainings = scene.finished()
    devices = scene.on.devices()
    stages = {job: comment.removeprefix("rule_").split("_")[0] for job, comment in scene.on.jobs("cancelled").items()}
    assert {job for job, stage in stages.items() if stage == "preference"} == set(trainings)
    assert {job for job in stages if devices[job] <= {"0", "1"}} == {job for job in stages if stages[job] in GPU_STAGES}
    assert {job for job in stages if devices[job] == {"none"}} == {job for job in stages if stages[job] in CPU_STAGES}
    assert set(stages.values()) == GPU_STAGES | CPU_STAGES
    assert set().union(*devices.values()) == {"0", "1", "none"}


def test_the_time_limit_is_announced_and_the_next_attempt_continues(scenes: dict[str, Scene], local: Project):
    """Two minutes, announced 30 to 60 seconds ahead: the state is saved before the job would be killed."""
    scene = scenes["limited"]
    jobs = scene.finished()
    assert len(jobs) == 2
    assert "limited|FAILED" in scene.on.ask(
        "squeue", "--noheader", "--states=all", f"--jobs={jobs[0]}", "--format=%P|%T"
    )
    assert len(scene.steps()) == CALLS, "every step was taken once"
    log = scene.project.folder / f".snakemake/slurm_logs/rule_preference/dpo/{jobs[0]}.log"
    assert "prefdag: stopped by SIGTERM" in log.read_text(), (
        "the shell and `record` got the signal too, and waited for it"
    )
    assert scene.equals(local)


def test_a_lost_node_puts_its_job_back_in_the_queue(scenes: dict[str, Scene], local: Project):
    """Nothing could be saved. Slurm starts the same job again, and Snakemake never knows."""
    scene = scenes["lost"]
    assert len(scene.finished()) == 1
    assert len(scene.steps()) > CALLS
    assert "Trying to restart" not in scene.output()
    assert scene.equals(local)


def test_two_nodes_run_one_training(local: Project, tmp_path: Path):
    """The `mpi` resource: srun starts torchrun on each node, one process each, by gloo. In one process, the same."""
    one, two = (Project(tmp_path / name / "prefdag") for name in ("one", "two"))
    for project, settings in ((one, "max_steps: 8"), (two, "processes: 2, nodes: 2, max_steps: 8")):
        shutil.copytree(local.folder, project.folder, symlinks=True)
        project.edit("configs/mini.yaml", f"epochs: 99, max_steps: {STEPS}", f"epochs: 99, {settings}")
    done = one.snakemake(TRAINING)
    assert done.returncode == 0, done.stderr[-3000:]
    with cluster({"n1": 1, "n2": 1}) as running:
        workflow = running.snakemake(two.folder, TRAINING, PREFDAG_SLURM_PARTITION="all")
        log = two.folder / RESULTS / "preference/dpo/log.txt"
        output = (two.folder / "snakemake.log").read_text
        assert workflow.wait(timeout=300) == 0, output()[-3000:] + (log.read_text() if log.exists() else "")
        (job,) = running.jobs("all")
        shape = running.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%D %N")
        assert shape.split()[0] == "2", shape
        assert (running.folder / "devices").read_text().splitlines().count(f"{job} 0") == 3, "the batch, a task a node"
    curves = [pd.read_csv(project.folder / RESULTS / "preference/dpo/curves.csv") for project in (one, two)]
    assert len(curves[0]) == 8 and (curves[0]["loss"] - curves[1]["loss"]).abs().max() < 1e-6
    assert (curves[0]["grad_norm"] / curves[1]["grad_norm"] - 1).abs().max() < 1e-4
    weights = [load_file(project.folder / RESULTS / "preference/dpo/model/model.safetensors") for project in (one, two)]
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]) < 1e-5


def test_two_nodes_run_one_program():
    with cluster({"n1": 1, "n2": 1}) as running:
        output = running.ask(
            "srun", "-N2", "--gpus-per-node=1", "sh", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
        )
        assert sorted(output.splitlines()) == ["n1 0", "n2 0"]
        doctor = [sys.executable, "-m", "prefdag", "doctor"]
        inside = {**running.environment, "PYTHONPATH": str(ROOT / "workflow")}
        output = subprocess.run(doctor, cwd=ROOT, env=inside, capture_output=True, text=True).stdout
        assert "squeue lists ended jobs for 300 s, no accounting\n" in output
        assert "warning  slurm     SLURM_CONF is set" in output
        assert "\nok       site " in output


def test_a_cluster_leaves_nothing_behind():
    """Not even when a test fails while a job runs."""
    met: list[Cluster] = []

    def fails() -> None:
        with cluster({"n1": 1}) as running:
            met.append(running)
            running.ask("sbatch", "--output=/dev/null", "--wrap", "sleep 1000")
            running.wait(lambda: bool(running.jobs("all", "running")), "the job")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not met[0].folder.exists()
    assert met[0].processes() == []


def test_a_stopped_cluster_ends_its_jobs(tmp_path: Path):
    """SIGTERM, as from a CI that is cancelled, leaves no daemon and no job behind."""
    job = f"echo $$ > {tmp_path}/job; exec sleep 600"
    script = f"sbatch --output={tmp_path}/out --wrap='{job}' && exec sleep 600"
    command = [sys.executable, str(ROOT / "tests/helpers/slurm_cluster.py"), "sh", "-c", script]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not ((tmp_path / "job").exists() and (tmp_path / "job").read_text().strip()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    job_process = int((tmp_path / "job").read_text())
    assert _command(job_process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert not _command(job_process)


def _command(process: int) -> bytes:
    """Return a process's command line, empty for one that has ended, whether or not its parent has noticed."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
