"""The journal of a job: one JSON object per line for each event, written by stages and read by the tracker.

A stage writes only this file: it runs whether or not a tracker is installed, reachable or fast. Times are seconds since
the epoch (UTC). Paths inside the suite's folder are relative to it; others are absolute.
"""

import errno
import hashlib
import json
import logging
import math
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from prefdag.errors import UserError
from prefdag.provenance.redaction import redact

logger = logging.getLogger(__name__)
Status = Literal["finished", "failed", "killed"]
STATED: dict[str, dict[str, Any]] = {  # what every event of a kind states, and its type
    "start": dict.fromkeys(("id", "suite", "stage", "code", "host"), str)
    | {"name": str | None, "config": dict, "inputs": dict, "pid": int, "git": str | None},
    "metrics": {"step": int | None, "values": dict},
    "system": {"step": int, "values": dict},
    "dataset": {**dict.fromkeys(("name", "digest", "path", "context"), str), "profile": dict},
    "model": {**dict.fromkeys(("name", "path", "sha256", "role"), str), "parents": list},
    "artifact": dict.fromkeys(("path", "as", "sha256"), str),
    "end": {"error": str | None, "manifest": str | None, **dict.fromkeys(("seconds", "peak_memory_mb"), int | float)},
}


class Journal:
    """Append the events of one job to a file; a line is written when its method returns.

    A file below `<root>/.partial/<key>/` is recorded at its final place, `<root>/<stage>/[<name>/]`.

    Args:
        path: The journal, which must not exist yet.
        root: The suite's folder.
        stage: The job's stage.
        name: The job's name, where the stage has several.
    """

    def __init__(self, path: Path, *, root: Path, stage: str, name: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.root, self.stage, self.name = path, root, stage, name
        # O_EXCL: a journal has one writer. O_APPEND: each line is written whole, at the end of the file.
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self._lock = threading.Lock()  # the monitor of the machine writes from a thread of its own

    def start(self, *, config: Mapping[str, Any], inputs: Mapping[str, Any], code: str) -> None:
        """Write the first event.

        Args:
            config: The job's options.
            inputs: Name -> {"path", "sha256"} of each manifest that the job reads.
            code: Digest of the stage's code.
        """
        self._write(
            "start",
            id=self.path.stem,
            suite=self.root.resolve().name,
            stage=self.stage,
            name=self.name,
            config=config,
            inputs=inputs,
            code=code,
            host=socket.gethostname(),
            pid=os.getpid(),
            git=_git_state(),
        )

    def metrics(self, step: int | None, values: Mapping[str, float]) -> None:
        """Write numbers of an optimizer step, or, where step is None, results of the whole job."""
        step = None if step is None else int(step)
        self._write("metrics", step=step, values={name: float(value) for name, value in values.items()})

    def system(self, number: int, values: Mapping[str, float]) -> None:
        """Write the `number`-th sample of the machine's use (processor, memory, GPU)."""
        self._write("system", step=number, values=dict(values))

    def dataset(
        self,
        name: str,
        *,
        digest: str,
        path: Path | str,
        context: Literal["training", "evaluation", "output"],
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a dataset that this job trains on, evaluates on, or makes.

        Args:
            name: Its name in the tracker.
            digest: Its sha256.
            path: Its file or folder, or an address.
            context: What the job does with it.
            profile: Counts to show with it.
        """
        self._write("dataset", name=name, digest=digest, path=self._place(path), context=context, profile=profile or {})

    def model(
        self,
        name: str,
        *,
        path: Path | str,
        sha256: str,
        role: Literal["output", "input"],
        parents: Sequence[str] = (),
    ) -> None:
        """Write which weights this job makes or reads; the weights themselves are not copied.

        Args:
            name: Their name in the tracker.
            path: Their folder.
            sha256: Their digest.
            role: Whether the job makes or reads them.
            parents: Digests of the weights that they were trained from.
        """
        place = self._place(path)
        self._write("model", name=name, path=place, sha256=sha256, role=role, parents=list(parents))

    def artifact(self, path: Path, as_: str) -> None:
        """Write that the tracker should copy a small, complete file under the name `as_`.

        The sha256 is recorded too, so that a later replay does not take a rerun's file for this job's.
        """
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self._write("artifact", path=self._place(path), **{"as": as_}, sha256=digest)

    def end(
        self,
        *,
        status: Status,
        error: str | None = None,
        manifest: str | None = None,
        seconds: float,
        peak_memory_mb: float,
    ) -> None:
        """Write the last event and close the file.

        Args:
            status: How the job ended.
            error: Its message, for a job that failed.
            manifest: sha256 of the manifest, for a job that published one.
            seconds: Wall time.
            peak_memory_mb: Peak resident memory of the process.
        """
        spent = {"seconds": seconds, "peak_memory_mb": peak_memory_mb}
        self._write("end", status=status, error=error, manifest=manifest, **spent)
        os.close(self._file)
        self._file = -1  # the number may soon belong to another file

    def _write(self, event: str, **fields: Any) -> None:
        line = {"event": event, "time": time.time()} | fields
        with self._lock:
            append_line(self._file, (json.dumps(_plain(redact(line)), allow_nan=False) + "\n").encode())

    def _place(self, path: Path | str) -> str:
        if isinstance(path, str) and "://" in path:
            return path
        absolute, root = Path(path).resolve(), self.root.resolve()
        if not absolute.is_relative_to(root):
            return str(absolute)
        inside = absolute.relative_to(root)
        if inside.parts[:1] == (".partial",):
            inside = Path(self.stage, self.name or "", *inside.parts[2:])
        return inside.as_posix()


def open_journal(root: Path, stage: str, name: str | None = None) -> Journal:
    """Create the journal of a job that starts now: <root>/.journal/<stage>[-<name>]-<UTC time>-<pid>.jsonl."""
    now = datetime.now(UTC)
    moment = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z"
    job = f"{stage}-{name}" if name else stage
    return Journal(root / ".journal" / f"{job}-{moment}-{os.getpid()}.jsonl", root=root, stage=stage, name=name)


def read_journal(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the events of a journal from byte `offset` on.

    A last line without a newline is still being written, or was cut off by a crash; it is left for the next read.

    Returns:
        The events, and the offset of the next read.

    Raises:
        UserError: A complete line is not JSON.
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read()
    events = []
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            events.append(_event(json.loads(line)))
        except json.JSONDecodeError:
            raise UserError(
                f"{path}: byte {offset}: not a line of a journal; delete the file to continue without it"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            logger.warning("%s: byte %d: JSON, but no event of a journal; this line is left out", path, offset)
        offset += len(line)
    return events, offset


def _event(event: Any) -> dict[str, Any]:
    """Return an event as written. Raises an error of some kind for JSON that is no event."""
    kind = event["event"]
    if not isinstance(kind, str) or not isinstance(event["time"], int | float):
        raise TypeError
    for name, type_ in STATED.get(kind, {}).items():
        if not isinstance(event[name], type_):
            raise TypeError
    if kind == "end" and event["status"] not in get_args(Status):
        raise ValueError
    if any(not isinstance(one["sha256"], str) for one in event.get("inputs", {}).values()):
        raise TypeError
    if kind in ("metrics", "system"):
        event["values"] = {name: float(value) for name, value in event["values"].items()}  # "nan" -> nan
    return dict(event)


def process_is_gone(pid: int, since: float) -> bool:
    """Return whether the process that had the id `pid` at the time `since`, on this machine, has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = next(int(line.split()[1]) for line in _lines(Path("/proc/stat")) if line.startswith("btime"))
    except ProcessLookupError:
        return True
    except (FileNotFoundError, StopIteration):
        return _has_no_process(pid)
    fields = stat.rpartition(")")[2].split()
    started = boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    # A zombie has ended; a process that started later has reused the id (btime is rounded, so allow 2 s).
    return fields[0] in "ZX" or started > since + 2


def _has_no_process(pid: int) -> bool:
    """Return `process_is_gone` on a system without /proc: signal 0 reaches running processes only."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _lines(path: Path) -> Iterator[str]:
    return iter(path.read_text().splitlines())


def _plain(value: Any) -> Any:
    """Convert to JSON's types; NaN and infinities, which JSON lacks, become "nan", "inf", "-inf"."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):  # numpy's and torch's scalars
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _git_state() -> str | None:
    """Return the commit, with "-dirty" appended where the work tree differs; None outside a repository."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, capture_output=True, check=False, text=True, timeout=10, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def append_line(file: int, line: bytes) -> None:
    """Append `line` to a file opened with O_APPEND; where that fails, remove what was written and raise `OSError`."""
    size = os.fstat(file).st_size
    rest = line
    try:
        while rest:
            if not (written := os.write(file, rest)):  # a full disk may write nothing, for ever
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rest = rest[written:]
    except OSError:
        os.ftruncate(file, size)
        raise
