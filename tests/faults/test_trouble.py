"""The tracker under faults of server, network, disk and process: each event is in the database once in the end.

Every trial replays the same journals and compares all that the database then holds with an undisturbed replay.
"""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from test_tracking import content, dead_pid, write_by_hand, write_dpo, write_sft

from faulty_proxy import FaultyProxy, once_each
from prefdag.errors import UserError
from prefdag.tracking.environment import MLFLOW_VARIABLES
from prefdag.tracking.sync import Writer

FAR = "20260101T00000{}000Z"


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Requests are tried again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefdag.tracking.sync._PAUSES", (0.05,) * 60)
        for name, value in {**MLFLOW_VARIABLES, "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0"}.items():
            patch.setenv(name, value)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A suite of four jobs: two finished, one of a machine far away that went silent, and its rerun."""
    root = tmp_path_factory.mktemp("project") / "results" / "suite"
    write_sft(root)
    write_dpo(root)
    write_by_hand(root, FAR.format(0), host="far", time=1e9)
    write_by_hand(root, FAR.format(1), host="far", time=1e9 + 1)
    return root


@pytest.fixture(scope="module")
def empty(root, tmp_path_factory) -> Path:
    """A database with MLflow's tables and nothing in them."""
    other = tmp_path_factory.mktemp("empty") / "results" / "other"
    write_by_hand(other, FAR.format(0), host="far", time=1e9)
    Writer(other).replay()
    path = other.parent / "mlflow.db"
    with sqlite3.connect(path) as database:
        for table in ("tags", "runs", "experiment_tags"):
            database.execute(f"delete from {table}")
        database.execute("delete from experiments where name = 'other'")
    return path


@pytest.fixture(scope="module")
def undisturbed(root, empty, tmp_path_factory) -> dict[str, object]:
    path = shutil.copy(empty, tmp_path_factory.mktemp("undisturbed"))
    uri = f"sqlite:///{path}"
    assert Writer(root, uri).replay() == 4
    return held(uri)


def held(uri: str) -> dict[str, object]:
    from mlflow.tracking import MlflowClient

    return content(MlflowClient(uri), "suite")


def forget(uri: str) -> None:
    """Make room for the next trial: the experiment keeps its runs under another name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    if experiment := client.get_experiment_by_name("suite"):
        client.rename_experiment(experiment.experiment_id, f"trial {experiment.experiment_id}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(backend: str, folder: Path) -> tuple[subprocess.Popen, str]:
    """A real `mlflow server`, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--workers", "1"]
    command += ["--artifacts-destination", (folder / "artifacts").as_uri(), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **MLFLOW_VARIABLES}, cwd=folder, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return process, f"http://127.0.0.1:{port}"
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.3)


def stop(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


@pytest.fixture(scope="module")
def server(empty, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    process, uri = serve(f"sqlite:///{shutil.copy(empty, folder)}", folder)
    yield uri
    stop(process)


def test_into_an_empty_server(root, server, undisturbed):
    forget(server)
    Writer(root, server).replay()
    assert held(server) == undisturbed


@pytest.mark.parametrize("fate", ["refuse", "error", "lost", "false", "half"])
def test_every_request_fails_once(root, server, undisturbed, fate):
    """Each of the requests of a replay, the first time that it comes; with `lost` and `false` it has come true."""
    forget(server)
    with FaultyProxy(server, once_each(fate)) as proxy:
        Writer(root, proxy.uri).replay()
        failed = {line for line, met in proxy.requests if met == fate}
    assert len(failed) > 15, failed
    assert held(server) == undisturbed


def test_creations_that_come_true_after_the_client_gave_up(root, server, undisturbed, monkeypatch):
    """The writer has made its own by then: of two runs, and of two models, one stays."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    forget(server)
    late = once_each("late", lambda line: line.endswith(("runs/create", "mlflow/logged-models")))
    with FaultyProxy(server, late, late=3.0) as proxy:
        Writer(root, proxy.uri).replay()
        assert sum(met == "late" for _, met in proxy.requests) == 6, "four runs, two models"
        time.sleep(4)
        Writer(root, proxy.uri).replay()
    assert held(server) == undisturbed


@pytest.mark.parametrize(("begin", "end"), [(0, 12), (9, 24)], ids=["at the start", "in the middle"])
def test_down_for_a_while(root, server, undisturbed, caplog, begin, end):
    forget(server)

    def fate(number: int, line: str, body: bytes) -> str:
        return "refuse" if begin <= number < end else "pass"

    with FaultyProxy(server, fate) as proxy:
        assert Writer(root, proxy.uri).follow(dead_pid(), poll=0.05)
    assert 1 <= caplog.text.count(" failed (") <= 2, "the same error is logged once"
    assert held(server) == undisturbed


def test_a_slow_server(root, server, undisturbed):
    forget(server)
    with FaultyProxy(server, lambda number, line, body: "slow", late=0.2) as proxy:
        Writer(root, proxy.uri).replay()
    assert held(server) == undisturbed


def test_a_server_that_stays_down_is_a_sentence(root, tmp_path, monkeypatch):
    monkeypatch.setattr("prefdag.tracking.sync._PAUSES", (0.05,))
    with pytest.raises(UserError, match="journals in .* are complete"):
        Writer(root, f"http://127.0.0.1:{free_port()}").replay()


def test_a_locked_database(root, empty, tmp_path, undisturbed):
    """Another process holds an exclusive transaction for a while."""
    path = Path(shutil.copy(empty, tmp_path))
    hold = "import sqlite3, sys, time; database = sqlite3.connect(sys.argv[1]); database.execute('begin exclusive')"
    hold += "; print(1, flush=True); time.sleep(4); print(time.monotonic(), flush=True)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout and other.stdout.readline() == "1\n"
    Writer(root, f"sqlite:///{path}").replay()
    ended = time.monotonic()
    assert float(other.communicate()[0]) < ended, "the writer came to its end while the database was another's"
    assert held(f"sqlite:///{path}") == undisturbed


def killed_after(statements: int, root: Path, uri: str) -> int:
    """Replay in a process that kills itself, with SIGKILL, when it is about to ask the database that many things."""
    child = os.fork()
    if child == 0:
        from sqlalchemy import Engine, event

        left = [statements]

        @event.listens_for(Engine, "before_cursor_execute")
        @event.listens_for(Engine, "commit")
        def count(*_: object) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        Writer(root, uri).replay()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("first", [20, 50])
def test_a_writer_killed_again_and_again(root, empty, tmp_path, undisturbed, first):
    """Each new writer gets a few statements further than the one before; what they leave is whole in the end."""
    uri = f"sqlite:///{shutil.copy(empty, tmp_path)}"
    ends: list[int] = []
    while 0 not in ends:
        ends.append(killed_after(first + 23 * len(ends), root, uri))
    assert ends[:-1] == [-signal.SIGKILL] * len(ends[:-1]) and len(ends) > 5, ends
    Writer(root, uri).replay()
    assert held(uri) == undisturbed


def test_a_full_disk(root, empty, tmp_path, undisturbed):
    """The database can grow no more, then there is room again."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    size = f"size={empty.stat().st_size + 400_000}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", mounted], check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (that takes root)")
    try:
        copy = mounted / "results" / "suite"
        shutil.copytree(root, copy)
        uri = f"sqlite:///{shutil.copy(empty, mounted / 'results')}"
        filler = mounted / "filler"
        for room in (40_000, 8_000, 0):
            with filler.open("ab") as file:
                file.write(bytes(max(0, shutil.disk_usage(mounted).free - room)))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("prefdag.tracking.sync._PAUSES", ())
                with pytest.raises(UserError, match=r"(full|No space left|disk I/O).*journals in .* are complete"):
                    Writer(copy, uri).replay()
        filler.unlink()
        Writer(copy, uri).replay()
        assert held(uri) == undisturbed
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)


INITDB = next(Path("/usr/lib/postgresql").glob("*/bin/initdb"), None) or shutil.which("initdb")


@pytest.fixture(scope="module")
def postgres() -> Iterator["Postgres"]:
    if not INITDB:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    database = Postgres(Path(INITDB).resolve().parent)
    yield database
    database.stop()
    shutil.rmtree(database.folder)


class Postgres:
    """A PostgreSQL of the tests' own, behind a socket in its folder."""

    def __init__(self, programs: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="prefdag-postgres-"))
        self.programs = programs
        self.user = {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
        if self.user:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-D", f"{self.folder}/data", "-U", "postgres", "-A", "trust", "--no-sync")
        self.start()
        self.uri = f"postgresql://postgres@/postgres?host={self.folder}"

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c shared_buffers=16MB"
        self._run("pg_ctl", "start", "-w", "-D", f"{self.folder}/data", "-o", options, "-l", f"{self.folder}/log")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", f"{self.folder}/data")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            **self.user,
        )
        assert done.returncode == 0, f"{program} {arguments}"


@pytest.fixture(scope="module")
def postgres_server(postgres, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("postgres-server")
    process, uri = serve(postgres.uri, folder)
    yield uri
    stop(process)


def test_postgres_behind_a_server(root, postgres_server, undisturbed):
    forget(postgres_server)
    with FaultyProxy(postgres_server, once_each("lost")) as proxy:
        Writer(root, proxy.uri).replay()
    assert held(postgres_server) == undisturbed


def test_postgres_dies_and_comes_back(root, postgres, postgres_server, undisturbed):
    """In the middle of a replay the database is stopped as by a power cut; the server answers 500 till it is back."""
    forget(postgres_server)

    def fate(number: int, line: str, body: bytes) -> str:
        if number == 12:
            postgres.stop()
        if number == 20:
            postgres.start()
        return "pass"

    with FaultyProxy(postgres_server, fate) as proxy:
        Writer(root, proxy.uri).replay()
    assert held(postgres_server) == undisturbed
