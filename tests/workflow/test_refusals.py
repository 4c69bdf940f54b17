"""Refusals that no run meets by itself: each is one sentence that names what is wrong and what to do."""

import hashlib
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from comparisons import comparisons, tiny
from prefdag.cli.export import manifest_of
from prefdag.cli.main import main
from prefdag.cli.ui import check_port
from prefdag.config.hub_lock import read_lock
from prefdag.data.adapters.records import Unusable, check_responses
from prefdag.data.adapters.registry import adapter_of
from prefdag.data.sources import http
from prefdag.data.tokenization import load_tokenizer
from prefdag.distributed import gpu_lease, launch
from prefdag.errors import UserError
from prefdag.evaluation.best_of_n import subset_cdf
from prefdag.losses.policy_gradient import token_weights
from prefdag.models.logprobs import logprobs
from prefdag.models.packing import pack
from prefdag.provenance.manifest import Manifest
from prefdag.reporting.figures.catalogue import Catalogue
from prefdag.rewards.classifier import load_fetched
from prefdag.runtime.stage import _place
from prefdag.stages import fetch, judge
from prefdag.tracking import registry


def listed(folder: Path, **files: str) -> Manifest:
    for name, text in files.items():
        (folder / name).write_text(text)
    entries = {
        name: {"sha256": hashlib.sha256(text.encode()).hexdigest(), "size": len(text)} for name, text in files.items()
    }
    return Manifest(folder / "manifest.json", "0" * 64, {"stage": "sft", "files": entries})


def test_a_manifest_is_asked_for_a_file_that_it_does_not_list(tmp_path: Path):
    manifest = listed(tmp_path, table="1")
    assert manifest.file("table").read_text() == "1"
    with pytest.raises(UserError, match="lists no file other; rebuild this stage by deleting the manifest"):
        manifest.file("other")
    for damage in (lambda: (tmp_path / "table").write_text("12"), lambda: (tmp_path / "table").unlink()):
        damage()
        with pytest.raises(UserError, match="missing, or not the file that manifest.json lists"):
            manifest.file("table")


def test_a_file_of_the_same_size_but_another_content_is_refused(tmp_path: Path):
    manifest = listed(tmp_path, table="1")
    (tmp_path / "table").write_text("2")
    with pytest.raises(UserError, match="does not have the sha256 in manifest.json"):
        manifest.check(lambda name: True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "broken JSON"),
        ("[" * 10**5, "broken JSON"),
        ("[]", "no entries"),
        ('{"a": {"commit": "c"}}', "no entries"),
    ],
    ids=["broken", "deep", "list", "lacking"],
)
def test_a_lock_that_is_none(text: str, sentence: str, tmp_path: Path):
    (tmp_path / "lock.json").write_text(text)
    with pytest.raises(UserError, match=rf"lock.json: not a lock \({sentence}.*restore it, or delete it to lock again"):
        read_lock(tmp_path / "lock.json")


def test_a_policy_of_several_suites_is_chosen_by_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for suite in ("one", "two"):
        folder = tmp_path / f"results/{suite}/preference/dpo"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (tmp_path / f"results/{suite}/fetch").mkdir()
    with pytest.raises(UserError, match="dpo: several suites have this policy .*choose one with --results"):
        manifest_of("dpo", None)


def test_public_without_push_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["export", "dpo", "--public"]) == 2
    assert "--public: has no effect without --push OWNER/NAME; add it" in capsys.readouterr().err


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"port \d+ is in use; choose another with --port"):
            check_port(taken.getsockname()[1])
    with pytest.raises(UserError, match="--port: expected a number from 1 to 65535, got 0"):
        check_port(0)


def answer_of(code: int) -> Callable[..., Any]:
    def answer(request: urllib.request.Request, timeout: float) -> Any:
        raise urllib.error.HTTPError(request.full_url, code, "no", {}, None)  # type: ignore[arg-type]

    return answer


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (404, r"the server refuses it \(HTTP 404\); correct the address"),
        (503, r"cannot be downloaded \(HTTP 503\); run again later, the download continues"),
        (429, r"cannot be downloaded \(HTTP 429\)"),
    ],
)
def test_a_server_that_does_not_give_the_file(
    code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(urllib.request, "urlopen", answer_of(code))
    with pytest.raises(UserError, match=sentence):
        http.download("https://example.org/rows.jsonl", "0" * 64, tmp_path)


def test_a_download_of_another_content_is_removed(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("other")
    with pytest.raises(UserError, match="its sha256 is .*, not 0+; correct `sha256` or the address"):
        http.download("https://example.org/rows.jsonl", "0" * 64, tmp_path)
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_folder_without_a_tokenizer_or_a_classifier(tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer can be loaded from it"):
        load_tokenizer(tmp_path)
    settings: Any = SimpleNamespace(positive="POSITIVE")
    with pytest.raises(UserError, match="no sequence classifier can be loaded from it"):
        load_fetched(tmp_path, settings, torch.device("cpu"))


def test_an_output_at_another_place_is_refused(tmp_path: Path):
    assert _place("sft", tmp_path / "sft/manifest.json") == (tmp_path, None)
    assert _place("sft", tmp_path / "sft/dpo/manifest.json") == (tmp_path, "dpo")
    with pytest.raises(UserError, match=r"sft --output: expected .../sft/\[<name>/\]manifest.json, got"):
        _place("sft", tmp_path / "other/dpo/manifest.json")


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    job = fetch.Job.parse({"files": {str(tmp_path / "rows.jsonl"): "0" * 64}}, "test")
    workspace: Any = None
    with pytest.raises(UserError, match="rows.jsonl: changed after the run was planned; run `snakemake` again"):
        fetch.run(job, workspace)


def test_a_judge_that_reads_answers_is_given_them():
    settings: Any = SimpleNamespace(reads_answers=True)
    nothing: Any = None
    with pytest.raises(UserError, match="models and people read answers: give --generations and --against_generations"):
        judge._pairs(settings, nothing, nothing, [], None, None)


def test_weights_without_a_record_cannot_be_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "weights_digest", lambda manifest: "0" * 64)
    experiment: Any = SimpleNamespace(weights={})
    with pytest.raises(UserError, match="MLflow has no record of these weights .*; rerun their stage"):
        registry.register(experiment, listed(tmp_path), "name", None, upload=False)


def test_a_node_without_srun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    shape: Any = SimpleNamespace(nodes=2, per_node=1, threads=1)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="2 nodes need Slurm; run with --profile slurm, or set nodes: 1"):
        launch._exec_srun(shape, ["sft"])
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv(launch.RENDEZVOUS, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"srun: cannot be started on this node .*; set nodes: 1"):
        launch._exec_srun(shape, ["sft"])


def test_a_lock_of_gpus_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch):
    def denied(*arguments: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gpu_lease.os, "open", denied)
    with pytest.raises(UserError, match=r"cannot be opened \(Permission denied\); set .*= to use no GPUs"):
        gpu_lease._open_lock("prefdag-test")


def test_rows_of_other_forms_are_left_out_with_their_reason():
    assert check_responses("a", "b") == ("a", "b")
    for responses, reason in ((("a", " "), "empty rejected"), (("", "b"), "empty chosen"), (("a", "a"), "equal resp")):
        with pytest.raises(Unusable, match=reason):
            check_responses(*responses)
    row = {"chosen": [{"role": "narrator", "content": "x"}], "rejected": [{"role": "narrator", "content": "y"}]}
    with pytest.raises(Unusable, match="role 'narrator'"):
        adapter_of("pairs")({"prompt": [{"role": "narrator", "content": "q"}], **row})
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
    with pytest.raises(Unusable, match="tool call whose arguments are not JSON"):
        adapter_of("pairs")({"prompt": [{"role": "user", "content": "q"}], "chosen": [call], "rejected": [call]})


def test_mistakes_of_callers_are_assertions():
    """What no suite can reach: a head without our attention, an aggregation without its length, N above the pool."""
    model = tiny()
    model.config._attn_implementation = "eager"
    with pytest.raises(AssertionError, match="its attention does not use transformers' attention interface"):
        logprobs(model, pack(comparisons(2, 2)))
    with pytest.raises(AssertionError, match="aggregation: constant needs max_length"):
        token_weights(torch.tensor([1, 2]), "constant")
    for best_of in (0, 5):
        with pytest.raises(AssertionError):
            subset_cdf(4, best_of)
    catalogue = Catalogue()
    catalogue.add("one", "caption")(test_a_port_in_use_is_named)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="two figures are called"):
        catalogue.add("two", "caption")(test_a_port_in_use_is_named)  # type: ignore[arg-type]
