"""What reruns: every file that a suite names, every part of a manifest, and nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import MINI, OWN_LOSS, OWN_METHOD
from manifests import bare
from prefdag.config.jobs import user_files_of
from prefdag.config.loading import merge
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError
from prefdag.planning import freshness
from prefdag.planning.graph import inputs_of, jobs_of
from prefdag.provenance.digests import Digests
from prefdag.provenance.manifest import describe, publish, read_manifest
from prefdag.provenance.sources import code_digests

RESULTS = Path("results/all")
ADAPTER = """
from prefdag.data.adapters.records import TextComparison

def mine(row):
    return TextComparison(row["prompt"], (row["better"], row["worse"]))
"""
# A suite that names a local file in every key of the schema that names a path.
EVERY_PATH = {
    "name": "all",
    "model": {"source": "base", "scratch": None},
    "data": {"source": "rows", "train": "train*.jsonl", "test": "test.jsonl", "world": None},
    "prepare": {"adapter": "adapters.py:mine", "template": "chat.jinja", "validation_fraction": 0.1},
    "sft": {"data": {"source": "chats.jsonl", "adapter": "chats.py:chat", "template": "plain.jinja"}},
    "pretrain": None,
    "pairs": None,
    "classifier": {"source": "sentiment", "positive": "POSITIVE", "max_tokens": 512},
    "score": {"reward": "classifier", "metrics": ["metrics.py:short"]},
    "judge": {"judges": ["classifier", {"model": "m", "prompt": "ask.txt"}, {"people": "sheet.csv"}]},
    "runs": [{"name": "dpo", "method": "dpo", "beta": 0.1}, {"name": "mine", "method": OWN_METHOD}],
}
FILES = {
    "rows/train-1.jsonl": "{}\n", "rows/test.jsonl": "{}\n", "base/config.json": "{}", "base/model.safetensors": "w",
    "sentiment/config.json": "{}", "configs/adapters.py": ADAPTER, "configs/chat.jinja": "{{ prompt }}",
    "configs/metrics.py": "def short(prompts, responses):\n    beta * 1\n", "chats.jsonl": "{}\n",
    "configs/chats.py": ADAPTER.replace("mine", "chat"), "configs/plain.jinja": "{{ prompt }}",
    "configs/my_losses.py": OWN_LOSS, "configs/ask.txt": "{prompt} {A} {B}", "configs/sheet.csv": "prompt\n",
}  # fmt: skip


def suite() -> Suite:
    resolved = resolve(merge(yaml.safe_load(MINI), EVERY_PATH), "configs/all.yaml")
    assert isinstance(resolved, Suite)
    return resolved


def digests() -> Digests:
    return Digests(RESULTS / ".cache/digests.json")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Finished results of the suite: each job has a file of its own name, and the manifest that it would have."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for folder in jobs_of(suite()):
        finish(folder)
    return tmp_path


def finish(folder: str) -> None:
    stage, _, rest = folder.partition("/")
    name = rest or None
    made = RESULTS / ".partial" / stage
    made.mkdir(parents=True)
    (made / "result.txt").write_text(folder)
    config = json.loads(freshness.config_of(suite(), stage, name, digests()))
    read = {
        option: [read_manifest(RESULTS / each / "manifest.json").sha256 for each in folders]
        for option, folders in inputs_of(suite(), stage, name).items()
        if folders
    }
    code = code_digests(stage, user_files_of(suite(), stage, name))
    (RESULTS / folder).mkdir(parents=True)
    publish(made, RESULTS / folder, describe(made, stage, config, code, read, None))


def reruns(*, itself: bool = True) -> set[str]:
    """Jobs with a reason of their own, or with those that follow them."""
    reasons = freshness.outdated(suite(), RESULTS, digests())
    return {job for job, lines in reasons.items() if not itself or not lines[0].startswith("after: ")}


JUDGES = {"judge/base", "judge/dpo", "judge/mine"}
EDITS = {
    "rows/train-1.jsonl": {"fetch/data"},
    "rows/test.jsonl": {"fetch/data"},
    "base/config.json": {"fetch/model"},
    "base/model.safetensors": {"fetch/model"},
    "sentiment/config.json": {"fetch/classifier"},
    "configs/adapters.py": {"prepare/comparisons"},
    "configs/chat.jinja": {"prepare/comparisons"},
    "chats.jsonl": {"fetch/sft_data"},
    "configs/chats.py": {"prepare/demonstrations"},
    "configs/plain.jinja": {"prepare/demonstrations"},
    "configs/my_losses.py": {"preference/mine"},
    "configs/metrics.py": {"score/base", "score/dpo", "score/mine", "score/sft"},
    "configs/ask.txt": JUDGES,
    "configs/sheet.csv": JUDGES,
}


def test_finished_results_rerun_nothing(results: Path) -> None:
    assert reruns() == set()


def test_every_file_of_the_suite_is_tried() -> None:
    assert EDITS.keys() == FILES.keys()


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_the_jobs_that_read_the_file(name: str, results: Path) -> None:
    """And with them what follows; taking it back reruns nothing, nor does a touch."""
    os.utime(results / name)
    assert reruns() == set(), "touched"
    text = (results / name).read_text()
    (results / name).write_text(text.replace("better", "best") if '"better"' in text else edited(text))
    assert reruns() == EDITS[name]
    assert {"report"} <= reruns(itself=False)
    (results / name).write_text(text)
    assert reruns() == set()


def edited(text: str) -> str:
    return text.replace("beta *", "2 * beta *") if "beta *" in text else text + " "


def test_files_of_a_glob_that_come_and_go(results: Path) -> None:
    (results / "rows/train-2.jsonl").write_text("{}\n")
    assert reruns() == {"fetch/data"}
    (results / "rows/train-2.jsonl").unlink()
    (results / "rows/train-1.jsonl").unlink()
    assert reruns() == {"fetch/data"}


def test_a_deleted_code_file_is_one_sentence(results: Path) -> None:
    (results / "configs/my_losses.py").unlink()
    with pytest.raises(UserError, match=r"my_losses\.py: no such file"):
        reruns()


def test_a_missing_or_damaged_result(results: Path) -> None:
    """A byte of the same length, at the same time: the content counts."""
    path = RESULTS / "score/dpo/result.txt"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns + 1
    path.write_text("score/dpX")
    os.utime(path, ns=times)
    assert reruns() == {"score/dpo"} and reruns(itself=False) == {"score/dpo", "judge/dpo", "report"}
    path.unlink()
    assert reruns() == {"score/dpo"}


def test_a_large_result_is_read_only_if_it_is_newer_than_its_manifest(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of the right size that were there before the manifest are left to the jobs that load them."""
    monkeypatch.setattr(freshness, "LARGE", 5)
    path, published = RESULTS / "sft/result.txt", (RESULTS / "sft/manifest.json").stat().st_mtime_ns
    path.write_text("sfX")
    os.utime(path, ns=(published, published - 1))
    assert reruns() == {"sft"}, "three bytes are few"
    monkeypatch.setattr(freshness, "LARGE", 2)
    assert reruns() == set()
    os.utime(path, ns=(published, published + 1))
    assert reruns() == {"sft"}
    path.write_text("sf")
    os.utime(path, ns=(published, published - 1))
    assert reruns() == {"sft"}, "another size"


def test_why_a_file_counts(results: Path) -> None:
    (results / "rows/train-1.jsonl").write_text("{ }\n")
    (results / "rows/train-2.jsonl").write_text("{}\n")
    (results / "rows/test.jsonl").unlink()
    assert freshness.outdated(suite(), RESULTS, digests())["fetch/data"] == [
        "file: rows/test.jsonl (no longer read)", "file: rows/train-1.jsonl", "file: rows/train-2.jsonl (newly read)",
    ]  # fmt: skip


def break_cache() -> None:
    digests().path.write_text("[")


def lose_cache() -> None:
    shutil.rmtree(digests().path.parent)


@pytest.mark.parametrize("damage", [break_cache, lose_cache])
def test_the_cache_of_digests_saves_time_only(damage: Callable[[], None], results: Path) -> None:
    assert reruns() == set()
    damage()
    assert reruns() == set()


def test_another_config_code_or_input(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = EVERY_PATH["sft"]["data"]
    monkeypatch.setitem(EVERY_PATH, "sft", {"data": data, "learning_rate": 3e-3})
    reasons = freshness.outdated(suite(), RESULTS, digests())
    assert reasons["sft"] == ["config: sft.learning_rate: 0.001 -> 0.003"]
    assert reasons["preference/dpo"] == ["after: sft, reference comparisons"]
    monkeypatch.setitem(EVERY_PATH, "sft", {"data": data})
    shutil.rmtree(RESULTS / "prepare/comparisons")
    (RESULTS / "prepare/demonstrations/result.txt").write_text("other")
    shutil.rmtree(RESULTS / "prepare/demonstrations")
    for folder in ("prepare/demonstrations", "prepare/comparisons"):
        finish(folder)
    assert reruns() == set(), "made again, with equal content"
    manifest = RESULTS / "prepare/comparisons/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"seal"', b'"sael"'))
    assert freshness.outdated(suite(), RESULTS, digests())["prepare/comparisons"] == [f"changed: {manifest}"]


@pytest.mark.parametrize("text", ["{}", "[]", "null", "1", "", '{"config": {}}', bare("sft", files={"result.txt": {}})])
def test_a_damaged_manifest_is_a_reason_to_run(results: Path, text: str) -> None:
    """Also one that lacks keys: `why` names it, the job makes it again, and no other job is held against it."""
    manifest = RESULTS / "sft/manifest.json"
    manifest.write_text(text)
    reasons = freshness.outdated(suite(), RESULTS, digests())
    assert reasons["sft"] == [f"changed: {manifest}"]
    assert all(reason.startswith("after: ") for job, (reason,) in reasons.items() if job != "sft")


def test_an_input_that_was_made_again_reruns_what_read_it(results: Path) -> None:
    """The manifest of SFT is intact and of the right job, and is not the one that its readers read."""
    made = RESULTS / "made"
    before = read_manifest(RESULTS / "sft/manifest.json").content
    made.mkdir()
    (made / "result.txt").write_text("another result")
    parts = {name: before[name] for name in ("stage", "config", "code", "inputs")}
    publish(made, RESULTS / "sft", describe(made, **parts, facts={}))
    reasons = freshness.outdated(suite(), RESULTS, digests())
    assert "sft" not in reasons
    assert any(reason.startswith("input: ") for reason in reasons["preference/dpo"])
