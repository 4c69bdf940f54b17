"""Odd checkpoints are loaded as float32 masters, changed, saved as SFT and preference save, and reloaded plainly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from prefdag.models.loading import load_policy, load_scorer, save
from preparing import byte_tokenizer

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 4, 17, 30, 8]])
ODD = {  # what save_pretrained of transformers refuses or takes over from a base
    "greedy with a temperature": {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
    "an early length": {"max_length": 20, "repetition_penalty": 1.3, "eos_token_id": [1, 5]},
    "a padding token without a row": {"pad_token_id": 99999},
    "early stopping without beams": {"early_stopping": True, "num_beams": 1, "length_penalty": 2.0},
}


def write_base(folder: Path, tied: bool = False, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Write a small Llama, in files of at most `max_shard_size`, whose vocabulary was resized for two tokens."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer("<|user|>", "<|end|>")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = LlamaConfig(
        vocab_size=len(tokenizer) - 2, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1, **sizes
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.resize_token_embeddings(len(tokenizer))
    model.to(dtype).save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder


def trained(folder: Path) -> Any:
    """Return the model after what a training does: float32 weights that moved by less than half precision holds."""
    model = load_policy(folder, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for parameter in model.parameters():
        parameter.data *= 1 + 1e-5
    return model


def check(base: Path, target: Path) -> Any:
    """Save the trained model, reload it by transformers alone, and compare weights and logits."""
    model = trained(base)
    expected = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    for parameter in expected.parameters():
        parameter.data *= 1 + 1e-5
    save(model, base, target)
    reloaded = AutoModelForCausalLM.from_pretrained(target)
    assert reloaded.dtype == torch.float32
    assert json.loads((target / "config.json").read_text())["dtype"] == "float32", "the saved dtype is stated"
    for name, value in expected.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value), name
    with torch.no_grad():
        assert torch.equal(reloaded(IDS).logits, expected(IDS).logits)
    return reloaded


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "6KB"}])
def test_checkpoints(tied: bool, dtype: torch.dtype, shards: dict[str, str], tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied, dtype, **shards)
    assert (len(list(base.glob("*.safetensors"))) > 1) == bool(shards)
    reloaded = check(base, tmp_path / "saved")
    head, embedding = reloaded.get_output_embeddings().weight, reloaded.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) == tied
    assert len(embedding) == len(byte_tokenizer("<|user|>", "<|end|>")), "added tokens have their rows"
    again = load_policy(tmp_path / "saved", CPU)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in reloaded.state_dict().items())


@pytest.mark.parametrize("name", ODD)
def test_odd_generation_configs(name: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1, **ODD[name]}))
    check(base, tmp_path / "saved")


def test_a_reward_model_of_an_odd_checkpoint(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=True, dtype=torch.bfloat16, max_shard_size="6KB")
    (base / "generation_config.json").write_text(json.dumps(ODD["greedy with a temperature"]))
    model = load_scorer(base, CPU, new_heads=1)
    torch.nn.init.normal_(model.score.weight)
    save(model, base, tmp_path / "reward")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    original = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        states = original.model(IDS).last_hidden_state[:, -1]
        assert torch.equal(reloaded(IDS).logits, states @ model.score.weight.T)


def test_a_stale_index_is_not_copied(tmp_path: Path) -> None:
    """A base in several files gives a policy in one, without the base's list of files."""
    base = write_base(tmp_path / "base", max_shard_size="6KB")
    check(base, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").glob("model*")) == ["model.safetensors"]
