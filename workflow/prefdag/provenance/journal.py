"""The journal: what one job did, as it happened, one JSON object a line. Written by stages, read by the tracker.

A stage depends on nothing but this file: no tracker need be installed, reachable or quick while it runs. Times are
seconds since the epoch (UTC). Paths are relative to the suite's folder where they lie in it, absolute elsewhere.
"""

import errno
import hashlib
import json
import math
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefdag.errors import UserError

Status = Literal["finished", "failed", "killed"]

REDACTED = "[redacted]"
_SECRET_KEY = re.compile(r"(^|[_.\-])(token|api[_\-]?key|password|passwd|secret|credentials?)$", re.IGNORECASE)
# Keys of tokenizers that end like a secret's and are none.
_SPECIAL_TOKEN = re.compile(r"(bos|eos|eot|pad|unk|sep|cls|mask|start|end|turn|stop|special)_token$", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{20,})|(?<=Bearer )\S+|(?<=://)[^/\s@]+:[^/\s@]+(?=@)"
)


class Journal:
    """Appends the events of one job to `path`; every line is on its way to the disk when its method returns.

    root: the suite's folder. Files below `<root>/.partial/<key>/` are journalled where they will lie once the job has
    finished, in `<root>/<stage>/[<name>/]`.
    """

    def __init__(self, path: Path, *, root: Path, stage: str, name: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.root, self.stage, self.name = path, root, stage, name
        # O_EXCL: a journal has one writer; O_APPEND: a line lands whole, at the end, whatever else happens.
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self._one_at_a_time = threading.Lock()  # what the job measures and what it takes come from two threads

    def start(self, *, config: Mapping[str, Any], inputs: Mapping[str, Any], code: str) -> None:
        """The first event. inputs: name -> {"path", "sha256"} of the manifests that the job reads."""
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
        """Numbers at an optimizer step; step None: results of the whole job, tied to what it made or measured."""
        step = None if step is None else int(step)
        self._write("metrics", step=step, values={name: float(value) for name, value in values.items()})

    def system(self, number: int, values: Mapping[str, float]) -> None:
        """The job's `number`-th sample of what it takes of its machine."""
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
        """A dataset that this job trains on, measures on, or makes. profile: counts worth a look."""
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
        """Weights that this job makes or reads; they stay where they are. parents: sha256 of what they grew from."""
        place = self._place(path)
        self._write("model", name=name, path=place, sha256=sha256, role=role, parents=list(parents))

    def artifact(self, path: Path, as_: str) -> None:
        """A small file for the tracker to copy, under the name `as_`; it must be complete by now.

        Its sha256 goes with it, so that a later replay cannot take a rerun's file for this job's.
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
        """The last event. manifest: sha256 of the manifest that the job published, if it came so far."""
        spent = {"seconds": seconds, "peak_memory_mb": peak_memory_mb}
        self._write("end", status=status, error=error, manifest=manifest, **spent)
        os.close(self._file)
        self._file = -1  # a later line must not land in whatever file gets this number next

    def _write(self, event: str, **fields: Any) -> None:
        line = {"event": event, "time": time.time()} | fields
        with self._one_at_a_time:
            append_line(self._file, (json.dumps(_plain(redact(line)), allow_nan=False) + "\n").encode())

    def _place(self, path: Path | str) -> str:
        if isinstance(path, str) and "://" in path:
            return path
        whole, root = Path(path).resolve(), self.root.resolve()
        if not whole.is_relative_to(root):
            return str(whole)
        inside = whole.relative_to(root)
        if inside.parts[:1] == (".partial",):
            inside = Path(self.stage, self.name or "", *inside.parts[2:])
        return inside.as_posix()


def open_journal(root: Path, stage: str, name: str | None = None) -> Journal:
    """The journal of a job that starts now: <root>/.journal/<stage>[-<name>]-<UTC time>-<pid>.jsonl."""
    now = datetime.now(UTC)
    moment = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z"
    job = f"{stage}-{name}" if name else stage
    return Journal(root / ".journal" / f"{job}-{moment}-{os.getpid()}.jsonl", root=root, stage=stage, name=name)


def read_journal(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events from byte `offset` on, and the offset to go on from.

    A last line without its newline is still being written, or was torn by a crash: it is left for the next read.
    Raises `UserError` naming file and byte when a complete line is not JSON.
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read()
    events = []
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            event = json.loads(line)
        except ValueError:
            raise UserError(
                f"{path}: byte {offset}: not a journal's line; delete the file to go on without it"
            ) from None
        if event["event"] in ("metrics", "system"):
            event["values"] = {name: float(value) for name, value in event["values"].items()}  # "nan" -> nan
        events.append(event)
        offset += len(line)
    return events, offset


def redact(value: Any, key: str = "") -> Any:
    """`value` without secrets: values of keys that name one, and texts that look like one."""
    if isinstance(value, Mapping):
        return {name: redact(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, key) for inner in value]
    if isinstance(value, str):
        secret = _SECRET_KEY.search(key) and not _SPECIAL_TOKEN.search(key)
        return REDACTED if value and secret else _SECRET_TEXT.sub(REDACTED, value)
    return value


def process_is_gone(pid: int, since: float) -> bool:
    """Whether the process of this machine that was `pid` at the time `since` lives no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = next(int(line.split()[1]) for line in _lines(Path("/proc/stat")) if line.startswith("btime"))
    except ProcessLookupError:
        return True
    except (FileNotFoundError, StopIteration):
        return _signalless(pid)
    fields = stat.rpartition(")")[2].split()
    started = boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    # A zombie does nothing more; one that started later only inherited the number (btime is rounded: 2 s of grace).
    return fields[0] in "ZX" or started > since + 2


def _signalless(pid: int) -> bool:
    """`process_is_gone` where there is no /proc: signal 0 reaches living processes only."""
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
    """JSON's own types only; NaN and infinities, which JSON lacks, as "nan", "inf", "-inf"."""
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
    """The commit, with "-dirty" behind it where the work tree differs; None outside a repository."""
    ask = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(ask, capture_output=True, check=False, text=True, timeout=10, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def append_line(file: int, line: bytes) -> None:
    """Write `line` at the end of a file opened with O_APPEND. Raises `OSError` after taking a torn end away again."""
    size = os.fstat(file).st_size
    rest = line
    try:
        while rest:
            if not (written := os.write(file, rest)):  # else this would go on for ever
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rest = rest[written:]
    except OSError:
        os.ftruncate(file, size)
        raise
