"""Adapters of peft from elsewhere as a suite's model: merged into their base by `fetch`, or refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub_server import COMMIT, Repository, lock, serving, use_hub
from model_folder import write_model_folder
from prefdag.cli.main import main
from prefdag.config import jobs
from prefdag.config.hub_lock import repositories
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError
from prefdag.models.merging import digest_of
from prefdag.planning.local_files import files_of
from prefdag.planning.suite_paths import check_paths
from prefdag.provenance.digests import Digests

IDS = torch.arange(2, 12)[None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base in half precision, and an adapter on it that names it by a path of another machine."""
    monkeypatch.chdir(tmp_path)
    base = write_model_folder(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    (base / "generation_config.json").write_text('{"eos_token_id": 1, "max_length": 77}')
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    state("/elsewhere/base")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    return tmp_path


def state(base: str, **values: object) -> None:
    path = Path("adapter/adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base, **values}))


def suite(**model: object) -> Suite:
    values = {"name": "x", "data": {"source": "rows.jsonl"}, "runs": [{"name": "a", "method": "dpo"}]}
    made = resolve({**values, "model": {"source": "adapter", **model}}, "x.yaml")
    assert isinstance(made, Suite)
    return made


def mistake(**model: object) -> str:
    with pytest.raises(UserError) as error:
        check_paths(suite(**model), "x.yaml")
    return str(error.value)


def fetched(**model: object) -> int:
    config = jobs.config_of(suite(**model), "fetch", "model")
    return main(["fetch", "--config", config, "--output", "out/fetch/model/manifest.json"])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def test_the_fetched_model_is_what_peft_merges(folder: Path) -> None:
    weights = {path: path.read_bytes() for path in folder.glob("*/*.safetensors")}
    check_paths(suite(base="base"), "x.yaml")
    assert fetched(base="base") == 0
    target = Path("out/fetch/model/model")
    assert not [*target.glob("adapter*")] and {path: path.read_bytes() for path in weights} == weights
    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    before = logits(base)
    expected = PeftModel.from_pretrained(base, "adapter").merge_and_unload()
    whole = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    assert whole.dtype == torch.float32
    assert torch.equal(logits(whole), logits(expected)) and (logits(whole) - before).abs().max() > 0.01
    assert (target / "generation_config.json").read_bytes() == Path("base/generation_config.json").read_bytes()
    assert len(AutoTokenizer.from_pretrained(target)) == len(AutoTokenizer.from_pretrained("base"))
    facts = json.loads(Path("out/fetch/model/manifest.json").read_text())["facts"]
    assert facts["base"]["source"] == "base" and len(facts["adapter"]["sha256"]["adapter_model.safetensors"]) == 64


def test_the_adapter_names_its_base_or_the_suite_does(folder: Path) -> None:
    assert "is an adapter, and its base is not here; state it as `model.base`" in mistake()
    state(str(folder / "base"))
    check_paths(suite(), "x.yaml")
    assert {"adapter/adapter_model.safetensors", str(folder / "base/model.safetensors")} <= set(
        files_of(suite(), "fetch", "model", Digests(folder / "digests.json"))
    )
    assert fetched() == 0
    assert [one.key for one in repositories(model=suite(base="hub:a/b").model)] == ["model a/b@main"]


def test_the_adapters_own_tokenizer_is_taken(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("base")
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained("adapter")
    assert fetched(base="base") == 0
    assert AutoTokenizer.from_pretrained("out/fetch/model/model").chat_template == tokenizer.chat_template
    tokenizer.add_tokens("<|new|>")
    tokenizer.save_pretrained("adapter")
    assert "its tokenizer has the token '<|new|>'" in mistake(base="base")
    assert fetched(base="base", resize=True) == 0


def test_what_is_no_adapter_of_the_base_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "base holds no adapter_config.json, but model.base is for adapters" in mistake(source="base", base="base")
    assert "model.base: adapter is an adapter too" in mistake(base="adapter")
    with pytest.raises(UserError, match="model.base: read only where source is an adapter"):
        suite(source="a.gguf", base="base")
    state("base", revision="0" * 64)
    assert fetched(base="base") == 2
    assert "model.base: base holds other weights than those that the adapter" in capfd.readouterr().err
    state("base", revision=digest_of(Path("base")))
    assert fetched(base="base") == 0
    state("base", revision=None)
    saved = load_file("adapter/adapter_model.safetensors")
    for change in (
        {name: torch.cat([value, value]) for name, value in saved.items()},
        {name.replace("q_proj", "c_proj"): value for name, value in saved.items()},
    ):
        save_file(change, "adapter/adapter_model.safetensors")
        assert fetched(base="base") == 2
        error = capfd.readouterr().err
        assert "model.source: adapter: its adapter does not fit the model base" in error and "Traceback" not in error
    Path("adapter/adapter_model.safetensors").write_bytes(b"\0" * 7)
    assert fetched(base="base") == 2 and "does not fit the model base" in capfd.readouterr().err
    Path("adapter/adapter_model.safetensors").unlink()
    assert "adapter holds no adapter_model.safetensors" in mistake(base="base")
    Path("adapter/adapter_config.json").write_text("[]")
    assert "its adapter_config.json is not valid" in mistake(base="base")


def test_both_are_fetched_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        ("model", f"some/{name}"): Repository({path.name: path.read_bytes() for path in Path(name).iterdir()})
        for name in ("base", "adapter")
    }
    model = {"source": "hub:some/adapter", "base": "hub:some/base"}
    with serving(held | {("dataset", "some/pairs"): Repository({})}) as server:
        use_hub(monkeypatch, server.address, folder)
        assert lock(folder, model={**model, "scratch": None}) == 0
        config = {"model": {"source": model["source"]}, "base": model["base"], "lock": "configs/mini.lock.json"}
        assert main(["fetch", "--config", json.dumps(config), "--output", "out/fetch/model/manifest.json"]) == 0
    facts = json.loads(Path("out/fetch/model/manifest.json").read_text())["facts"]
    assert [facts[name]["commit"] for name in ("adapter", "base")] == [COMMIT, COMMIT]
    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, "adapter").merge_and_unload()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("out/fetch/model/model")), logits(expected))
