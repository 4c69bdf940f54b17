"""`prefdag export` of a policy with an adapter: the adapter on a base that loads, or the merged model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_export import published
from transformers import AutoModelForCausalLM

from comparisons import tiny
from prefdag.cli.main import main
from prefdag.config.sections.adapter import Adapter
from prefdag.models.loading import add_adapter, load_policy, save

IDS = torch.arange(2, 12)[None]


def files_of(folder: Path) -> dict[str, bytes]:
    return {f"model/{path.name}": path.read_bytes() for path in folder.iterdir()}


def with_adapter(base: Path, folder: Path) -> None:
    """Save a policy with an adapter that changes it."""
    model = load_policy(base, torch.device("cpu"))
    add_adapter(model, Adapter(rank=2), 0, base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3
    save(model, base, folder)


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make results/toy: a fetched model, SFT with an adapter, and DPO with another one on top."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "results/toy"
    tiny(dtype=torch.float32).save_pretrained(tmp_path / "base")
    origin = {"model": {"source": "base", "revision": None}}
    below = published(root / "fetch/model", "fetch", origin, {}, files_of(tmp_path / "base"))
    for name, stage, base in (("sft", "sft", "fetch/model"), ("preference/dpo", "preference", "sft")):
        with_adapter(root / base / "model", root / ".partial/model")
        config = {"objective": {"method": "dpo", "beta": 0.1}, "preference": {"seed": 0}} if stage != "sft" else {}
        below = published(root / name, stage, config, {"policy": below.sha256}, files_of(root / ".partial/model"))
    return root


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=IDS).logits


def evaluated(folder: Path) -> torch.Tensor:
    model = load_policy(folder, torch.device("cpu"))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_an_adapter_is_exported_with_its_base_or_merged(suite: Path) -> None:
    assert main(["export", "sft"]) == 0 and main(["export", "sft", "--merged", "--to", "merged"]) == 0
    names = {path.name for path in Path("exports/toy/sft").iterdir()}
    assert "adapter_model.safetensors" in names and not names & {"config.json", "model.safetensors"}
    stated = json.loads(Path("exports/toy/sft/adapter_config.json").read_text())
    assert Path(stated["base_model_name_or_path"]) == suite / "fetch/model/model"
    assert not [*Path("merged").glob("adapter*")]
    expected = evaluated(suite / "sft/model")
    assert (expected - logits(suite / "fetch/model/model")).abs().max() > 0.05
    for folder in ("exports/toy/sft", "merged"):
        assert (logits(Path(folder)) - expected).abs().max() < 1e-4


def test_an_adapter_on_an_adapter_is_exported_merged_alone(suite: Path, capfd: pytest.CaptureFixture) -> None:
    assert main(["export", "dpo"]) == 2
    assert "its adapter is on the merged model of" in capfd.readouterr().err
    assert main(["export", "dpo", "--merged"]) == 0
    assert (logits(Path("exports/toy/dpo")) - evaluated(suite / "preference/dpo/model")).abs().max() < 1e-4


@pytest.mark.parametrize("changed", [{}, {"base": "hub:whole/model"}, {"resize": True}])
def test_a_repository_is_named_only_if_its_weights_are_the_base(changed: dict, suite: Path) -> None:
    fetched = {"source": "hub:owner/name", "revision": "v1", **{k: v for k, v in changed.items() if k == "resize"}}
    config = {"model": fetched, "base": changed.get("base")}
    files = files_of(suite / "fetch/model/model")
    shutil.rmtree(suite / "fetch/model")
    published(suite / "fetch/model", "fetch", config, {}, files)
    assert main(["export", "sft"]) == 0
    stated = json.loads(Path("exports/toy/sft/adapter_config.json").read_text())
    local = str(suite / "fetch/model/model")
    expected = (local, None) if changed else ("owner/name", "v1")
    assert (stated["base_model_name_or_path"], stated["revision"]) == expected


def test_an_adapter_is_not_rounded(suite: Path, capfd: pytest.CaptureFixture) -> None:
    assert main(["export", "sft", "--dtype", "bfloat16"]) == 2
    assert "--dtype: an adapter's weights are float32; add --merged" in capfd.readouterr().err
