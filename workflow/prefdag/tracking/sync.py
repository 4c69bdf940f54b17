"""Write the journals of a suite into the tracking database, live or afterwards, one writer at a time."""

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prefdag.errors import UserError
from prefdag.provenance.journal import process_is_gone
from prefdag.provenance.manifest import Manifest
from prefdag.provenance.redaction import redact
from prefdag.tracking.environment import MLFLOW_VARIABLES, problem_with, tracking_uri
from prefdag.tracking.links import write_page
from prefdag.tracking.records import Record, successors

if TYPE_CHECKING:
    from prefdag.tracking.mlflow_client import Experiment

T = TypeVar("T")
logger = logging.getLogger(__name__)
_PAUSES = (1.0, 2.0, 4.0)  # seconds between the attempts of a replay


class Writer:
    """Write the journals of a suite into the tracking database.

    Args:
        root: The suite's folder.
        uri: The database; by default `tracking_uri` of the results folder.
        patience: Seconds to wait for another writer, and for MLflow after the workflow's end.
    """

    def __init__(self, root: Path, uri: str | None = None, *, patience: float = 60.0) -> None:
        self.root, self.patience = root, patience
        self.uri = uri or tracking_uri(root.resolve().parent)
        self._records: dict[str, Record] = {}
        self._experiment: Experiment | None = None
        self._messages: set[str] = set()
        self._uncertain = False  # a request failed, but the server may have carried it out

    def replay(self) -> int:
        """Write everything that the database lacks, and return the number of journals.

        Raises:
            UserError: There is no journal, another writer is running, or MLflow fails repeatedly.
        """
        return self._retry(self._write_all)

    def register(self, manifest: Manifest, name: str, alias: str | None, upload: bool) -> str:
        """Replay, then register a policy (see `registry.register`). Raises `UserError` as `replay` does."""
        from prefdag.tracking.registry import register

        def write_and_register() -> str:
            self._write_all()
            return register(self._open(), manifest, name, alias, upload)

        return self._retry(write_and_register)

    def _retry(self, work: Callable[[], T]) -> T:
        folder = self.root / ".journal"
        if not any(folder.glob("*.jsonl")):
            raise UserError(f"{folder}: no journals; give the folder of a suite that has run, such as results/<suite>")
        with self._alone():
            for pause in (*_PAUSES, None):
                try:
                    return work()
                except Exception as error:
                    if pause is None or isinstance(
                        error, UserError
                    ):  # another attempt would read the same broken journal
                        raise UserError(self._complaint(error)) from None
                    time.sleep(pause)
        raise AssertionError  # the last attempt returned or raised

    def follow(self, parent_pid: int, poll: float = 2.0) -> bool:
        """Write until the process `parent_pid` ends or SIGTERM comes, then once more.

        A failure of MLflow is printed and retried, at growing intervals; it never ends a workflow. At the end, a server
        that does not answer is not waited for.

        Args:
            parent_pid: The workflow's process.
            poll: Seconds between two looks at the journals.

        Returns:
            Whether everything was written.
        """
        stop, began, wait = threading.Event(), time.time(), poll
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        with self._alone():
            while not stop.wait(wait) and not process_is_gone(parent_pid, began):
                wait = poll if self._attempt() else min(2 * wait, 60.0)
            deadline, wait = time.monotonic() + self.patience, poll
            while not (done := self._attempt(last=True)) and time.monotonic() + wait < deadline:
                if problem_with(self.uri):
                    break
                time.sleep(wait)
                wait *= 2
        if not done:
            later = " once it is reachable" if problem_with(self.uri) else ""
            self._warn(f"some runs are not in MLflow yet; run `prefdag track {self.root}`{later}")
        return done

    @property
    def shown_uri(self) -> str:
        """The database's address, without a password."""
        return str(redact(self.uri))

    def _attempt(self, last: bool = False) -> bool:
        if problem := problem_with(self.uri):  # MLflow's own retries would take minutes
            self._warn(f"{problem}; the journals in {self.root}/.journal are complete")
            return False
        try:
            self._write_all() if last else self._write()
        except Exception as error:
            self._warn(self._complaint(error))
            return False
        return True

    def _write_all(self) -> int:
        """Write; after a failed request, read the database again and write what it still lacks."""
        number = self._write()
        if self._uncertain:
            self._experiment = None
            number = self._write()
            self._uncertain = False
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

    def _warn(self, message: str) -> None:
        """Print a message, once however often it comes."""
        if message not in self._messages:
            self._messages.add(message)
            logger.warning(message)

    def _write(self) -> int:
        records, broken = self._advance()
        if records:
            try:
                self._write_records(records)
            except Exception:
                self._experiment, self._uncertain = None, True  # read the database again before the next attempt
                raise
        if broken:
            raise broken[0]
        return len(records)

    def _write_records(self, records: list[Record]) -> None:
        experiment, errors = self._open(), []
        for record in records:
            try:
                experiment.write(record)
            except Exception as error:  # write the other journals all the same
                errors.append(error)
                if len(errors) == 3:  # the database fails, not a journal
                    raise
        experiment.mark_superseded()
        if errors:
            raise errors[0]
        for record in records:
            experiment.describe(record)
        from prefdag.tracking.results import nest  # imports MLflow

        nest(experiment.client, records, experiment.runs)

    def _open(self) -> "Experiment":
        if self._experiment is None:
            for name, value in MLFLOW_VARIABLES.items():
                os.environ.setdefault(name, value)
            from prefdag.tracking.mlflow_client import Experiment  # importing MLflow takes seconds

            results = self.root.resolve().parent
            # Two processes that create the tables of one database collide.
            busy = f"{results}: another process is creating the tracking database"
            with _locked(results / ".mlflow.lock", self.patience, busy):
                self._experiment = Experiment(self.uri, self.root.resolve())
        return self._experiment

    def _advance(self) -> tuple[list[Record], list[UserError]]:
        """Read on in all journals; return those that have begun, oldest first, and the errors of broken ones.

        The newest journal is read first: a job starts after its parents' weights are recorded, so those lines are there
        when the older journals are read afterwards.
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
        with _locked(self.root / ".journal" / ".writer.lock", self.patience, f"{self.root}: another writer is running"):
            yield


@contextmanager
def _locked(path: Path, patience: float, busy: str) -> Iterator[None]:
    """Hold a lock file. Raises `UserError`, which begins with `busy`, where another holds it for `patience` seconds."""
    deadline = time.monotonic() + patience
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise UserError(f"{busy} (process {file.read().strip()}); wait for it, or end it") from None
                time.sleep(0.2)
        file.truncate(0)
        file.write(f"{os.getpid()} of {os.uname().nodename}")
        file.flush()
        yield
