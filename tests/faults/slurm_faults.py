"""Inject the faults of a cluster into every stage: a job cancelled, out of time, requeued, its node lost.

A small suite is run to its end on this machine. Each trial is a copy of it that lacks one stage's output, which
`snakemake --profile slurm` makes on a node of its own (`slurm_cluster.py`), slowly until disturbed. `faults.py` asks
for these trials where Slurm is installed.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import yaml
from fault_bench import JUDGE, STEPS, TRAININGS, UNDER_TEST, R, events, steps_taken

from conftest import MINI, Project, checkout
from judge_server import judging
from slurm_cluster import Cluster, cluster

SUITE = {
    **yaml.safe_load(MINI.replace("1e-", "1.0e-")),
    "name": Path(R).name,
    "judge": JUDGE,
    "runs": [{"name": "dpo", "method": "dpo"}],
}
for stage in TRAININGS:
    SUITE[stage] |= {"max_steps": STEPS, "epochs": 999}
SUITE["generate"] |= {"batch_size": 1}
# Read by every Python of the copy's jobs, which take a minute or more while they may: a stage meets its time limit.
SLOWLY = """
import os, sys, time

if sys.orig_argv[1:3] == ["-m", "prefdag"]:
    from prefdag.provenance import journal
    from prefdag.data import parallel

    def wait(seconds):
        if os.path.exists("slowly"):
            time.sleep(seconds)

    metrics, with_progress = journal.Journal.metrics, parallel.with_progress

    def slow_metrics(self, step, values):
        metrics(self, step, values)
        wait(1)

    def slow_batches(*arguments):
        for batch in with_progress(*arguments):
            yield batch
            wait(8)

    journal.Journal.metrics, parallel.with_progress = slow_metrics, slow_batches
"""
NODES = ("one", "two")  # trials run side by side, each on its own
PATIENCE = 240.0
NEXT, AGAIN = "same in the next attempt", "same after Slurm restarted it"


def cancelled(on: Cluster, job: str, node: str) -> str:
    """`scancel` of the running job."""
    on.ask("scancel", job)
    return NEXT


def out_of_time(on: Cluster, job: str, node: str) -> str:
    """Slurm's time limit, with a signal in advance."""
    on.ask("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    on.wait(lambda: job not in on.jobs(node, "running"), f"the time limit of {job}", 150)
    return NEXT


def requeued(on: Cluster, job: str, node: str) -> str:
    """`scontrol requeue`, as preemption does it."""
    on.ask("scontrol", "requeue", job)
    return AGAIN


def lost(on: Cluster, job: str, node: str) -> str:
    """The job's node dies with all its processes, and comes back."""
    on.stop_node(node)
    on.start_node(node)
    return AGAIN


FAULTS = (cancelled, out_of_time, requeued, lost)


@dataclass
class Bench:
    """The suite, run to its end on this machine, and a cluster. free: nodes that no trial uses."""

    local: Project
    on: Cluster
    free: Queue[str]

    def attempt(self, fault: Callable[[Cluster, str, str], str], stage: str, seed: int, folder: Path) -> str:
        """One trial; the outcome. Raises AssertionError where a promise is broken."""
        node = self.free.get()
        try:
            return self._attempt(fault, stage, seed, folder, node)
        finally:
            self.free.put(node)

    def _attempt(
        self, fault: Callable[[Cluster, str, str], str], stage: str, seed: int, folder: Path, node: str
    ) -> str:
        draw = random.Random(f"{fault.__name__} {stage} {seed}")
        shutil.copytree(self.local.folder, folder, symlinks=True)
        output, slowly = folder / R / UNDER_TEST[stage], folder / "slowly"
        for path in (output, folder / R / ".journal", folder / R / ".judge"):
            shutil.rmtree(path, ignore_errors=True)
        slowly.touch()
        with judging(delay=8.0) as judge:
            workflow = self.on.snakemake(
                folder, f"{R}/{UNDER_TEST[stage]}/manifest.json",
                PREFDAG_SLURM_PARTITION=node, PREFDAG_SLURM_NOTICE="30", **_endpoint(judge.address),
            )  # fmt: skip
            try:
                begun = draw.randrange(1, 5) if stage in TRAININGS else 0

                def under_way() -> bool:
                    assert workflow.poll() is None, (folder / "snakemake.log").read_text()[-3000:]
                    return bool(events(folder, stage)) and steps_taken(folder, stage) >= begun

                self.on.wait(under_way, f"{stage} to begin", PATIENCE)
                time.sleep(draw.uniform(0, 2))
                (job,) = self.on.jobs(node, "running")
                outcome = fault(self.on, job, node)
                slowly.unlink()
                judge.delay = 0.0
                assert workflow.wait(timeout=PATIENCE) == 0, (folder / "snakemake.log").read_text()[-3000:]
            finally:
                workflow.kill()
                workflow.wait()
        expected = self.local.folder / R / UNDER_TEST[stage] / "manifest.json"
        assert (output / "manifest.json").read_bytes() == expected.read_bytes(), "another manifest"
        for left in (".partial", ".resume"):
            assert not list((folder / R / left).glob(f"{stage}-*")), f"{left} is not empty"
        assert ("Trying to restart" in (printed := (folder / "snakemake.log").read_text())) == (outcome == NEXT), (
            printed
        )
        return outcome


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """Make the suite here; start the cluster."""
    local = checkout(folder / "local")
    (local.folder / "configs/mini.yaml").write_text(yaml.safe_dump(SUITE))
    (local.folder / "workflow/sitecustomize.py").write_text(SLOWLY)
    with judging() as judge:
        done = local.snakemake(**_endpoint(judge.address))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    free: Queue[str] = Queue()
    for node in NODES:
        free.put(node)
    with cluster(dict.fromkeys(NODES, 1)) as running:
        yield Bench(local, running, free)


def _endpoint(address: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": "-"}
