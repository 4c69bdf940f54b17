"""A mistake ends in one sentence and exit code 2, and leaves no file behind."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, environment, run_snakemake
from manifests import bare
from prefdag.cli.main import main
from prefdag.config.model import Architectural
from prefdag.models.loading import build
from prefdag.provenance.manifest import sha256_of

SCRATCH = Architectural(architecture="llama", hidden_size=16, layers=1, heads=2, context=64)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails with exit code 2, and return its sentence."""
    assert main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prefdag: ")]
    assert len(lines) == 1
    return lines[0]


def fetch(capsys: pytest.CaptureFixture[str], folder: Path, what: str, **config: Any) -> str:
    output = folder / f"out/fetch/{what}/manifest.json"
    message = error_of(capsys, "fetch", "--config", json.dumps({what: config}), "--output", str(output))
    assert not output.exists()
    assert not list((folder / "out/.partial").iterdir())
    assert not [path for path in output.parent.iterdir() if path.name != "log.txt"]
    return message


def test_unknown_commands_and_broken_json(capsys: pytest.CaptureFixture[str]):
    assert "neither a stage nor a tool" in error_of(capsys, "frobnicate")
    assert "not valid JSON" in error_of(
        capsys, "judge", "--config", "{", "--scores", "a", "--against", "b", "--output", "c"
    )


def test_a_missing_file(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert "does not exist" in fetch(capsys, tmp_path, "data", source=str(tmp_path / "none"), train="a.jsonl")
    assert "no file matches 'a.jsonl'" in fetch(capsys, tmp_path, "data", source=str(tmp_path), train="a.jsonl")


def test_a_model_folder_without_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert "holds no config.json" in fetch(capsys, tmp_path, "model", source=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "holds no weights (*.safetensors)" in fetch(capsys, tmp_path, "model", source=str(tmp_path))
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "a Git-LFS pointer" in fetch(capsys, tmp_path, "model", source=str(tmp_path))


def test_a_tokenizer_folder_without_tokenizer(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert "holds neither tokenizer.json" in fetch(capsys, tmp_path, "tokenizer", source=str(tmp_path))


def test_a_missing_input(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    arguments = ["--config", '{"judge": {}}', "--scores", f"{tmp_path}/a/manifest.json", "--against", "b"]
    message = error_of(capsys, "judge", *arguments, "--output", f"{tmp_path}/judge/x/manifest.json")
    assert "no such manifest; run the stage that makes it first" in message


def test_answers_of_nobody_need_a_tokenizer(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "manifest.json").write_text(bare())
    arguments = ["--config", '{"generate": {}}', "--comparisons", f"{tmp_path}/manifest.json"]
    message = error_of(capsys, "generate", *arguments, "--output", f"{tmp_path}/generate/chosen/manifest.json")
    assert "give a policy's manifest, or --tokenizer one for the chosen responses" in message


def test_a_full_disk(tmp_path: Path):
    """On a real small file system, if one can be mounted: nothing half-written stays."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small file system can be made here")
    try:
        world = {
            "reviews": 5000,
            "validation_reviews": 10,
            "train_prompts": 10,
            "validation_prompts": 5,
            "test_prompts": 5,
        }
        config = json.dumps({"data": {"source": "world", "world": world}})
        command = [sys.executable, "-m", "prefdag", "fetch", "--config", config]
        command += ["--output", str(small / "suite/fetch/data/manifest.json")]
        inside = {**environment(), "PYTHONPATH": str(ROOT / "workflow")}
        done = subprocess.run(command, env=inside, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert "no space left while writing" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(small.rglob("manifest.json"))
        assert not list((small / "suite/.partial").iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny suite, by plain commands, up to the comparisons; its `sft` is an untrained model."""
    folder = tmp_path_factory.mktemp("plain") / "suite"
    world = {"reviews": 60, "validation_reviews": 10, "train_prompts": 10, "validation_prompts": 5, "test_prompts": 5}
    pretrain = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": 2}
    scratch = SCRATCH.model_dump() | {"vocab_size": 300}
    _stage(folder, "fetch/data", {"data": {"source": "world", "world": world}})
    config = {"adapter": "world", "scratch": scratch, "pretrain": pretrain}
    _stage(folder, "pretrain", config, data="fetch/data")
    rows = [{"prompt": f"p{n}", "responses": ["good", "bad"], "scores": [1, 0]} for n in range(30)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    raw = folder / "raw"
    raw.mkdir()
    for split in ("train", "validation", "test"):
        (raw / f"{split}.jsonl").write_text(text.replace('"prompt": "p', f'"prompt": "{split} '))
    data = {"source": str(raw), **{split: f"{split}.jsonl" for split in ("train", "validation", "test")}}
    shutil.rmtree(folder / "fetch")
    _stage(folder, "fetch/data", {"data": data})
    prepare = {"adapter": "pairs", "template": "plain", "bos": True, "end_of_turn": "eos", "over_long": "drop"}
    prepare |= {"max_prompt_tokens": 50, "max_response_tokens": 50}
    config = {"prepare": prepare, "dataset": "comparisons"}
    _stage(folder, "prepare/comparisons", config, rows="fetch/data", tokenizer="pretrain")
    _stage(folder, "reference", {"reference": {}}, policy="pretrain", comparisons="prepare/comparisons")
    return folder


def _command(folder: Path, output: str, config: dict[str, Any], **inputs: str) -> list[str]:
    options = [text for name, path in inputs.items() for text in (f"--{name}", str(folder / path / "manifest.json"))]
    stage = output.split("/")[0]
    return [stage, "--config", json.dumps(config), *options, "--output", str(folder / output / "manifest.json")]


def _stage(folder: Path, output: str, config: dict[str, Any], **inputs: str) -> None:
    assert main(_command(folder, output, config, **inputs)) == 0


def align(folder: Path, *, policy: str = "pretrain", **settings: Any) -> list[str]:
    training = {"batch_size": 4, "learning_rate": 1e-3, "max_steps": 2, **settings}
    config = {"preference": training, "objective": {"method": "dpo", "beta": 0.1}}
    return _command(
        folder, "preference/x", config, policy=policy, comparisons="prepare/comparisons", reference="reference"
    )


def test_a_cache_of_another_model(prepared: Path, capsys: pytest.CaptureFixture[str]):
    """The same shape, other weights: refused by the key, before any step."""
    other = prepared / "sft"
    shutil.copytree(prepared / "pretrain", other)
    build(SCRATCH, 300, 0, 1, seed=1).save_pretrained(other / "model")
    stated_anew(other / "manifest.json", "model/model.safetensors")
    message = error_of(capsys, *align(prepared, policy="sft"))
    assert "this cache was made with other weights" in message
    assert not (prepared / "preference/x/manifest.json").exists()


def stated_anew(manifest: Path, file: str) -> None:
    """Write a manifest that states another file honestly: what its content is worth is for others to find."""
    content = json.loads(manifest.read_text())
    content["files"][file] = {
        "sha256": sha256_of(manifest.parent / file),
        "size": (manifest.parent / file).stat().st_size,
    }
    del content["seal"]
    manifest.write_text(json.dumps(content))


def test_weights_that_are_not_the_manifests(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Other weights of the same size: named before any step, with what to do."""
    shutil.copytree(prepared, tmp_path / "suite")
    path = tmp_path / "suite/pretrain/model/model.safetensors"
    build(SCRATCH, 300, 0, 1, seed=1).save_pretrained(path.parent)
    message = error_of(capsys, *align(tmp_path / "suite"))
    assert f"{path}: does not have the sha256 in manifest.json" in message
    assert f"delete {tmp_path}/suite/pretrain/manifest.json and rerun" in message


def test_a_manifest_that_was_edited(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A number in it, or the space before one."""
    for old, new in ((b'"size": ', b'"size": 1'), (b'"size": ', b'"size":  ')):
        shutil.copytree(prepared, tmp_path / "suite", dirs_exist_ok=True)
        path = tmp_path / "suite/reference/manifest.json"
        path.write_bytes(path.read_bytes().replace(old, new, 1))
        assert f"{path}: was changed since it was written; delete it and rerun" in error_of(
            capsys, *align(tmp_path / "suite")
        )


def test_a_corrupted_cache(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(prepared, tmp_path / "suite")
    path = tmp_path / "suite/reference/train.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 0x40  # the exponent of the last token's log-prob
    path.write_bytes(bytes(raw))
    assert f"{path}: does not have the sha256 in manifest.json" in error_of(capsys, *align(tmp_path / "suite"))
    stated_anew(path.parent / "manifest.json", "train.npy")
    assert "recomputed log-probs differ" in error_of(capsys, *align(tmp_path / "suite"))


def test_a_stage_told_to_stop_goes_on_where_it_was(prepared: Path, tmp_path: Path):
    """SIGTERM in the middle: exit code 143 and a saved state; the next call gives what an uninterrupted one gives."""
    for name in ("straight", "stopped"):
        shutil.copytree(prepared, tmp_path / name)
    inside = {**environment(), "PYTHONPATH": str(ROOT / "workflow")}
    run = [sys.executable, "-m", "prefdag"]
    straight = align(tmp_path / "straight", epochs=60, max_steps=400, checkpoints=7)
    stopped = align(tmp_path / "stopped", epochs=60, max_steps=400, checkpoints=7)
    subprocess.run([*run, *straight], env=inside, check=True, capture_output=True)
    job = subprocess.Popen([*run, *stopped], env=inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert job.stdout is not None
    next(line for line in job.stdout if "step 1/" in line)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143
    assert list((tmp_path / "stopped/.resume").rglob("state.pt"))
    assert not (tmp_path / "stopped/preference/x/manifest.json").exists()
    subprocess.run([*run, *stopped], env=inside, check=True, capture_output=True)
    manifests = [(tmp_path / name / "preference/x/manifest.json").read_bytes() for name in ("straight", "stopped")]
    assert manifests[0] == manifests[1] and b"checkpoints/350/model.safetensors" in manifests[0]
    assert not list((tmp_path / "stopped/.resume").rglob("state.pt"))


def test_results_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "results").write_text("a file where a folder should be")
    output = tmp_path / "results/suite/fetch/data/manifest.json"
    config = json.dumps({"data": {"source": str(tmp_path), "train": "x.jsonl"}})
    assert "cannot be created" in error_of(capsys, "fetch", "--config", config, "--output", str(output))


SUITE = """
name: x
model: {source: none}
data: {source: rows.jsonl}
sft: {lr: 1}
runs: [{name: a, method: dpo}]
"""


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (None, ["no such suite file"]),
        ("name: x\n model: y\n", ["line 2, column 7: not valid YAML: mapping values are not allowed here; check the"]),
        (
            SUITE.replace("a, m", "SFT, m"),
            ["runs.SFT: this name is reserved", "sft.lr: unknown key; here it is `learn"],
        ),
        (SUITE.replace("lr: 1", ""), ["data.source: rows.jsonl does not exist", "model.source: none does not exist"]),
    ],
)
@pytest.mark.parametrize("words", [[], ["-n"]])
def test_mistakes_of_a_suite_end_snakemake_before_any_job(
    tmp_path: Path, text: str | None, sentences: list[str], words: list[str]
):
    if text is not None:
        (tmp_path / "x.yaml").write_text(text)
    arguments = ["-s", str(ROOT / "Snakefile"), "--profile", str(ROOT / "profiles/default"), *words]
    done = run_snakemake(tmp_path, [*arguments, "--configfile", "x.yaml"], environment())
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using profile")]
    assert done.returncode == 2 and len(lines) == len(sentences), done.stderr
    assert all(line.startswith(f"prefdag: x.yaml: {sentence}") for line, sentence in zip(lines, sentences))


def test_a_reader_that_goes_ends_a_command_quietly():
    command = f"set -o pipefail; {sys.executable} -m prefdag objectives | true"
    inside = {**environment(), "PYTHONPATH": str(ROOT / "workflow")}
    done = subprocess.run(["bash", "-c", command], env=inside, capture_output=True, text=True)
    assert (done.returncode, done.stderr) in [(141, ""), (0, "")]


def record(log: Path, text: str, manifest: bool = False) -> None:
    """Write text to a log as a job does; a job that succeeds writes its manifest first."""
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)  # Snakemake does
    made = f"sleep 0.02; touch {log.parent}/manifest.json;" if manifest else ""
    script = f"source {ROOT}/workflow/rules/record.sh; (sleep 0.05; {made} printf %s '{text}') | record {log}"
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True)


def test_the_log_of_a_failed_job_outlives_the_next_attempts(tmp_path: Path):
    log = tmp_path / "job/log.txt"
    record(log, "first\nattempt\n")
    assert log.read_text() == (log.parent / "log.1.txt").read_text() == "first\nattempt\n"
    record(log, "second, without end of line")
    record(log, "third", manifest=True)
    texts = {path.name: path.read_text() for path in log.parent.glob("log*")}
    assert texts == {
        "log.txt": "third\n",
        "log.1.txt": "second, without end of line\n",
        "log.2.txt": "first\nattempt\n",
    }


def test_the_last_lines_of_a_log_fit_on_a_full_disk(tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small file system can be made here")
    try:
        fill = f"head -c 1M /dev/zero > {small}/fill 2> /dev/null || true"
        job = f"(echo begin; sleep 0.2; {fill}; echo prefdag: full)"
        script = f"source {ROOT}/workflow/rules/record.sh; {job} | record {small}/log.txt"
        subprocess.run(["bash", "-uo", "pipefail", "-c", script], check=True)
        assert "prefdag: full" in (small / "log.txt").read_text()
    finally:
        subprocess.run(["umount", str(small)], check=True)
