"""Models: saved and loaded they are the same, without dropout; what cannot be proved right is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from comparisons import SHAPES, comparisons, tiny
from prefdag.errors import UserError
from prefdag.models.loading import load_policy, load_scorer, save
from prefdag.models.logprobs import logprobs
from prefdag.models.packing import pack
from prefdag.rewards.model import RewardModel, initial_heads

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    written(tiny(dtype=torch.float32), tmp_path)
    return tmp_path / "model"


def written(model: PreTrainedModel, where: Path) -> Path:
    (where / "tokenizer").mkdir()
    (where / "tokenizer" / "tokenizer.json").write_text("{}")
    (where / "tokenizer" / "model.safetensors").write_text("not the tokenizer's")
    save(model, where / "tokenizer", where / "model")
    return where / "model"


def reconfigured(folder: Path, **values: object) -> Path:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_loaded_is_the_same_bit_for_bit(shape: str, tmp_path: Path) -> None:
    model = tiny(shape, dtype=torch.float32)
    loaded = load_policy(written(model, tmp_path), CPU)
    segments = pack(comparisons(4, 2))
    assert torch.equal(logprobs(loaded, segments).tokens, logprobs(model, segments).tokens)
    assert sorted(path.name for path in (tmp_path / "model").glob("*token*")) == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("shape", "rates"),
    [
        ("gpt2", {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5}),
        ("gpt_neox", {"attention_dropout": 0.5, "hidden_dropout": 0.5}),
        ("llama", {"attention_dropout": 0.5}),
    ],
)
def test_dropout_that_a_config_states_is_off_in_training(shape: str, rates: dict[str, float], tmp_path: Path) -> None:
    model = tiny(shape, dtype=torch.float32)
    loaded = load_policy(reconfigured(written(model, tmp_path), **rates), CPU).train()
    segments = pack(comparisons(4, 2))
    assert torch.equal(logprobs(loaded, segments).tokens, logprobs(model, segments).tokens)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_scorer_is_the_policy_under_a_head(shape: str, tmp_path: Path) -> None:
    """Its head is initialised from the seed; saved and loaded, it gives the very same rewards."""
    where = written(tiny(shape, dtype=torch.float32), tmp_path)
    segments, rewards = pack(comparisons(4, 2)), []
    for seed in (0, 0, 1):
        model = load_scorer(where, CPU, new_heads=1)
        initial_heads(model, 0.5, (seed,))
        rewards.append(RewardModel((model,))(segments))
    assert torch.equal(rewards[0], rewards[1]) and not torch.equal(rewards[0], rewards[2])
    save(model, tmp_path / "tokenizer", tmp_path / "scorer")
    assert torch.equal(RewardModel((load_scorer(tmp_path / "scorer", CPU),))(segments), rewards[2])


def test_a_policy_is_no_reward_model(folder: Path) -> None:
    """transformers would draw the head at random."""
    with pytest.raises(UserError, match=r"its weights lack score.weight \(1 missing\)"):
        load_scorer(folder, CPU)


@pytest.mark.parametrize("values", [{"model_type": "t5"}, {"model_type": "nothing_known"}])
def test_what_is_no_causal_language_model_is_refused(values: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="cannot load a model from it"):
        load_policy(tmp_path, CPU)


def test_a_router_loss_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral", "output_router_logits": True}))
    with pytest.raises(UserError, match="adds a router loss .*; set it to false"):
        load_policy(tmp_path, CPU)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_scaling_that_looks_at_the_batch_is_refused(kind: str, folder: Path) -> None:
    values = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4, "short_factor": [1.0] * 2, "long_factor": [2.0] * 2}
    reconfigured(folder, rope_parameters=values)
    with pytest.raises(UserError, match=f"{kind} rotary scaling depends on what shares a batch"):
        load_policy(folder, CPU)


@pytest.mark.parametrize(
    "fault",
    ["no folder", "empty", "config is not JSON", "unknown type", "no weights", "weights cut short", "other shape"],
)
def test_a_folder_without_a_usable_model_is_refused_in_a_sentence(fault: str, folder: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    match fault:
        case "no folder" | "empty":
            for path in folder.iterdir():
                path.unlink()
            if fault == "no folder":
                folder.rmdir()
        case "config is not JSON":
            config.write_text("{")
        case "unknown type":
            config.write_text('{"model_type": "abacus"}')
        case "no weights":
            weights.unlink()
        case "weights cut short":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "other shape":
            reconfigured(folder, intermediate_size=8)
    with pytest.raises(UserError, match="model: cannot load a model from it") as caught:
        load_policy(folder, CPU)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no file named model.safetensors"):
        load_policy(folder, CPU)


def test_weights_that_lack_a_tensor_are_refused(folder: Path) -> None:
    """transformers would draw it at random."""
    state = load_file(folder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack model.norm.weight \(1 missing\)"):
        load_policy(folder, CPU)
