"""`prefdag export` and `prefdag register`: a folder that transformers loads, a version in the registry."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from prefdag.cli.export import export, manifest_of
from prefdag.cli.exporting.model_card import lineage
from prefdag.cli.main import main
from prefdag.errors import UserError
from prefdag.provenance.journal import open_journal
from prefdag.provenance.manifest import (
    MANIFEST,
    TRAINING,
    Manifest,
    describe,
    publish,
    read_manifest,
    weights_digest,
)

CANARY = "hf_" + "c4N4rY" * 5


def published(folder: Path, stage: str, config: dict, inputs: dict, files: dict[str, bytes] | None = None) -> Manifest:
    made = folder.parent / f".{folder.name}"
    for name, content in (files or {}).items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    made.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    publish(made, folder, describe(made, stage, config, {"stages/sft.py": "c0de"}, inputs, {}))
    return read_manifest(folder / MANIFEST)


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make results/toy: a fetched model, an SFT policy, a DPO run with real weights, and its scores."""
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.chdir(tmp_path)
    root = tmp_path / "results" / "toy"
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 9, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes)).save_pretrained(tmp_path / "weights")
    weights = {f"model/{path.name}": path.read_bytes() for path in (tmp_path / "weights").iterdir()}
    origin = {"model": {"source": "hub:some/model"}, "lock": {"model": {"some/model": {"commit": "ab" * 20}}}}
    fetched = published(root / "fetch/model", "fetch", {**origin, "data": None}, {})
    sft = published(root / "sft", "sft", {}, {"base": fetched.sha256}, weights)
    config = {"objective": {"method": "dpo", "beta": 0.1}, "preference": {"seed": 0, "hub_token": CANARY}}
    run = published(root / "preference/dpo", "preference", config, {"policy": sft.sha256}, weights)
    summary = {"mean": 0.5, "low": 0.25, "high": 0.75, "se": 0.1, "n": 16}
    (root / "score/dpo").mkdir(parents=True)
    (root / "score/dpo/summary.json").write_text(json.dumps({"reward": summary}))
    journal = open_journal(root, "preference", "dpo")
    journal.start(config=config, inputs={}, code="c0de")
    journal.model("dpo", path=root / "preference/dpo/model", sha256=weights_digest(run), role="output")
    journal.end(status="finished", manifest=run.sha256, seconds=1.0, peak_memory_mb=1.0)
    return root


def test_transformers_loads_the_folder(suite: Path, capsys: pytest.CaptureFixture) -> None:
    from transformers import AutoModelForCausalLM

    assert main(["export", "dpo"]) == 0
    folder = Path("exports/toy/dpo")
    assert str(folder) in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    original = AutoModelForCausalLM.from_pretrained(suite / "preference/dpo/model").state_dict()
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[name], original[name]) for name in loaded)
    assert main(["export", "dpo"]) == 2, "an existing folder is never overwritten"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_exported_in_the_dtype_asked_for(dtype: str, suite: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert main(["export", "dpo", "--dtype", dtype, "--to", dtype]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(dtype, dtype="auto")
    original = AutoModelForCausalLM.from_pretrained(suite / "preference/dpo/model").state_dict()
    assert loaded.dtype == getattr(torch, dtype)
    assert all(torch.equal(value, original[name].to(loaded.dtype)) for name, value in loaded.state_dict().items())
    assert (f"rounded here to `{dtype}`" in Path(dtype, "README.md").read_text()) == (dtype != "float32")


def test_the_card_is_made_of_the_manifests(suite: Path, tmp_path: Path) -> None:
    manifest = manifest_of("dpo", None)
    text = (export(manifest, "dpo", tmp_path / "out") / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "some/model" and front["tags"] == ["prefdag", "dpo"]
    assert "Rafailov et al. 2023" in text and "| reward | 0.5 | 0.25 to 0.75 |" in text
    assert f"`some/model` at commit `{'ab' * 20}`" in text
    names = [one.content["stage"] for one in lineage(manifest, suite)]
    assert names == ["preference", "sft", "fetch"]
    assert all(f"`{one.sha256}`" in text for one in lineage(manifest, suite))


def test_the_card_of_a_chosen_policy_says_what_was_chosen(suite: Path, tmp_path: Path) -> None:
    folder, trained = suite / "selected/kto", read_manifest(suite / "preference/dpo" / MANIFEST)
    shutil.copytree(suite / "preference/dpo", folder)
    (folder / MANIFEST).rename(folder / TRAINING)
    setting = {"learning_rate": 0.01, "steps": 4}
    facts = {"passed_on": trained.sha256, "setting": setting, "training": "preference/kto-a"}
    (folder / MANIFEST).write_bytes(describe(folder, "selected", {}, {}, {}, facts))
    text = (export(manifest_of("kto", None), "kto", tmp_path / "kto") / "README.md").read_text()
    assert "Chosen on validation prompts among the candidates of its row: learning_rate 0.01, steps 4" in text
    assert "(training `preference/kto-a`)." in text and "stopped at" not in text
    other = (export(manifest_of("dpo", None), "dpo", tmp_path / "dpo") / "README.md").read_text()
    assert "Chosen on validation" not in other


def test_one_quantity_has_one_interval(suite: Path, tmp_path: Path) -> None:
    """The headline `reward` may be the reward model's, whose column `trained` has an interval of another seed."""
    path = suite / "score/dpo/summary.json"
    reward = json.loads(path.read_text())["reward"]
    path.write_text(json.dumps({"reward": reward, "trained": {**reward, "low": 0.2}, "kl": reward}))
    text = (export(manifest_of("dpo", None), "dpo", tmp_path / "out") / "README.md").read_text()
    assert "| trained |" not in text and "| kl |" in text
    path.write_text(json.dumps({"reward": reward, "trained": {**reward, "mean": 0.6}}))
    text = (export(manifest_of("dpo", None), "dpo", tmp_path / "other") / "README.md").read_text()
    assert "| reward | 0.5 |" in text and "| trained | 0.6 |" in text


def test_no_token_leaves_by_an_export(suite: Path, tmp_path: Path) -> None:
    folder = export(manifest_of("dpo", None), "dpo", tmp_path / "out")
    assert CANARY in (suite / "preference/dpo" / MANIFEST).read_text(), "the canary lives"
    assert [path.name for path in folder.iterdir() if CANARY.encode() in path.read_bytes()] == []


def test_weights_that_are_not_the_manifest_s_are_refused(suite: Path, tmp_path: Path) -> None:
    path = suite / "preference/dpo/model/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="not the file that its manifest states"):
        export(manifest_of("dpo", None), "dpo", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="results/toy has sft, dpo"):
        manifest_of("dpp", None)


def test_the_hub_is_contacted_only_for_push(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict]] = []
    for name in ("create_repo", "upload_folder"):
        record = lambda self, *a, _name=name, **options: calls.append((_name, {"repo": a[:1], **options}))  # noqa: E731
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", record)
    assert main(["export", "dpo"]) == 0 and calls == []
    assert main(["export", "dpo", "--to", "second", "--push", "me/dpo"]) == 0
    (_, made), (_, sent) = calls
    assert made["private"] is True and sent["repo_id"] == "me/dpo" and sent["folder_path"] == Path("second")
    assert main(["export", "dpo", "--to", "third", "--public"]) == 2


def test_chosen_policies_are_registered_once(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["register", "dpo", "--alias", "champion"]) == 0
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{suite.parent}/mlflow.db")
    version = client.get_model_version_by_alias("toy", "champion")
    digest = weights_digest(manifest_of("dpo", None))
    assert str(version.version) == "1"
    assert version.tags["prefdag.sha256"] == digest and version.run_id
    stored = suite.parent / "mlartifacts"
    assert list(stored.rglob("*.safetensors")) == [], "weights stay where they are"
    assert main(["register", "dpo", "--alias", "second", "--upload"]) == 0
    assert len(client.search_model_versions("name = 'toy'")) == 1
    (copied,) = stored.rglob("*.safetensors")
    assert copied.read_bytes() == (suite / "preference/dpo/model/model.safetensors").read_bytes()
    shutil.rmtree(suite / ".journal")
    assert main(["register", "dpo"]) == 2


def test_a_policy_that_is_not_there_names_those_that_are(suite: Path) -> None:
    published(suite / "selected/kto-seed0", "selected", {}, {})
    with pytest.raises(UserError, match="no finished policy of that name; results/toy has sft, dpo, kto-seed0$"):
        manifest_of("rloo", None)
    shutil.copytree(suite / "sft", suite.parent / "other/sft")
    shutil.copytree(suite / "preference/dpo", suite.parent / "third/preference/dpo")
    for name in ("other", "third"):
        (suite.parent / name / "fetch").mkdir(parents=True)
    with pytest.raises(UserError, match=r"several suites have this policy \(results/third, results/toy\)"):
        manifest_of("dpo", None)
