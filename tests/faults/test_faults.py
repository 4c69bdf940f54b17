"""A fixed selection of the trials of `faults.py`, and a killed and restarted Snakemake."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_bench import BY_FOLDER, UNDER_TEST, Bench, Command, R, bench, can_mount, send, steps_taken

import faults
from conftest import Project, environment
from faults import LATE, REMEDIED, SAME, Trial, attempt

RESULTS = "results/mini"
CELLS = [
    (faults.killed, "pretrain", {SAME}),
    (faults.killed, "preference", {SAME}),
    (faults.killed, "generate", {SAME, LATE}),
    (faults.told_to_stop, "sft", {SAME}),
    (faults.told_to_stop, "judge", {SAME, LATE}),
    (faults.stopped_and_killed, "reward", {SAME}),
    (faults.twice, "preference", {"both finish with the same output"}),
    (faults.little_memory, "sft", {REMEDIED, LATE}),
    (faults.full_disk, "preference", {REMEDIED}),
    (faults.full_disk, "generate", {REMEDIED}),
    (faults.limited_files, "reward", {REMEDIED, LATE}),
    (faults.read_only, "judge", {REMEDIED}),
    (faults.cut_state, "preference", {REMEDIED}),
    (faults.flipped_state, "sft", {REMEDIED}),
    (faults.flipped_input, "preference", {REMEDIED}),
    (faults.flipped_input, "judge", {REMEDIED}),
    (faults.flipped_weights, "generate", {REMEDIED}),
    (faults.other_weights, "reward", {REMEDIED}),
    (faults.flipped_manifest, "generate", {REMEDIED}),
    (faults.deleted_input, "sft", {REMEDIED}),
    (faults.deleted_manifest, "pretrain", {REMEDIED}),
    (faults.not_finite, "preference", {"an error message with step, comparisons and last good state"}),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("bench")) as made:
        yield made


@pytest.mark.parametrize(("fault", "stage", "outcomes"), CELLS, ids=lambda one: getattr(one, "__name__", None))
def test_a_fault(fault, stage: str, outcomes: set[str], world: Bench, tmp_path: Path) -> None:
    if fault in faults.NEED_MOUNTS and (refusal := can_mount()):
        pytest.skip(refusal)
    assert attempt(world, fault, stage, 0, tmp_path / "trial") in outcomes


def test_an_abandoned_state_goes_with_the_next_that_is_finished(world: Bench, tmp_path: Path) -> None:
    """Stopped under another learning rate, which is then given up; another run's state is left alone."""
    world.copy(tmp_path, "preference/dpo")
    command = BY_FOLDER["preference/dpo"]
    other = Command(command.folder, {**command.config, "preference": {**command.config["preference"], "max_steps": 59}})
    job = world.start(tmp_path, Command(command.folder, other.config, command.inputs).arguments())
    while job.process.poll() is None and not steps_taken(tmp_path, "preference"):
        time.sleep(0.002)
    send(job, signal.SIGTERM)
    assert job.end()[0] == 143
    left = tmp_path / R / ".resume"
    (abandoned,) = left.iterdir()
    assert (abandoned / "state.pt").exists()
    for name in ("preference-dpo-0-0123456789abcdef", "preference-dp-0123456789abcdef", "sft-all-0123456789abcdef"):
        (left / name).mkdir()
    assert world.start(tmp_path, command.arguments()).end()[0] == 0
    assert not abandoned.exists() and len(list(left.iterdir())) == 3


def test_a_damaged_answer_of_a_judge_is_asked_for_again(world: Bench, tmp_path: Path) -> None:
    """A, one bit from C, would be another verdict: the answers of a killed job, one of them changed on the disk."""
    world.copy(tmp_path, "judge/dpo")
    shutil.copytree(world.base / R / ".judge", tmp_path / R / ".judge")
    (cache,) = (tmp_path / R / ".judge").glob("*.jsonl")
    lines = cache.read_text().splitlines()
    entry = json.loads(lines[3])
    lines[3] = lines[3].replace(f"Preferred: {entry['answer'][-1]}", f"Preferred: {'AB'[entry['answer'][-1] == 'A']}")
    cache.write_text("\n".join(lines) + "\n")
    requests_made = len(world.judge.requests)
    trial = Trial(world, "judge", tmp_path, None)  # type: ignore[arg-type]
    assert trial.finish(SAME) == SAME and len(world.judge.requests) == requests_made + 1


def snakemake(project: Project, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", "configs/mini.yaml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=project.folder, env=environment(), start_new_session=True, **pipes)


def test_snakemake_twice_killed_and_started_again(copy: Project) -> None:
    """A second one on the folder says why not; SIGKILL leaves a lock and a job: unlock, start, the same manifests."""
    runs, stages = ("dpo", "dpo-strong"), ("preference", "generate", "score", "judge")
    targets = [f"{RESULTS}/judge/{run}/manifest.json" for run in runs]
    made = [copy.folder / RESULTS / stage / run / "manifest.json" for stage in stages for run in runs]
    manifests = {path: path.read_bytes() for path in made}
    for path in made:
        shutil.rmtree(path.parent)
    first = snakemake(copy, *targets)
    journals = copy.folder / RESULTS / ".journal"
    before = set(journals.glob("preference-*"))
    while first.poll() is None and not set(journals.glob("preference-*")) - before:
        time.sleep(0.005)
    assert first.poll() is None
    second = copy.snakemake(*targets)
    assert second.returncode != 0 and "another Snakemake runs here" in second.stdout + second.stderr
    assert "Traceback" not in second.stdout + second.stderr
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    if (locked := copy.snakemake(*targets)).returncode != 0:  # else the first was done already
        assert "--unlock" in locked.stdout + locked.stderr
        assert copy.snakemake("--unlock").returncode == 0
        again = copy.snakemake(*targets)
        assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.read_bytes() for path in manifests} == manifests
    assert not list((copy.folder / RESULTS / ".partial").iterdir())
    assert "Nothing to be done" in (done := copy.snakemake("-n", *targets)).stdout + done.stderr


def test_every_stage_under_test_is_met() -> None:
    assert {stage for _, stage, _ in CELLS} == set(UNDER_TEST)
