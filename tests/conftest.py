"""A finished run of a miniature suite, made once: the DAG's tests change copies of it."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in the workflow: other workers need the cores of waiting threads
ROOT = Path(__file__).parent.parent
sys.path += [str(path) for path in sorted((ROOT / "tests").rglob("*")) if path.is_dir()]
# Begun first, so that no core waits at the end for the last of them.
LONGEST = ("test_run", "test_slurm", "test_faults", "test_hh", "test_suites", "test_trouble", "test_shell")
GOLDEN = re.compile(r'"golden["/]')
MINI = """
name: mini
threads: 1
model:
  source: scratch
  scratch: {architecture: llama, vocab_size: 500, hidden_size: 32, layers: 1, heads: 2, context: 256}
data:
  source: world
  world: {reviews: 1500, validation_reviews: 30, train_prompts: 24, validation_prompts: 8, test_prompts: 16}
prepare:
  adapter: world
  template: continuation
  bos: true
  end_of_turn: eos
  over_long: drop
  max_prompt_tokens: 64
  max_response_tokens: 200
pretrain: {batch_size: 32, max_steps: 60, epochs: 9, learning_rate: 1e-2, warmup_steps: 5}
sft: {batch_size: 16, max_steps: 10, learning_rate: 1e-3}
pairs: {num_samples: 4, max_new_tokens: 128}
reward: {batch_size: 8, learning_rate: 1e-3, max_steps: 6}
reference: {}
preference: {batch_size: 2, epochs: 1, max_steps: 5, learning_rate: 1e-3}
generate: {max_new_tokens: 64}
score: {reward: vader, bootstrap: 100}
judge: {bootstrap: 100}
runs:
  - {name: dpo, method: dpo, beta: 0.1}
  - {name: dpo-strong, method: dpo, beta: 1}
  - {name: simpo, method: simpo}
"""


OWN_LOSS = """
import torch.nn.functional as F
from prefdag.models.logprobs import margin

def my_dpo(policy, reference, beta: float = 0.1):
    \"\"\"DPO, once more.\"\"\"
    return -F.logsigmoid(beta * margin((policy - reference).total))
"""
OWN_METHOD = "my_losses.py:my_dpo"


@dataclass(frozen=True)
class Project:
    """A copy of the repository in a separate folder."""

    folder: Path

    def snakemake(
        self, *arguments: str, suite: str = "configs/mini.yaml", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Snakemake at the copy's root, as a user would, on one suite; MLflow only if PREFDAG_TRACK says so."""
        options = [*arguments, *(["--configfile", suite] if suite else [])]
        return run_snakemake(self.folder, options, {**environment(), "PREFDAG_TRACK": "later", **variables})

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace `old`, which must occur exactly once, by `new`."""
        text = (self.folder / path).read_text()
        assert text.count(old) == 1, f"{path}: {old!r} occurs {text.count(old)} times"
        (self.folder / path).write_text(text.replace(old, new))


def environment() -> dict[str, str]:
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "MLFLOW"))
    }
    return {**variables, "OMP_NUM_THREADS": "1"}


@cache
def snakemake_server() -> subprocess.Popen[str]:
    """A process that has imported Snakemake; it ends with this one, whose pipe it reads."""
    command = [sys.executable, str(ROOT / "tests/helpers/snakemake_server.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(), **pipes)


def run_snakemake(folder: Path, arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    server = snakemake_server()
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name, "out"), Path(name, "err")
        request = {"folder": str(folder), "arguments": arguments, "environment": variables}
        server.stdin.write(json.dumps({**request, "out": str(out), "err": str(err)}) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, *(path.read_text(errors="replace") for path in (out, err)))


def tracked_files() -> list[Path]:
    """Return the files that git tracks and that exist."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def checkout(folder: Path) -> Project:
    """Copy what a clone holds to a new folder, and add the miniature suite."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target, follow_symlinks=False)
    (folder / "configs/mini.yaml").write_text(MINI)
    return Project(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@cache
def reads_golden_values(path: Path) -> bool:
    """Return whether a test module reads tests/golden: the executed values of other projects, in this repository."""
    return path.is_file() and GOLDEN.search(path.read_text(encoding="utf-8")) is not None


def not_skipped(report: Any, path: Path) -> Any:
    """Turn a skip of golden tests into a failure: without them, a green run would say less than it seems to."""
    if report.skipped and not hasattr(report, "wasxfail") and reads_golden_values(path):
        report.outcome, report.longrepr = "failed", f"{report.nodeid}: golden tests may not be skipped"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    return not_skipped((yield), item.path)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[Any]:
    return not_skipped((yield), collector.path)


@pytest.fixture(autouse=True)
def variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one test left in the environment would be another's riddle, or its endless wait for a GPU."""

    def ours() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith(("PREFDAG_", "CUDA_", "SLURM_"))}

    before = ours()
    yield
    monkeypatch.undo()
    assert ours() == before


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature suite, really run to its end, once for all workers. Read only: take `copy` to change something."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        project = Project(shared / "finished" / "prefdag")
        if not (shared / "finished.done").exists():
            checkout(project.folder)
            done = project.snakemake(PREFDAG_TRACK="now")
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            (shared / "finished.done").touch()
    return project


def with_rows(finished: Project, folder: Path, rows: str) -> Project:
    """Copy the finished suite, times and all, and end its file with `rows`."""
    subprocess.run(["cp", "-a", str(finished.folder), str(folder / "prefdag")], check=True)
    project = Project(folder / "prefdag")
    with (project.folder / "configs/mini.yaml").open("a") as stream:
        stream.write(rows)
    return project


@pytest.fixture
def copy(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished run, times and all."""
    shutil.copytree(finished.folder, tmp_path / "prefdag", symlinks=True)
    return Project(tmp_path / "prefdag")


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory that holds a user's loss."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_losses.py").write_text(OWN_LOSS)
    return tmp_path
