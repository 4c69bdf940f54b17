"""A Slurm cluster of our own on this machine: its daemons, keys, ports and nodes, all in one temporary folder.

    python tests/helpers/slurm_cluster.py snakemake --profile slurm     # any command, on two nodes with a GPU each

Nothing of the system's own Slurm is read or changed: every program finds this cluster by SLURM_CONF. GPUs are
pretended, a device file each; Slurm counts them and sets CUDA_VISIBLE_DEVICES as it does for real ones.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script: conftest finds the rest

from conftest import environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")  # Slurm takes nothing for a GPU but a device file
# The plugin looks at its jobs ever more seldom while none ends; here it looks every second.
SNAKEMAKE = """
import sys
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, seconds: None)
main(sys.argv[1:])
"""
OPTIONS = ["--profile", "slurm", "--latency-wait", "10", "--slurm-init-seconds-before-status-checks", "1"]
PATIENCE = 60.0  # seconds that the cluster may take to do what it is asked

CONFIG = """
ClusterName=pretended
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that lost its node may start again once its credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
TaskProlog={folder}/task_prolog
# No cgroups and no accounting: a process tree is found by its parents, and squeue says what sacct cannot.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
GresTypes=gpu
# What jobs ask for is shared out among them, as on a real cluster, even where this machine has less.
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
# At once rather than in bulk.
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=2
KillWait=5
ReturnToService=2
"""
# Each task writes down which job it belongs to and which GPUs it was given.
PROLOG = """#!/bin/sh
echo "$SLURM_JOB_ID ${{CUDA_VISIBLE_DEVICES:-none}}" >> {folder}/devices
"""
# Snakemake's plugin takes every variable named SLURM_... from the environment of the srun inside a job, this one too.
SRUN = """#!/bin/sh
SLURM_CONF={folder}/slurm.conf exec {srun} "$@"
"""


def missing() -> str | None:
    """A sentence saying what this machine lacks for a cluster, None where it lacks nothing."""
    lacking = [name for name in PROGRAMS if _found(name) is None]
    if lacking:
        return f"no Slurm on this machine ({', '.join(lacking)} not found): apt-get install slurm-wlm munge"
    return None


def _found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


@dataclass
class Cluster:
    """A running cluster. nodes: name -> number of GPUs; each is a partition, too. environment: how programs find it."""

    folder: Path
    nodes: Mapping[str, int]
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str, **variables: str) -> None:
        """Start a daemon in the foreground; it ends with the process that started it."""
        program = _found(command[0])
        assert program is not None
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", program, *command[1:]],
                env={**self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def start_node(self, node: str) -> None:
        self.start(node, "slurmd", "-D", "-N", node, SLURMD_NODENAME=node)  # inherited by all that runs there
        self.wait(lambda: self.state(node) in ("idle", "mixed", "allocated"), f"{node} to be there")

    def stop_node(self, node: str) -> None:
        """End a node with all its processes, as a power cut does: none is left to report the end of another.

        The controller would find out by itself after SlurmdTimeout, which is long enough for a machine that is busy.
        """
        mark = f"SLURMD_NODENAME={node}".encode()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in self.processes():
                if mark in _environ(process).split(b"\0"):
                    _send(process, number)
        self.daemons.pop(node).wait()
        self.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")

    def snakemake(self, folder: Path, *targets: str, **variables: str) -> subprocess.Popen[bytes]:
        """`snakemake --profile slurm` of a copy's miniature suite; its output goes to `snakemake.log`."""
        cluster_variables = {name: self.environment[name] for name in ("PATH", "SLURM_CONF")}
        with (folder / "snakemake.log").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-c", SNAKEMAKE, "--configfile", "configs/mini.yaml", *OPTIONS, *targets],
                cwd=folder,
                env={**environment(), **cluster_variables, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def ask(self, *command: str) -> str:
        """What one of Slurm's programs prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def state(self, node: str) -> str:
        return self.ask("sinfo", "--noheader", "--nodes", node, "--format", "%T").strip().rstrip("*")

    def jobs(self, partition: str, state: str = "all") -> dict[str, str]:
        """Slurm's job id -> rule and wildcards (Snakemake's comment), of a partition's jobs in a state."""
        command = ["squeue", "--noheader", f"--partition={partition}", f"--states={state}", "--format=%i|%k"]
        return dict(line.split("|") for line in sorted(self.ask(*command).splitlines()))

    def devices(self) -> dict[str, set[str]]:
        """Slurm's job id -> what CUDA_VISIBLE_DEVICES was in its tasks ("none" where it was not set)."""
        devices_of: dict[str, set[str]] = {}
        for line in (self.folder / "devices").read_text().splitlines():
            job, devices = line.split()
            devices_of.setdefault(job, set()).add(devices)
        return devices_of

    def wait(self, done: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Wait until `done`, looking often; fail with the daemons' logs when patience ends."""
        deadline = time.monotonic() + patience
        while not done():
            assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """The end of every log, for a test that fails."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(paths))

    def processes(self) -> list[int]:
        """Every process that this cluster started, daemons and jobs: what has its folder in SLURM_CONF."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        running = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [process for process in running if process != os.getpid() and mark in _environ(process).split(b"\0")]

    def stop(self) -> None:
        """Kill everything of the cluster; what was forked meanwhile is met at the next look."""
        for daemon in self.daemons.values():
            daemon.kill()
        for _ in range(50):
            if not (left := self.processes()):
                break
            for process in left:
                _send(process, signal.SIGKILL)
            time.sleep(0.05)
        for daemon in self.daemons.values():
            daemon.wait()


def _environ(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


@contextlib.contextmanager
def cluster(nodes: Mapping[str, int]) -> Iterator[Cluster]:
    """A cluster with these nodes and numbers of GPUs, ready for jobs; gone, with its folder, when the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path may have 107 characters
    path = f"{folder}/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
    started = Cluster(folder, nodes, {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": path})
    try:
        _write(started)
        _munge(started)
        started.start("slurmctld", "slurmctld", "-D", "-c")
        started.wait(lambda: _answers(started), "the controller")
        for node in nodes:
            started.start_node(node)
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder)


def _write(started: Cluster) -> None:
    folder, host = started.folder, socket.gethostname().partition(".")[0]
    controller, *ports = _free_ports(1 + len(started.nodes))
    lines = [CONFIG.format(host=host, controller=controller, user=getpass.getuser(), folder=folder)]
    devices = []
    for (node, gpus), port in zip(started.nodes.items(), ports, strict=True):
        lines.append(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs=16 RealMemory=512000 Gres=gpu:{gpus} State=UNKNOWN"
        )
        for gpu in range(gpus):
            (folder / f"{node}gpu{gpu}").symlink_to(DEVICES[gpu])
        devices.append(f"NodeName={node} Name=gpu File={folder}/{node}gpu[0-{gpus - 1}]")
        (folder / f"spool-{node}").mkdir()
        lines.append(f"PartitionName={node} Nodes={node} MaxTime=INFINITE State=UP")
    lines.append("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "gres.conf").write_text("\n".join(devices) + "\n")
    (folder / "devices").touch()
    (folder / "bin").mkdir()
    for script, text in (("task_prolog", PROLOG), ("bin/srun", SRUN)):
        (folder / script).write_text(text.format(folder=folder, srun=_found("srun")))
        (folder / script).chmod(0o755)


def _munge(started: Cluster) -> None:
    """The service that vouches for who asks, with a key of its own."""
    folder = started.folder
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    options = [f"--{option}={folder / name}" for option, name in files.items()]
    started.start("munged", "munged", "--foreground", "--force", f"--log-file={folder}/munge.log", *options)
    started.wait(lambda: (folder / "munge.socket").exists(), "munged")


def _answers(started: Cluster) -> bool:
    assert started.daemons["slurmctld"].poll() is None, started.logs()
    return subprocess.run(["scontrol", "ping"], env=started.environment, capture_output=True).returncode == 0


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def main() -> int:
    """Run a command with a cluster of two nodes around it; its exit code."""
    if lacking := missing():
        print(lacking, file=sys.stderr)
        return 2
    # Left through `finally`, which ends all jobs: the default would leave daemons and jobs behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with cluster({"n1": 1, "n2": 1}) as running:
        return subprocess.run(sys.argv[1:], env=running.environment).returncode


if __name__ == "__main__":
    sys.exit(main())
