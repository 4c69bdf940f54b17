"""A job's own command starts its processes: by real torchrun, and what they end with is what the command ends with."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from artifacts import manifest_of
from comparisons import comparisons, stored, tiny
from conftest import MINI, ROOT, environment
from prefdag.cli.main import main
from prefdag.config.resources import resources_of, threads_of
from prefdag.config.sections.sft import SFT
from prefdag.config.suite import Suite, resolve
from prefdag.distributed.launch import Shape, launch, requested_shape
from prefdag.errors import UserError
from prefdag.stages.sft import Job

STEPS = 200
SETTINGS = {"batch_size": 5, "learning_rate": 1e-4, "max_steps": STEPS, "epochs": 999, "tokens_per_batch": 40}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and demonstrations where the stage expects them."""
    folder = tmp_path_factory.mktemp("launch") / "suite"
    tiny(dtype=torch.float32).save_pretrained(folder / "base/model")
    manifest_of(folder / "base")
    for number, (split, num) in enumerate({"train": 13, "validation": 4}.items()):
        stored(folder / f"prepare/demonstrations/{split}", comparisons(num, 1, seed=number))
    manifest_of(folder / "prepare/demonstrations")
    return folder


def command(suite: Path, folder: Path, **settings: Any) -> list[str]:
    config = json.dumps({"sft": {**SETTINGS, **settings}})
    inputs = ["--base", suite / "base/manifest.json"]
    inputs += ["--demonstrations", suite / "prepare/demonstrations/manifest.json"]
    return ["sft", "--config", config, *map(str, inputs), "--output", str(folder / "sft/manifest.json")]


class Training:
    """`prefdag sft` on a number of processes, in the background."""

    def __init__(self, suite: Path, folder: Path, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prefdag", *command(suite, folder, **settings)],
                env={**environment(), "PYTHONPATH": str(ROOT / "workflow")}, stdout=log, stderr=log,
            )  # fmt: skip

    def ended(self) -> int:
        return self.process.wait(timeout=300)

    def steps(self) -> int:
        """Steps that the latest journal knows of."""
        journals = sorted((self.folder / ".journal").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        return journals[-1].read_text().count('"step": ') if journals else 0

    def trains(self) -> list[psutil.Process]:
        """Wait for a few steps; the processes that take them."""
        while self.steps() < 5:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        return psutil.Process(self.process.pid).children()


def losses(folder: Path) -> list[float]:
    with (folder / "sft/curves.csv").open() as stream:
        return [float(line["loss"]) for line in csv.DictReader(stream)]


@pytest.fixture
def started() -> Iterator[list[Training]]:
    """Trainings that are not to outlive their test."""
    trainings: list[Training] = []
    yield trainings
    for training in trainings:
        training.process.kill()
        training.process.wait()


def test_two_processes_that_are_stopped_leave_their_state_to_one(
    suite: Path, tmp_path: Path, started: list[Training]
) -> None:
    """The command gets the signal; both ranks end their step, one of them reports it, and no process remains."""
    started.append(stopped := Training(suite, tmp_path / "stopped", processes=2))
    ranks = stopped.trains()
    assert len(ranks) == 2
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.ended() == 128 + signal.SIGTERM
    sentence = "prefdag: stopped by SIGTERM; the next run continues from its saved state"
    assert stopped.log.read_text().count("prefdag:") == 1 and sentence in stopped.log.read_text()
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    assert not (stopped.folder / "sft/manifest.json").exists() and not list((stopped.folder / ".partial").iterdir())
    assert stopped.steps() < STEPS
    assert main(command(suite, stopped.folder)) == main(command(suite, tmp_path / "whole")) == 0
    resumed, whole = losses(stopped.folder), losses(tmp_path / "whole")
    assert len(resumed) == STEPS and resumed == pytest.approx(whole, abs=1e-4)
    assert resumed != whole, "some steps were taken by two processes, in other sums"
    assert not list((stopped.folder / ".resume").iterdir())


def test_two_processes_make_what_one_makes(suite: Path, tmp_path: Path, started: list[Training]) -> None:
    """Three steps with shared layers: curve, weights under the same names, one journal, one report."""
    started.append(two := Training(suite, tmp_path / "two", max_steps=3, processes=2, sharding="sharded"))
    assert two.ended() == 0, two.log.read_text()
    assert main(command(suite, tmp_path / "one", max_steps=3)) == 0
    assert losses(two.folder) == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    one, other = (load_file(tmp_path / name / "sft/model/model.safetensors") for name in ("one", "two"))
    assert one.keys() == other.keys()
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-6
    assert len(list((two.folder / ".journal").iterdir())) == 1
    assert two.log.read_text().count("step 3/3") == 1
    config = json.loads((two.folder / "sft/manifest.json").read_text())["config"]["sft"]
    assert (config["processes"], config["sharding"]) == (2, "sharded")


def test_an_error_of_all_ranks_is_reported_once(suite: Path, tmp_path: Path, started: list[Training]) -> None:
    started.append(Training(suite, tmp_path, processes=2, learning_rate=1e30))
    assert started[0].ended() == 2
    (line,) = (line for line in started[0].log.read_text().splitlines() if "step 1/" not in line)
    assert re.match(
        r"prefdag: step \d: the (loss|gradient's norm) is nan; the step's comparisons are (\d+, )+\d+ \(", line
    )


def test_the_death_of_one_is_the_end_of_all(suite: Path, tmp_path: Path, started: list[Training]) -> None:
    started.append(Training(suite, tmp_path, processes=2, max_steps=100_000))
    ranks = started[0].trains()
    ranks[1].kill()
    assert started[0].ended() in (1, 128 + signal.SIGKILL)  # whichever torchrun sees first: the dead, or who missed it
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)


def test_what_a_config_asks_for() -> None:
    assert requested_shape(["sft", "--config", '{"sft": {"processes": 4, "nodes": 2, "threads": 3}}']) == Shape(4, 2, 3)
    assert requested_shape(["sft", '--config={"sft": {"processes": 2}}']) == Shape(2)
    for config in ('{"sft": {"processes": "2"}}', '{"sft": {"processes": 3, "nodes": 2}}', "[]", "{", '{"judge": {}}'):
        assert requested_shape(["sft", "--config", config]) == Shape(), "what the stage is to refuse, or has none of"
    assert requested_shape(["sft", "--help"]) == requested_shape(["sft", "--config"]) == Shape()


def test_several_nodes_need_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"sft --config: nodes: 2 nodes need Slurm; run with --profile"):
        launch(["sft", "--config", '{"sft": {"processes": 2, "nodes": 2}}'])


def test_a_torchrun_of_the_users_own_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="processes: 2, but torchrun has started 3; leave torchrun to this command"):
        launch(["sft", "--config", '{"sft": {"processes": 2}}'])
    assert launch(["sft", "--config", '{"sft": {"processes": 3}}']) is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"processes": 3, "nodes": 2}, "processes: 3 cannot be spread evenly over 2 nodes"),
        ({"sharding": "sharded"}, "sharding: one process has nothing to shard over; state processes: 2 or more"),
    ],
)
def test_processes_that_do_not_agree_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SFT.parse({"batch_size": 2, "learning_rate": 0.1, **settings}, "suite.yaml", "sft")


@pytest.mark.parametrize(
    ("settings", "gpu", "tasks", "others"),
    [
        ({}, 1, 1, {"tasks_per_gpu": None, "mpi": None}),
        ({"processes": 4}, 4, 1, {"tasks_per_gpu": 0, "mpi": None}),
        ({"processes": 4, "nodes": 2}, 4, 2, {"tasks_per_gpu": 0, "mpi": "srun"}),
    ],
)
def test_what_a_training_asks_of_a_cluster(settings: dict[str, Any], gpu: int, tasks: int, others: Any) -> None:
    """A row's own number of processes; threads are those of a machine's processes together."""
    rows = [{"name": "a", "method": "dpo", "threads": 3, **settings}, {"name": "b", "method": "dpo"}]
    resolved = resolve({**yaml.safe_load(MINI), "runs": rows}, "tests")
    assert isinstance(resolved, Suite)
    assert resources_of(resolved, "preference", "a") == {"gpu": gpu, "nodes": tasks, "tasks": tasks, **others}
    assert threads_of(resolved, "preference", "a") == 3 * gpu // tasks
    assert resources_of(resolved, "preference", "b")["gpu"] == resources_of(resolved, "sft")["gpu"] == 1


def test_the_saved_state_is_found_by_any_number_of_processes() -> None:
    """What the key of the state is made of leaves them out; the config, and so the rule's parameter, does not."""
    one, other = (
        Job.model_validate({"sft": {"batch_size": 2, "learning_rate": 0.1, **more}})
        for more in ({}, {"processes": 4, "nodes": 2, "sharding": "sharded"})
    )
    assert one.stable_part() == other.stable_part() and one.canonical() != other.canonical()
    left_out = {"processes": 1, "nodes": 1, "sharding": "replicated"}
    assert one.stable_part()["sft"] | left_out == one.sft.model_dump(mode="json")
