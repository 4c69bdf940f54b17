"""Trainings of a sweep in one process: it loads the policy that all of them start from, and each run is a fork of it.

A warm server's job (`prefdag.warm`) looks for that process unless the profile sets the resource `together` of
`preference` to 0: the first starts it, and it ends with the workflow. Each run has its own output, journal and failure.
Comparisons and reference log-probs lie in mapped files, which the system holds once for all processes anyway.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from prefdag.launch import value_of
from prefdag.running import FOLDER
from prefdag.warm import SERVER, ask, is_alive, serve

VARIABLE = "PREFDAG_TOGETHER"
PACKAGE = Path(__file__).parent


def run_together(argv: Sequence[str]) -> int | None:
    """Run a training in a fork of the process that has loaded its policy; None where it is to be run here."""
    wanted, server = os.environ.pop(VARIABLE, "0"), os.environ.pop(SERVER, None)
    policy, output = (value_of(argv, option) for option in ("--policy", "--output"))
    if wanted in ("", "0") or server is None or argv[0] != "preference" or not policy or not output:
        return None
    try:
        key = _key(Path(policy))
        root = Path(output).parents[2]
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        path = root / f".warm-{key}"
        with (root / FOLDER / path.name).open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            held = lock.read()
            if not (held and path.exists() and is_alive(int(held))):
                path.unlink(missing_ok=True)
                lock.truncate(0)
                lock.write(str(_started(path, Path(policy).parent / "model", int(server))))
        return ask(str(path), argv)
    except (OSError, IndexError):
        return None  # the stage says what is wrong


def _key(policy: Path) -> str:
    """Of a policy and the package as they are: after a change of either, another process is started."""
    found = hashlib.sha256(policy.read_bytes())
    for path in sorted(PACKAGE.rglob("*.py")):
        about = path.stat()
        found.update(f"{path} {about.st_mtime_ns} {about.st_size}\n".encode())
    return found.hexdigest()[:16]


def _started(path: Path, model: Path, parent: int) -> int:
    """Start the process, which listens at `path` until the process `parent` is gone; returns its number."""
    if process := os.fork():
        while not path.exists() and is_alive(process):
            time.sleep(0.01)
        return process
    try:
        os.setsid()
        # Whoever reads the first run's output must see its end.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nowhere, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        serve(path, parent, lambda: _load(model))
    finally:
        os._exit(0)


def _load(model: Path) -> None:
    """What every run would do first. A policy that cannot be loaded is left to the runs, which say why."""
    import_module("torch").set_num_threads(1)  # threads would not survive the forks
    import_module("prefdag.stages.preference")
    with suppress(Exception):
        import_module("prefdag.models").hold(model)
