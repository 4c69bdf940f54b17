"""Warm starts: one server process imports torch and transformers once, and forks into each job of a local run.

The imports take 4 to 6 CPU seconds, more than the work of many jobs. The workflow starts the server. `prefdag <stage>`
finds the server's socket in PREFDAG_WARM, sends its arguments, environment and open files, and relays signals until
the job ends. The server imports third-party modules only: a job imports prefdag after the fork, so it runs the current
code. Without a server (on clusters, by hand, or on a system without pidfd) a stage starts cold and gives the same bits.
"""

import gc
import json
import logging
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

VARIABLE = "PREFDAG_WARM"
SERVER = "PREFDAG_WARM_SERVER"  # in the environment of a forked job: the server's process
IMPORTS = (
    "torch.utils.checkpoint",
    "safetensors.torch",
    "pydantic",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "gpt2", "gpt_neox", "qwen2")),
)
ENDED = (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)  # a job that these end prints no message
PATIENCE = 1.0  # seconds between two checks that the workflow still runs
logger = logging.getLogger(__name__)


def import_all() -> None:
    for name in IMPORTS:
        import_module(name)


def serve(path: Path, parent: int, entry: str, load: Callable[[], None] = import_all) -> None:
    """Fork a job for each client that connects to the socket at `path`, until the process `parent` is gone.

    Args:
        path: the socket to listen on.
        parent: the process that the server outlives by at most `PATIENCE` seconds.
        entry: `module:function`, called with a job's arguments after the fork; it returns the exit code.
        load: imports what all jobs share. It must start no thread, because threads do not survive a fork.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        old = os.umask(0o077)
        listener.bind(str(path))
        os.umask(old)
        listener.listen(64)  # before importing: an early client waits for the server instead of importing as well
        gc.disable()
        load()
        gc.freeze()
        gc.enable()
        # torch starts threads only at its first parallel operation, which never happens in this process.
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
                os._exit(0)  # a fork must not run the server's clean-up (Python's documentation of os._exit)
            client.close()
    path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _attend(client: socket.socket, server: int, entry: str) -> None:
    """Fork the job, relay the client's signals to it, and send its exit code back."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    client.settimeout(None)
    if peer(client) != os.getuid():
        return
    request, files = _receive(client)
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
            os.kill(job, signal.SIGKILL)  # the client was killed: its job must not go on unnoticed
            return
        for number in numbers:
            os.kill(job, number)


def _become(request: dict[str, object], files: Sequence[int], server: int, entry: str) -> None:
    """Run the client's job in this fork, with the client's files, folder, environment and arguments."""
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
        os._exit(code)  # as above: this process is a fork


def run_warm(arguments: Sequence[str]) -> int | None:
    """Run a command in a fork of the server. Return its exit code, or None without a server: run it in this process."""
    path = os.environ.pop(VARIABLE, None)
    return None if path is None else ask(path, arguments)


def ask(path: str, arguments: Sequence[str]) -> int | None:
    """Ask the server at a socket to run a command. Return its exit code, or None if no server listens."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.connect(path)
    except OSError:
        return None
    if peer(server) != os.getuid():
        logger.warning("%s belongs to another user; the job starts without the warm server", path)
        server.close()
        return None
    with server:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        request = {"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ)}
        body = json.dumps(request).encode()
        socket.send_fds(server, [len(body).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(body)
        answer = _wait(server)
    code = int(answer) if answer else -signal.SIGKILL
    if -code in ENDED:  # libraries in Rust and C++ abort where Python raises MemoryError
        name = signal.Signals(-code).name
        reason = f"the process that ran this job was ended by {name}, perhaps for its memory; rerun with more memory"
        logger.error("%s: %s", arguments[0], reason)
    return code if code >= 0 else 128 - code


def _wait(server: socket.socket) -> bytes:
    """Wait for the exit code, waking now and then: a signal just before a blocking read would not interrupt it."""
    server.settimeout(PATIENCE)
    while True:
        try:
            return server.recv(16)
        except TimeoutError:
            continue


def peer(connection: socket.socket) -> int:
    """Return the id of the user whose process is at the other end: nothing of a job goes to, or comes from, others."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)


def _receive(client: socket.socket) -> tuple[dict[str, object], Sequence[int]]:
    head, files, _, _ = socket.recv_fds(client, 8, 3)
    length = int.from_bytes(head, "big")
    body = bytearray()
    while len(body) < length:
        body += client.recv(length - len(body))
    return json.loads(body), files


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), entry=sys.argv[3])
