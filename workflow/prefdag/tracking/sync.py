"""Follows the journals of a suite into the tracking database, live or after the fact, one writer at a time."""

import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prefdag.errors import UserError
from prefdag.provenance.journal import process_is_gone, redact
from prefdag.provenance.manifest import Manifest
from prefdag.tracking.environment import MLFLOW_VARIABLES, tracking_uri
from prefdag.tracking.links import write_page
from prefdag.tracking.records import Record, successors

if TYPE_CHECKING:
    from prefdag.tracking.mlflow_client import Experiment

T = TypeVar("T")
_PAUSES = (1.0, 2.0, 4.0)  # seconds between the attempts of a replay


class Writer:
    """Writes the journals of the suite in folder `root` into the tracking database at `uri`.

    patience: seconds to wait for another writer, and for MLflow once the workflow is over.
    """

    def __init__(self, root: Path, uri: str | None = None, *, patience: float = 60.0) -> None:
        self.root, self.patience = root, patience
        self.uri = uri or tracking_uri(root.resolve().parent)
        self._records: dict[str, Record] = {}
        self._experiment: Experiment | None = None
        self._said: set[str] = set()
        self._doubtful = False  # a request failed: it may have come true all the same

    def replay(self) -> int:
        """Write all that the journals say and the database lacks; returns the number of journals.

        Raises `UserError` when there is none, when another writer is at work, or when MLflow refuses.
        """
        return self._patiently(self._write_all)

    def register(self, manifest: Manifest, name: str, alias: str | None, upload: bool) -> str:
        """`registering.register` once all that the journals say is written. Raises `UserError` as `replay` does."""
        from prefdag.tracking.registry import register

        def write_and_register() -> str:
            self._write_all()
            return register(self._open(), manifest, name, alias, upload)

        return self._patiently(write_and_register)

    def _patiently(self, work: Callable[[], T]) -> T:
        folder = self.root / ".journal"
        if not any(folder.glob("*.jsonl")):
            raise UserError(f"{folder}: no journals there; name the folder of a suite that has run, as results/<suite>")
        with self._alone():
            for pause in (*_PAUSES, None):
                try:
                    return work()
                except Exception as error:
                    if pause is None or isinstance(error, UserError):  # a broken journal stays broken
                        raise UserError(self._complaint(error)) from None
                    time.sleep(pause)
        raise AssertionError  # the last attempt returned or raised

    def follow(self, parent_pid: int, poll: float = 2.0) -> bool:
        """Write while the process `parent_pid` lives and no SIGTERM comes, then once more; returns whether all is in.

        MLflow's troubles are said in a sentence and tried again, ever more rarely: they never end a workflow.
        """
        stop, began, wait = threading.Event(), time.time(), poll
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        with self._alone():
            while not stop.wait(wait) and not process_is_gone(parent_pid, began):
                wait = poll if self._attempt() else min(2 * wait, 60.0)
            deadline, wait = time.monotonic() + self.patience, poll
            while not (done := self._attempt(last=True)) and time.monotonic() + wait < deadline:
                time.sleep(wait)
                wait *= 2
        if not done:
            self._say(f"some runs are not in MLflow yet; `prefdag track {self.root}` writes them when it is back")
        return done

    @property
    def shown_uri(self) -> str:
        """The database's address without a password."""
        return str(redact(self.uri))

    def _attempt(self, last: bool = False) -> bool:
        try:
            self._write_all() if last else self._write()
        except Exception as error:
            self._say(self._complaint(error))
            return False
        return True

    def _write_all(self) -> int:
        """Write, and after any trouble look once more at what has become of requests that seemed to fail."""
        number = self._write()
        if self._doubtful:
            self._experiment = None
            number = self._write()
            self._doubtful = False
        if self._experiment:
            write_page(self.root.resolve(), self.uri, self._experiment.id, self._experiment.newest_runs())
        return number

    def _complaint(self, error: Exception) -> str:
        if isinstance(error, UserError):
            return str(error)
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return str(
            redact(f"tracking to {self.shown_uri} failed ({first}); the journals in {self.root}/.journal are complete")
        )

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            print(f"prefdag: {sentence}", file=sys.stderr, flush=True)

    def _write(self) -> int:
        records, broken = self._advance()
        if records:
            try:
                self._write_records(records)
            except Exception:
                self._experiment, self._doubtful = None, True  # what the database holds is asked again
                raise
        if broken:
            raise broken[0]
        return len(records)

    def _write_records(self, records: list[Record]) -> None:
        experiment, troubles = self._open(), []
        for record in records:
            try:
                experiment.write(record)
            except Exception as error:  # one journal's trouble is not its neighbours'
                troubles.append(error)
                if len(troubles) == 3:  # it is the database's
                    raise
        experiment.mark_superseded()
        if troubles:
            raise troubles[0]
        for record in records:
            experiment.describe(record)

    def _open(self) -> "Experiment":
        if self._experiment is None:
            for name, value in MLFLOW_VARIABLES.items():
                os.environ.setdefault(name, value)
            from prefdag.tracking.mlflow_client import (
                Experiment,  # seconds of MLflow: not before there is something to write
            )

            results = self.root.resolve().parent
            sentence = f"{results}: another process is making the tracking database"
            with _locked(results / ".mlflow.lock", self.patience, sentence):  # two that create its tables collide
                self._experiment = Experiment(self.uri, self.root.resolve())
        return self._experiment

    def _advance(self) -> tuple[list[Record], list[UserError]]:
        """All journals that have begun, oldest first, and what is wrong with the others.

        Journals are read newest first: a job sees its parents' weights, so whoever has read its line finds theirs.
        """
        broken: list[UserError] = []
        journals = (self.root / ".journal").glob("*.jsonl")
        for path in sorted(journals, key=lambda path: path.stem.split("-")[-2:], reverse=True):
            record = self._records.setdefault(path.stem, Record(path))
            try:
                record.advance()
                record.close_if_gone()
            except UserError as error:
                broken.append(error)
        begun = {record.start["id"]: record for record in self._records.values() if record.start}
        jobs = [(record.run_name, record.began, key) for key, record in begun.items()]
        for old, new in successors(jobs).items():
            begun[old].close_as_killed(f"{new} took its place")
        return sorted(begun.values(), key=attrgetter("began")), broken

    @contextmanager
    def _alone(self) -> Iterator[None]:
        (self.root / ".journal").mkdir(parents=True, exist_ok=True)
        with _locked(self.root / ".journal" / ".writer.lock", self.patience, f"{self.root}: another writer is at work"):
            yield


@contextmanager
def _locked(path: Path, patience: float, sentence: str) -> Iterator[None]:
    """Hold the lock of a file. Raises `UserError` when another process keeps it longer than `patience` seconds."""
    deadline = time.monotonic() + patience
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise UserError(f"{sentence} (process {file.read().strip()}); wait for it, or end it") from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"{os.getpid()} of {os.uname().nodename}")
        file.flush()
        yield
