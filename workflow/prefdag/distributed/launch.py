"""A job on several processes: this one becomes torchrun, on several nodes srun, which starts it anew on each.

How many there are stands in the job's own config, so rules, clusters and people give the same command for all.
"""

import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from prefdag.distributed.gpu_lease import take_gpus
from prefdag.distributed.ranks import is_rank, num_ranks
from prefdag.errors import UserError

RENDEZVOUS = "PREFDAG_RENDEZVOUS"  # set on every node: where the first one listens, host:port
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """Processes of a job, over how many nodes, with how many threads each."""

    processes: int = 1
    nodes: int = 1
    threads: int = 1

    @property
    def per_node(self) -> int:
        return self.processes // self.nodes


def requested_shape(argv: Sequence[str]) -> Shape:
    """What the section of a stage's `--config` says of processes; one where it does not, or is yet to be refused."""
    try:
        sections = json.loads(value_of(argv, "--config") or "{}").values()
    except (ValueError, AttributeError):
        return Shape()
    for section in sections:
        if isinstance(section, dict) and "processes" in section:
            stated = {key: section[key] for key in ("processes", "nodes", "threads") if key in section}
            whole = all(type(value) is int and value > 0 for value in stated.values())
            shape = Shape(**stated) if whole else Shape()
            return shape if shape.processes % shape.nodes == 0 else Shape()
    return Shape()


def value_of(argv: Sequence[str], option: str) -> str | None:
    for place, word in enumerate(argv):
        if word == option:
            return argv[place + 1] if place + 1 < len(argv) else None
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def launch(argv: Sequence[str]) -> int | None:
    """Run a stage's command in as many processes as it asks for, and return how it ended; None: in this one.

    The exit code is that of the rank that failed first. Raises `UserError` where the processes cannot be had.
    """
    shape = requested_shape(argv)
    if is_rank():
        if num_ranks() != shape.processes:
            raise UserError(
                f"{argv[0]} --config: processes: {shape.processes}, but torchrun has started {num_ranks()}; "
                "leave torchrun to this command"
            )
        return None
    if shape.processes == 1:
        return None
    if shape.nodes > 1 and RENDEZVOUS not in os.environ:
        _on_every_node(shape, argv)
    take_gpus(argv[0], shape.per_node)
    return _torchrun(shape, argv)


def _on_every_node(shape: Shape, argv: Sequence[str]) -> None:
    """Become srun, which starts this very command once on every node of the Slurm job. Does not return."""
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            f"{argv[0]} --config: nodes: {shape.nodes} nodes are had from Slurm alone; "
            "run with --profile slurm, or state nodes: 1"
        )
    with socket.socket() as free:
        free.bind(("", 0))
        os.environ[RENDEZVOUS] = f"{socket.gethostname()}:{free.getsockname()[1]}"
    options = [f"--nodes={shape.nodes}", f"--ntasks={shape.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    options.append(f"--cpus-per-task={shape.threads * shape.per_node}")
    sys.stdout.flush()
    try:
        os.execvp("srun", ["srun", *options, sys.executable, "-m", "prefdag", *argv])
    except OSError as error:
        raise UserError(f"srun: cannot be started on this node ({error.strerror}); state nodes: 1") from None


def _torchrun(shape: Shape, argv: Sequence[str]) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # What a rank has to say it says itself; torchrun would add a page on the exit code of each.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(shape.threads))
    with tempfile.TemporaryDirectory() as logs:
        options = [f"--nproc-per-node={shape.per_node}", f"--log-dir={logs}", *_meeting(shape)]
        # torchrun would give its processes 30 seconds to end after a signal; a training saves its state first.
        options.append("--signals-to-handle=SIGQUIT")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, _pass_on)
        try:
            run(parse_args([*options, "-m", "prefdag", *argv]))
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                logger.error("process %d of the job was killed by %s", rank, name)
            return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    return 0


def _meeting(shape: Shape) -> list[str]:
    """Where torchrun's processes find each other."""
    if shape.nodes == 1:
        return ["--standalone"]
    host, _, port = os.environ[RENDEZVOUS].rpartition(":")
    place = os.environ["SLURM_NODEID"]
    return [f"--nnodes={shape.nodes}", f"--node-rank={place}", f"--master-addr={host}", f"--master-port={port}"]


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Tell every process of the job on this node."""
    import psutil

    for process in psutil.Process().children():
        process.send_signal(number)
