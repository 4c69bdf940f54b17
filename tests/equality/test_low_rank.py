"""Adapters: a step is autograd's on the merged weights, without one the model is its base, and nothing is lost."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from comparisons import SHAPES, comparisons, distance, stirred, stored, tiny, tiny_scorer, weights
from prefdag.config.sections.adapter import Adapter
from prefdag.config.sections.training import Training
from prefdag.data.token_store import Store
from prefdag.errors import Stopped, UserError
from prefdag.models.adapters import attach, set_base, trained_state
from prefdag.models.loading import add_adapter, load_policy, load_scorer, save
from prefdag.models.logprobs import logprobs
from prefdag.models.merging import base_of, merge
from prefdag.models.naive import float64_norms
from prefdag.models.ops.recompute import recompute_blocks
from prefdag.models.ops.vocabulary import in_place_gradients
from prefdag.models.packing import pack
from prefdag.models.proof import prove
from prefdag.rewards.model import Scoring, head_rewards
from prefdag.training.checkpoint import Checkpoint
from prefdag.training.loop import Batch, Outcome, train
from prefdag.training.supervised_task import mean_nll, supervised_task

CPU = torch.device("cpu")
ADAPTER = Adapter(rank=3, alpha=6)
KINDS = {"lora": ADAPTER, "rslora": Adapter(rank=4, rslora=True), "dora": Adapter(rank=3, dora=True)}
PAIRS = comparisons(5, 2)
SEGMENTS = pack(PAIRS, [[0, 1, 2], [3, 4]])


def lively(model: PreTrainedModel, settings: Adapter = ADAPTER) -> PreTrainedModel:
    """Attach an adapter that changes every layer; return the model without it."""
    base = attach(model, settings, seed=0)
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=random).to(parameter.dtype)
    return base


def adapter_layers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    return ((name, layer) for name, layer in model.named_modules() if hasattr(layer, "lora_A"))


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """The gradient of every weight by a weighted sum of log-probs, on the packed path."""
    model.zero_grad()
    with in_place_gradients():
        values = logprobs(model, SEGMENTS).tokens
        (values * weights(len(values))).sum().backward()
    return {name: part.grad for name, part in model.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_autograd_on_the_merged_weights(shape: str, tmp_path: Path) -> None:
    """With W = W0 + s B A: dA = s B^T dW and dB = s dW A^T, to 1e-9 in float64; frozen weights get no gradient."""
    adapted = tiny(shape)
    lively(adapted)
    tiny(shape).save_pretrained(tmp_path / "base")
    set_base(adapted, tmp_path / "base")
    save(adapted, tmp_path / "base", tmp_path / "adapter")
    merged = merge(tiny(shape), tmp_path / "adapter")
    with float64_norms():
        values = [logprobs(model, SEGMENTS).tokens for model in (adapted, merged)]
        assert (values[0] - values[1]).abs().max() < 1e-12
        of_adapted, of_merged = gradients(adapted), gradients(merged)
    assert of_adapted.keys() == {name for name, part in adapted.named_parameters() if part.requires_grad}
    assert all("lora_" in name for name in of_adapted)
    for name, layer in adapter_layers(adapted):
        whole = of_merged[f"{name}.weight"]
        whole = whole.T if layer.fan_in_fan_out else whole
        scale, down, up = layer.scaling["default"], layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert scale == 2.0
        for got, expected in ((down.grad, scale * up.T @ whole), (up.grad, scale * whole @ down.T)):
            assert expected.abs().max() > 1e-6
            assert ((got - expected).abs().max() / expected.abs().max()).item() < 1e-9, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_without_its_adapter_a_model_is_its_base_bit_for_bit(shape: str, kind: str) -> None:
    expected = logprobs(tiny(shape, dtype=torch.float32), SEGMENTS).tokens
    model = tiny(shape, dtype=torch.float32)
    base = attach(model, KINDS[kind], seed=0)
    new = logprobs(model, SEGMENTS).tokens
    assert (new - expected).abs().max() < (1e-5 if kind == "dora" else 1e-12), "a new adapter changes nothing"
    lively_model = tiny(shape, dtype=torch.float32)
    base = lively(lively_model, KINDS[kind])
    assert (logprobs(lively_model, SEGMENTS).tokens - expected).abs().max() > 0.05
    assert torch.equal(logprobs(base, SEGMENTS).tokens, expected)
    shared = {part.data_ptr() for part in base.parameters()}
    assert shared <= {part.data_ptr() for part in lively_model.parameters()}, "no weight is held twice"


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_what_is_saved_and_a_stage_reads_it_merged(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    tiny(dtype=torch.float32).save_pretrained(tmp_path / "suite/base/model")
    folder, base = tmp_path / "suite/sft/model", tmp_path / "suite/base/model"
    model = load_policy(base, CPU)
    lively(model, KINDS[kind])
    set_base(model, base)
    save(model, base, folder)
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    stated = json.loads((folder / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == "base/model" and len(stated["revision"]) == 64
    assert base_of(folder) == base
    assert {value.dtype for value in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    ids = torch.arange(2, 12)[None]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)(input_ids=ids).logits
    plain = load_policy(folder, CPU)
    assert all(part.requires_grad for part in plain.parameters()) and not hasattr(plain, "peft_config")
    expected = logprobs(model, SEGMENTS).tokens
    assert (logprobs(plain, SEGMENTS).tokens - expected).abs().max() < 1e-4
    plain.set_attn_implementation("eager")
    assert (plain(input_ids=ids).logits - theirs).abs().max() < 1e-4


def test_an_adapter_on_an_adapter_is_one_on_the_merged_policy(tmp_path: Path) -> None:
    """SFT with an adapter, then DPO with another: W0 + s B A + s' B' A', each folder naming the one below."""
    base, sft, dpo = (tmp_path / f"{name}/model" for name in ("base", "sft", "dpo"))
    tiny(dtype=torch.float32).save_pretrained(base)
    first = load_policy(base, CPU)
    lively(first)
    set_base(first, base)
    save(first, base, sft)
    second = load_policy(sft, CPU)
    reference = lively(second, Adapter(rank=2, target=("q_proj", "down_proj")))
    set_base(second, sft)
    save(second, sft, dpo)
    assert (logprobs(reference, SEGMENTS).tokens - logprobs(first, SEGMENTS).tokens).abs().max() < 1e-4
    final = load_policy(dpo, CPU)
    assert (logprobs(final, SEGMENTS).tokens - logprobs(second, SEGMENTS).tokens).abs().max() < 1e-4
    weight = final.model.layers[0].self_attn.q_proj.weight
    layers = [model.model.layers[0].self_attn.q_proj for model in (first, second)]
    updates = [layer.get_delta_weight("default") for layer in layers]
    assert (weight - load_policy(base, CPU).model.layers[0].self_attn.q_proj.weight - sum(updates)).abs().max() < 1e-5
    (sft / "adapter_model.safetensors").write_bytes((dpo / "adapter_model.safetensors").read_bytes())
    with pytest.raises(UserError, match="adapter of other weights than those of"):
        load_policy(dpo, CPU)


def test_a_reward_model_trains_its_head_with_the_adapter(tmp_path: Path) -> None:
    base, folder = tmp_path / "sft/model", tmp_path / "reward/model"
    tiny(dtype=torch.float32).save_pretrained(base)
    model = load_scorer(base, CPU, new_heads=2)
    lively(model)
    assert model.score.weight.requires_grad
    set_base(model, base)
    save(model, base, folder)
    loaded = load_scorer(folder, CPU)
    assert torch.equal(loaded.score.weight, model.score.weight) and loaded.score.weight.shape == (2, 16)
    values = [head_rewards(each, SEGMENTS, Scoring()) for each in (model, loaded)]
    assert (values[0] - values[1]).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_proof_of_a_route_holds_with_an_adapter(kind: str, tmp_path: Path) -> None:
    route = prove(tiny().config, "tiny", KINDS[kind])
    assert (route.kind, route.last_layer, route.reason) == ("segments", True, "")


def test_recomputed_blocks_of_an_adapter_have_the_same_gradient_with_dropout(tmp_path: Path) -> None:
    """The mask depends on the tokens and the step, so that the second pass drops what the first one dropped."""
    from prefdag.models.ops.seeded_dropout import dropout_of_step

    model = tiny(dtype=torch.float32, layers=3).train()
    lively(model, Adapter(rank=4, dropout=0.4))
    model.train()
    plain = logprobs(model, SEGMENTS).tokens
    seen = []
    for step, budget in ((3, None), (3, 1e-9), (4, None)):
        with dropout_of_step(model, step), recompute_blocks(model, budget):
            seen.append(gradients(model))
            seen[-1]["values"] = logprobs(model, SEGMENTS).tokens.detach()
    assert distance(seen[0], seen[1]) == 0
    assert distance(seen[0], seen[2]) > 1e-3, "each step drops others"
    assert (seen[0]["values"] - plain).abs().max() > 1e-2
    assert torch.equal(logprobs(model, SEGMENTS).tokens, plain), "nothing is dropped outside of steps"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return stored(tmp_path / "store", comparisons(12, 1))


def trained(
    model: PreTrainedModel, store: Store, steps: int, resume: Path | None = None, stop: int = -1
) -> list[float]:
    settings = Training(batch_size=4, learning_rate=1e-2, max_steps=steps, epochs=99, tokens_per_batch=40)
    inner = supervised_task(model, store)

    class Task:
        def accumulate(self, batch: Batch, state: dict[str, float]) -> Outcome:
            if batch.number == stop:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
            return inner.accumulate(batch, state)

    checkpoint = None if resume is None else Checkpoint(resume)
    return [step.loss for step in train(model.train(), store, settings, Task(), checkpoint)]


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(base: str, store: Store, tmp_path: Path) -> None:
    settings = Adapter(rank=3, dropout=0.3, base=base)

    def new() -> PreTrainedModel:
        model = tiny(dtype=torch.float32)
        attach(model, settings, seed=5)
        return model

    whole = new()
    losses = trained(whole, store, 6)
    with pytest.raises(Stopped):
        trained(new(), store, 6, tmp_path / "resume", stop=3)
    state = torch.load(tmp_path / "resume/state.pt", weights_only=True)
    num = sum(part.numel() for part in whole.parameters() if part.requires_grad)
    assert sum(value.numel() for value in state["model"].values()) == num, "frozen weights are not saved"
    moments = [value for each in state["optimizer"]["state"].values() for value in each.values() if value.dim()]
    assert sum(value.numel() for value in moments) == 2 * num
    resumed = new()
    assert trained(resumed, store, 6, tmp_path / "resume") == losses
    first, second = trained_state(whole), trained_state(resumed)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert {value.dtype for value in first.values()} == {torch.float32}
    frozen = {part.dtype for part in whole.parameters() if not part.requires_grad}
    assert frozen == {torch.bfloat16 if base == "bfloat16" else torch.float32}


def test_full_rank_reaches_the_loss_of_full_training(store: Store) -> None:
    """An update of full rank can be any matrix; with embeddings and norms trained as well nothing is frozen."""
    full = tiny(dtype=torch.float32)
    before = mean_nll(full, store, 512)
    trained(full, store, 80)
    adapted = tiny(dtype=torch.float32)
    attach(adapted, Adapter(rank=64, alpha=64), seed=0)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("base_layer" not in name)
    trained(adapted, store, 80)
    low = tiny(dtype=torch.float32)
    attach(low, Adapter(rank=1, alpha=1, target=("q_proj",)), seed=0)
    trained(low, store, 80)
    of_full, of_adapted, of_low = (mean_nll(model.eval(), store, 512) for model in (full, adapted, low))
    assert of_full < 0.15 * before
    assert of_adapted < 1.2 * of_full, (of_adapted, of_full)
    assert of_low > 0.5 * before, "an adapter that can do little does little"


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tiny(dtype=torch.float32).save_pretrained(tmp_path / "model")
    model = load_policy(tmp_path / "model", CPU)
    with pytest.raises(UserError, match=r"no linear layer query in its blocks; name some of down_proj, gate_proj"):
        add_adapter(model, Adapter(target=("q_proj", "query")), 0, tmp_path / "model")
    with pytest.raises(UserError, match="no linear layer lm_head in its blocks"):
        add_adapter(model, Adapter(target=("lm_head",)), 0, tmp_path / "model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_four_bits_need_cuda(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nf4 needs a CUDA device, and there is none; take bfloat16 or float32"):
        attach(tiny(dtype=torch.float32), Adapter(base="nf4"), seed=0)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base, folder = tmp_path / "base/model", tmp_path / "sft/model"
    tiny(dtype=torch.float32).save_pretrained(base)
    model = load_policy(base, CPU)
    lively(model)
    set_base(model, base)
    save(model, base, folder)
    for other in (tiny("gpt2", dtype=torch.float32), tiny(layers=1, dtype=torch.float32)):
        with pytest.raises(UserError, match="does not fit the model"):
            merge(other, folder)
    stirred(tiny(dtype=torch.float32), 3).save_pretrained(base)
    with pytest.raises(UserError, match="other weights than those of"):
        load_policy(folder, CPU)
    (base / "config.json").unlink()
    with pytest.raises(UserError, match="holds an adapter of base/model, which is in no folder above it"):
        load_policy(folder, CPU)


def test_a_scorer_keeps_its_head_in_float32_over_a_rounded_base() -> None:
    model = tiny_scorer().float()
    attach(model, Adapter(base="bfloat16"), seed=0)
    assert model.score.weight.dtype == torch.float32 and model.score.weight.requires_grad
    assert next(model.parameters()).dtype == torch.bfloat16
