"""Warm starts: one process imports torch and transformers once, and each job of a local run is a fork of it.

Importing them takes 4 to 6 CPU seconds, more than many jobs' own work. The workflow starts the server; `prefdag
<stage>` finds its socket in PREFDAG_WARM, hands over its arguments, environment and open files, and relays signals
until the job ends. The server holds other people's modules only: a job imports prefdag's own after the fork, as they
then are. Without a server (on clusters, by hand, or where the system has no pidfd) a stage starts cold, to the same
bits.
"""

import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

VARIABLE = "PREFDAG_WARM"
SERVER = "PREFDAG_WARM_SERVER"  # of a job that was forked: the server's process
IMPORTS = (
    "torch.utils.checkpoint",
    "safetensors.torch",
    "pydantic",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "gpt2", "gpt_neox", "qwen2")),
)
ENDED = (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)  # which leave a job no word of its own
PATIENCE = 1.0  # seconds between two looks at whether the workflow is still there
logger = logging.getLogger(__name__)


def import_all() -> None:
    for name in IMPORTS:
        import_module(name)


def serve(path: Path, parent: int, entry: str, load: Callable[[], None] = import_all) -> None:
    """Fork a job for each client that connects to the socket at `path`, until the process `parent` is gone.

    Args:
        path: the socket to listen on.
        parent: the process to outlive by at most `PATIENCE` seconds.
        entry: `module:function`, called with a job's arguments after the fork; it returns the exit code.
        load: does once what all jobs share. It must start no thread, because threads do not survive a fork.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        old = os.umask(0o077)
        listener.bind(str(path))
        os.umask(old)
        listener.listen(64)  # before importing: whoever connects now waits here instead of importing as well
        gc.disable()
        load()
        gc.freeze()
        gc.enable()
        # Threads do not survive a fork. torch starts its own at the first parallel sum, which is never made here.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        server = os.getpid()
        listener.settimeout(PATIENCE)
        while is_alive(parent):
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                _attend(client, server, entry)
                os._exit(0)
            client.close()
    path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _attend(client: socket.socket, server: int, entry: str) -> None:
    """Fork the job, relay the client's signals to it, and send back how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    client.settimeout(None)
    request, files = _received(client)
    job = os.fork()
    if job == 0:
        client.close()
        _become(request, files, server, entry)
    for file in files:
        os.close(file)
    watch = os.pidfd_open(job)
    while True:
        ready, _, _ = select.select([watch, client.fileno()], [], [])
        if watch in ready:
            _, status = os.waitpid(job, 0)
            client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            return
        if not (numbers := client.recv(16)):
            os.kill(job, signal.SIGKILL)  # the client was killed, and nobody would know of this job
            return
        for number in numbers:
            os.kill(job, number)


def _become(request: dict[str, object], files: Sequence[int], server: int, entry: str) -> None:
    """Turn this fork into the client's job: its files, folder, environment and arguments."""
    code = 1
    try:
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        os.chdir(str(request["folder"]))
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        os.environ[SERVER] = str(server)
        sys.argv = ["prefdag", *request["arguments"]]  # type: ignore[misc]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        module, _, function = entry.partition(":")
        code = getattr(import_module(module), function)(sys.argv[1:])
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_warm(arguments: Sequence[str]) -> int | None:
    """Run a command in a fork of the warm server; None where there is no server, and the caller runs it itself."""
    path = os.environ.pop(VARIABLE, None)
    return None if path is None else ask(path, arguments)


def ask(path: str, arguments: Sequence[str]) -> int | None:
    """Have the server at a socket run a command; its exit code, None where no server is there."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.connect(path)
    except OSError:
        return None
    with server:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        request = {"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ)}
        body = json.dumps(request).encode()
        socket.send_fds(server, [len(body).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(body)
        answer = server.recv(16)
    code = int(answer) if answer else -signal.SIGKILL
    if -code in ENDED:  # libraries in Rust and C++ abort where Python raises MemoryError
        how = f"was ended by {signal.Signals(-code).name}, perhaps for its memory"
        logger.error("%s: the process that ran this job %s; rerun, with more of it", arguments[0], how)
    return code if code >= 0 else 128 - code


def _received(client: socket.socket) -> tuple[dict[str, object], Sequence[int]]:
    head, files, _, _ = socket.recv_fds(client, 8, 3)
    length = int.from_bytes(head, "big")
    body = bytearray()
    while len(body) < length:
        body += client.recv(length - len(body))
    return json.loads(body), files


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), entry=sys.argv[3])
