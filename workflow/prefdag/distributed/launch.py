"""Launch a job on several processes: by torchrun, and with `nodes > 1` by srun, one torchrun per node.

The number of processes is in the job's config, so rules, clusters and people use the same command for all jobs.
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

RENDEZVOUS = "PREFDAG_RENDEZVOUS"  # address on which the first node listens, host:port
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """Processes of a job in total, nodes, and threads per process."""

    processes: int = 1
    nodes: int = 1
    threads: int = 1

    @property
    def per_node(self) -> int:
        return self.processes // self.nodes


def requested_shape(argv: Sequence[str]) -> Shape:
    """Return the shape in a stage's `--config`; one process without it, or if the stage will refuse the config."""
    try:
        sections = json.loads(_option(argv, "--config") or "{}").values()
    except (ValueError, AttributeError):
        return Shape()
    for section in sections:
        if isinstance(section, dict) and "processes" in section:
            stated = {key: section[key] for key in ("processes", "nodes", "threads") if key in section}
            are_valid = all(type(value) is int and value > 0 for value in stated.values())
            shape = Shape(**stated) if are_valid else Shape()
            return shape if shape.processes % shape.nodes == 0 else Shape()
    return Shape()


def _option(argv: Sequence[str], option: str) -> str | None:
    """Return the value of a command-line option, or None."""
    for place, word in enumerate(argv):
        if word == option:
            return argv[place + 1] if place + 1 < len(argv) else None
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def launch(argv: Sequence[str]) -> int | None:
    """Run a stage's command on the processes of its config.

    Args:
        argv: the stage and its options.

    Returns:
        The exit code of the rank that failed first, 0 if none did; None if the command must run in this process.

    Raises:
        UserError: if the processes cannot be started.
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
        _exec_srun(shape, argv)
    take_gpus(argv[0], shape.per_node)
    return _torchrun(shape, argv)


def _exec_srun(shape: Shape, argv: Sequence[str]) -> None:
    """Replace this process with srun, which runs the same command once on every node of the Slurm job."""
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            f"{argv[0]} --config: nodes: {shape.nodes} nodes need Slurm; run with --profile slurm, or set nodes: 1"
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
        raise UserError(f"srun: cannot be started on this node ({error.strerror}); set nodes: 1") from None


def _torchrun(shape: Shape, argv: Sequence[str]) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # Ranks report their own errors; torchrun would add a page about each exit code.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(shape.threads))
    with tempfile.TemporaryDirectory() as logs:
        options = [f"--nproc-per-node={shape.per_node}", f"--log-dir={logs}", *_rendezvous(shape)]
        # By itself torchrun kills ranks 30 seconds after a signal; a training must finish its step and save first.
        options.append("--signals-to-handle=SIGQUIT")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, _forward)
        try:
            run(parse_args([*options, "-m", "prefdag", *argv]))
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                logger.error("process %d of the job was killed by %s", rank, name)
            return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    return 0


def _rendezvous(shape: Shape) -> list[str]:
    """Return torchrun's options for its processes to connect to each other."""
    if shape.nodes == 1:
        return ["--standalone"]
    host, _, port = os.environ[RENDEZVOUS].rpartition(":")
    node = os.environ["SLURM_NODEID"]
    return [f"--nnodes={shape.nodes}", f"--node-rank={node}", f"--master-addr={host}", f"--master-port={port}"]


def _forward(number: int, frame: FrameType | None) -> None:
    """Forward a signal to the ranks on this node."""
    import psutil

    for process in psutil.Process().children():
        process.send_signal(number)
