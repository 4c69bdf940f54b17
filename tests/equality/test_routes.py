"""A causal language model of any architecture: its route equals single rows, and a route that is wrong is not taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from comparisons import comparisons, stirred
from prefdag.config.sections.sampling import Sampling
from prefdag.models import proof
from prefdag.models.attention import interface
from prefdag.models.decoding import DECODERS, KeyValueDecoder
from prefdag.models.decoding_proof import chosen_decoder
from prefdag.models.generation import sample
from prefdag.models.loading import load_policy, load_scorer, save
from prefdag.models.logprobs import logprobs
from prefdag.models.packing import Segments, pack
from prefdag.models.proof import prove
from prefdag.models.route import implementation, route_of, set_route
from prefdag.models.shrinking import build_shrunken, shrunken

CPU = torch.device("cpu")
FAST = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo", "olmo2", "olmo3"),
    *("granite", "smollm3", "glm", "glm4", "cohere", "cohere2", "gpt2", "gpt_neox", "mixtral", "qwen2_moe"),
    *("qwen3_moe", "gpt_oss", "deepseek_v3", "starcoder2", "helium", "exaone4", "apertus", "hunyuan_v1_dense"),
    *("ernie4_5", "seed_oss", "arcee", "gpt_bigcode", "ministral", "opt", "biogpt", "persimmon", "lfm2"),
)
MASKED = ("gptj", "stablelm", "falcon", "codegen")
PADDED = ("gpt_neo", "bloom", "mamba", "qwen3_next", "jamba", "rwkv")
EOS = 2


@pytest.fixture(autouse=True)
def proofs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "prefdag/proofs"


@pytest.mark.parametrize("kind", ["segments", "mask", "padded"])
def test_the_route_of_each_architecture(kind: str) -> None:
    names = {"segments": FAST, "mask": MASKED, "padded": PADDED}[kind]
    taken = {name: prove(AutoConfig.for_model(name), name).kind for name in names}
    assert taken == dict.fromkeys(names, kind)


def saved(name: str, folder: Path) -> Path:
    """Save a tiny model of an architecture, as a user's folder has it."""
    config = shrunken(AutoConfig.for_model(name), narrow=True)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    stirred(model, 1).save_pretrained(folder)
    return folder


def single_rows(model: PreTrainedModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    with torch.no_grad(), implementation(model, "eager"):
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).squeeze(-1)


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "cohere", "granite", "gptj", "gpt_neo", "mamba", "gpt_oss"])
def test_a_loaded_model_scores_and_samples_as_single_rows_do(name: str, tmp_path: Path) -> None:
    """Log-probs of packed comparisons, samples with repeated and dropped rows, and both again after saving."""
    model = load_policy(saved(name, tmp_path / "first"), CPU)
    pairs = comparisons(5, 2, longest=9)
    with torch.no_grad():
        values = logprobs(model, pack(pairs, [[0, 1, 2], [3, 4]])).tokens
    truth = [single_rows(model, one.prompt.tolist(), r.tolist()) for one in pairs for r in one.responses]
    assert (values - torch.cat(truth)).abs().max() < 1e-3
    prompts = [[5, 6, 7], [8, 9, 4, 3, 11, 12, 6], [10, 3, 4]]
    settings = Sampling(max_new_tokens=9, batch_size=4, num_samples=3)
    for one in sample(model, prompts, [0, 1, 2], settings, EOS):
        expected = single_rows(model, prompts[one.prompt], one.ids)
        assert (torch.tensor(one.logprobs) - expected).abs().max() < 1e-3
    save(model, tmp_path / "first", tmp_path / "second")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "second", attn_implementation="eager")
    assert torch.equal(single_rows(plain, prompts[0], [4, 5]), single_rows(model, prompts[0], [4, 5]))


@pytest.mark.parametrize("name", ["gemma2", "mixtral", "gptj", "gpt_neo"])
def test_a_reward_of_the_same_architectures(name: str, tmp_path: Path) -> None:
    from prefdag.rewards.model import Scoring, head_rewards

    folder = saved(name, tmp_path / "model")
    model = load_scorer(folder, CPU, new_heads=1)
    model.score.weight.data = torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(0))
    pairs = comparisons(3, 2)
    with torch.no_grad():
        rewards = head_rewards(model, pack(pairs, [[0, 1], [2]]), Scoring())[..., 0]
        with implementation(model, "eager"):
            for place, one in enumerate(pairs):
                for number, response in enumerate(one.responses):
                    ids = torch.tensor([[*one.prompt.tolist(), *response.tolist()]])
                    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
                    assert abs((model.score.weight @ states).item() - rewards[place, number].item()) < 1e-3
    assert isinstance(model, type(AutoModelForSequenceClassification.from_config(model.config)))


def broken(name: str) -> Any:
    """Return a mask that lets tokens see too much, or too little."""
    causal = Segments.mask.func  # type: ignore[attr-defined]
    if name == "siblings are seen":

        def mask(self: Segments) -> torch.Tensor:
            same = self.comparison[:, :, None] == self.comparison[:, None, :]
            return (same & torch.ones_like(same).tril())[:, None]

        return mask
    return lambda self: causal(self) & (self.response[:, :, None] == self.response[:, None, :])[:, None]


@pytest.mark.parametrize("name", ["siblings are seen", "the prompt is not seen"])
def test_a_wrong_mask_is_not_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segments, "mask", property(broken(name)))
    route = prove(AutoConfig.for_model("llama"), "llama")
    assert route.kind == "padded" and "differs by" in route.reason


def test_a_window_that_is_ignored_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segments, "windowed", lambda self, window: self.mask)
    assert prove(AutoConfig.for_model("mistral"), "mistral").kind == "padded"
    assert prove(AutoConfig.for_model("llama"), "llama").kind == "segments"


def test_a_softcap_that_is_ignored_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = interface.attend_capped
    monkeypatch.setattr(interface, "attend_capped", lambda *args: plain(*args[:5], None, args[6]))
    config = AutoConfig.for_model("gemma2", attn_logit_softcapping=0.5)
    assert prove(config, "gemma2").kind != "segments"


def test_a_decoder_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_shrunken(AutoConfig.for_model("llama"), "llama")
    monkeypatch.setattr(KeyValueDecoder, "append", lambda self, tokens: self._forward(tokens[:, None], self.positions))
    assert chosen_decoder(model) is DECODERS["transformers"]


def test_a_proof_is_stored_and_read(proofs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("gpt_neo")
    first = proof.chosen_route(config, "folder")
    (path,) = proofs.glob("*.json")
    assert json.loads(path.read_text())["kind"] == "padded"
    monkeypatch.setattr(proof, "prove", lambda config, where, adapter: pytest.fail("proved again"))
    assert proof.chosen_route(config, "folder") == first
    monkeypatch.setattr(proof, "prove", lambda config, where, adapter: first)
    proof.chosen_route(AutoConfig.for_model("gpt_neo", num_layers=6, attention_types=[[["global"], 6]]), "folder")
    assert len(list(proofs.glob("*.json"))) == 2


def test_weights_that_do_not_fit_their_route_are_refused(tmp_path: Path) -> None:
    model = load_policy(saved("gptj", tmp_path), CPU)
    set_route(model, route_of(model).model_copy(update={"kind": "padded", "last_layer": False}))
    proof.check_weights(model, route_of(model), "folder")
    original = model.transformer.forward
    model.transformer.forward = lambda *args, **options: original(*args, **{**options, "attention_mask": None})
    set_route(model, route_of(model).model_copy(update={"kind": "mask"}))
    with pytest.raises(proof.UserError, match="differ from single rows"):
        proof.check_weights(model, route_of(model), "folder")
