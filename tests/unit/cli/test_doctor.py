"""`prefdag doctor`: of one problem at a time, it reports that one with a remedy, and everything else as ok."""

import importlib.metadata
import json
import os
import shutil
import socket
import time
from collections import namedtuple
from pathlib import Path

import pytest
import yaml
from test_plan import SIZE

from conftest import MINI, ROOT
from prefdag.cli import doctor
from prefdag.cli.main import main
from prefdag.cli.plan import disk
from prefdag.config.loading import merge
from prefdag.config.sections.size import Size
from prefdag.config.suite import read_suite, resolve

PROGRAMS = {
    "sbatch": "",
    "scontrol": "echo 'SLURM_VERSION = 22.05.8'; echo 'MinJobAge = 300 sec'; echo 'AccountingStorageType = none'",
    "sinfo": "echo 'all* gpu:a100:4'",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder with a suite, without a GPU and without any program on PATH, Slurm's among them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in [name for name in os.environ if name.startswith(("PREFDAG_", "SLURM_", "MLFLOW_", "CUDA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(doctor, "read_site", lambda: doctor.Site())
    (tmp_path / "bin").mkdir()
    (tmp_path / "mini.yaml").write_text(MINI)
    return tmp_path


def program(place: Path, name: str, script: str) -> None:
    (place / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
    (place / "bin" / name).chmod(0o755)


def complaints(capsys: pytest.CaptureFixture[str], suite: str = "mini.yaml") -> tuple[int, list[str]]:
    """Return the exit code, and every line that is not ok."""
    code = main(["doctor", suite])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 8
    return code, [line for line in lines if not line.startswith("ok ")]


def test_a_healthy_machine(place: Path, capsys: pytest.CaptureFixture[str]):
    assert complaints(capsys) == (0, [])


def test_a_version_other_than_the_pin(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0" if name == "numpy" else real(name))
    code, lines = complaints(capsys)
    assert code == 0 and len(lines) == 1
    assert lines[0].startswith("warning  versions  numpy is 1.0, the pin is ")

    def missing(name: str) -> str:
        if name == "numpy":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    code, lines = complaints(capsys)
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith("error    versions  numpy is missing, the pin is ")


def test_a_folder_that_cannot_be_written_to(place: Path, capsys: pytest.CaptureFixture[str]):
    """A file in place of the folder: even root cannot write into it."""
    (place / "results").write_text("")
    code, lines = complaints(capsys)
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith("error    write     results is not writable (Not a directory); choose another")


def test_a_clock_that_is_ahead(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 600)
    code, lines = complaints(capsys)
    assert code == 0 and len(lines) == 1
    assert lines[0].startswith("warning  clock     new files are stamped +600 s from this machine's clock; sync")


def test_a_disk_that_is_too_small(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """1e9 parameters: base, SFT, a reward model and three runs of 4 bytes, and 12 of AdamW's state: 36 GB."""
    suite = merge(yaml.safe_load(MINI), {"size": SIZE})
    (place / "sized.yaml").write_text(yaml.safe_dump(suite))
    assert disk(resolve(suite, "x.yaml"), Size.model_validate(SIZE)) == 36
    checkpoints = merge(suite, {"preference": {"checkpoints": 2, "max_steps": 6}})
    assert disk(resolve(checkpoints, "x.yaml"), Size.model_validate(SIZE)) == 36 + 3 * 2 * 4
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 35e9))
    assert complaints(capsys)[1] == [], "this suite states no size"
    code, lines = complaints(capsys, "sized.yaml")
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith("error    space     35 GB free, 36 GB needed for weights and states; free some")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1e9))
    code, lines = complaints(capsys)
    assert (code, lines) == (0, ["warning  space     1 GB free; free some space: a full disk stops every job"])


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "lustre", "fuse.sshfs", "cifs"])
def test_sqlite_on_a_file_system_of_several_machines(
    kind: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (place / "mounts").write_text(f"/dev/root / ext4 rw 0 0\nserver:/x {place} {kind} rw 0 0\nother:/y /y nfs rw 0 0\n")
    real = doctor.file_system
    monkeypatch.setattr(doctor, "file_system", lambda path, mounts: real(path, place / "mounts"))
    code, lines = complaints(capsys)
    assert code == 0 and len(lines) == 1
    assert lines[0].startswith(
        f"warning  mlflow    {place}/results/mlflow.db is SQLite on {kind}; set MLFLOW_TRACKING_URI"
    )
    assert doctor.file_system(Path("/elsewhere"), place / "mounts") == "ext4"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@{address}")
        assert complaints(capsys) == (0, [])
    code, lines = complaints(capsys)
    assert code == 0 and len(lines) == 1
    assert lines[0].startswith(f"warning  mlflow    {address} does not answer (Connection refused); correct MLFLOW")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://tracking")
    assert "htp://tracking begins with htp:, which MLflow does not know" in complaints(capsys)[1][0]


def test_files_missing_from_the_cache_of_the_hub(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
    suite = merge(yaml.safe_load(MINI), {"model": {"source": "hub:some/model", "scratch": None}})
    (place / "hub.yaml").write_text(yaml.safe_dump(suite))
    code, lines = complaints(capsys, "hub.yaml")
    assert code == 0 and lines == [
        "warning  hub       model some/model is not in mini.lock.json; `prefdag lock` writes it from the Hub"
    ]
    files = {
        name: {"size": 500_000_000, "git_sha1": "0" * 40} for name in ("config.json", "model.safetensors", "big.bin")
    }
    lock = {"model some/model@main": {"commit": "c" * 40, "files": files}}
    (place / "mini.lock.json").write_text(json.dumps(lock))
    snapshot = place / "cache/models--some--model/snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    code, lines = complaints(capsys, "hub.yaml")
    assert code == 0 and len(lines) == 1
    assert lines[0].startswith(
        "warning  hub       1 of 2 files (0.5 GB) of model some/model are not in the Hub's cache"
    )
    (snapshot / "model.safetensors").touch()
    assert complaints(capsys, "hub.yaml") == (0, [])


def test_gpus_that_torch_does_not_see(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    program(place, "nvidia-smi", "echo 0")
    code, lines = complaints(capsys)
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith(
        "error    gpu       the system has 0, torch sees none: it is built for CPUs only; install"
    )


def test_slurm_in_order(place: Path, capsys: pytest.CaptureFixture[str]):
    for name, script in PROGRAMS.items():
        program(place, name, script)
    assert main(["doctor", "mini.yaml"]) == 0
    version = importlib.metadata.version("snakemake-executor-plugin-slurm")
    what = f"22.05.8, plugin {version}; squeue lists ended jobs for 300 s, no accounting"
    assert f"ok       slurm     {what}" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("name", "script", "level", "what"),
    [
        ("scontrol", "exit 1", "warning", "slurm     sbatch is installed, but the controller does not answer"),
        ("scontrol", "echo 'MinJobAge = 10 sec'", "error", "slurm     unknown version, plugin"),
        ("sinfo", "true", "error", "site      there is no partition gpu; choose one that `sinfo -s` lists"),
        ("sinfo", "echo 'gpu gpu:h100:4'", "error", "site      no node has a GPU of type a100; choose one that `sinfo"),
    ],
)
def test_slurm_out_of_order(
    name: str, script: str, level: str, what: str,
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(doctor, "read_site", lambda: doctor.Site(partition="gpu", gpu="a100"))
    for other, usual in PROGRAMS.items():
        program(place, other, usual)
    assert complaints(capsys) == (0, [])
    program(place, name, script)
    code, lines = complaints(capsys)
    assert code == (level == "error") and len(lines) == 1
    assert lines[0].startswith(f"{level:8} {what}")


def test_slurm_conf_is_hidden_from_srun(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name, script in PROGRAMS.items():
        program(place, name, script)
    monkeypatch.setenv("SLURM_CONF", "/somewhere")
    code, lines = complaints(capsys)
    assert code == 0 and len(lines) == 1
    assert lines[0].startswith(
        "warning  slurm     SLURM_CONF is set, but the plugin hides it from srun inside jobs; if jobs fail"
    )


def test_the_pins_are_the_projects():
    assert doctor.PROJECT == ROOT / "pyproject.toml"


def test_the_route_of_a_model_is_stated(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    suite = merge(yaml.safe_load(MINI), {"model": {"source": str(place / "model"), "scratch": None}})
    (place / "local.yaml").write_text(yaml.safe_dump(suite))
    (place / "model").mkdir()
    for name, route in (("llama", "packed (segments)"), ("gptj", "packed (mask), last layer whole: packed (segments)")):
        (place / "model/config.json").write_text(json.dumps({"model_type": name}))
        (finding,) = doctor.route(read_suite(["local.yaml"]), place / "results")
        assert finding.level == "ok" and finding.what.startswith(f"{place / 'model'} ({name}) is computed {route}")
