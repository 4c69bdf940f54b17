"""Samplers of on-policy training: truncated sampling, and vLLM against a replacement with arithmetic of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comparisons import EOS, tiny
from on_policy import PROMPTS, ROWS, SETTINGS, counted_token, online_training
from prefdag.config.online.methods import optimum_of
from prefdag.config.online.settings import Online
from prefdag.config.runs import expanded
from prefdag.errors import Mistakes, UserError
from prefdag.models.generation import sample_truncated
from prefdag.models.naive import transformers_attention
from prefdag.online.rollouts import Rollouts, sample_round
from prefdag.online.sampler import OwnSampler, VllmSampler
from prefdag.online.targets import targets_of

STAND_IN = '''
"""Samples token by token with transformers' own forward pass, from the weights of its folder."""
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

CALLS = []

class SamplingParams:
    def __init__(self, **options):
        self.__dict__ = options

class LLM:
    def __init__(self, model, **options):
        self.folder = model
        CALLS.append(("engine", options))
        self.load()

    def load(self):
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float64)

    def sleep(self, level):
        CALLS.append(("sleep", level))
        self.model = None

    def wake_up(self, tags):
        CALLS.append(("wake", *tags))

    def collective_rpc(self, name):
        CALLS.append((name,))
        self.load()

    @torch.no_grad()
    def generate(self, prompts, params, use_tqdm):
        return [self.answer(*row) for row in zip(prompts, params, strict=True)]

    def answer(self, prompt, params):
        random = torch.Generator().manual_seed(params.seed % 2**63)
        ids, logprobs = [], []
        while len(ids) < params.max_tokens and not (ids and ids[-1] in params.stop_token_ids):
            row = torch.tensor([list(prompt["prompt_token_ids"]) + ids])
            values = (self.model(row).logits[0, -1] / params.temperature).log_softmax(-1)
            ids.append(int(torch.multinomial(values.exp(), 1, generator=random)))
            logprobs.append({ids[-1]: SimpleNamespace(logprob=values[ids[-1]].item())})
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids), logprobs=logprobs)])
'''
VLLM: dict[str, dict[str, Any]] = {
    "ppo": {"method": "ppo", "epochs": 2, "sampler": "vllm"},
    "rloo": {"method": "rloo", "samples": 3, "sampler": "vllm", "temperature": 0.7},
    "grpo": {"method": "grpo", "samples": 3, "sampler": "vllm"},
    "online dpo": {"method": "dpo", "beta": 0.5, "online": {"labels": "soft", "sampler": "vllm"}},
}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/vllm.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    import vllm

    yield vllm.CALLS
    sys.modules.pop("vllm", None)


def with_vllm(row: dict[str, Any], folder: Path, **settings: Any) -> Any:
    training = online_training({**row, **settings})
    (folder / "sft").mkdir()
    training.sampler = VllmSampler(training.models.policy, folder / "sft", folder / "sampler", training.settings, EOS)
    return training


@pytest.mark.parametrize("name", VLLM)
def test_vllm_samples_every_round_from_the_weights_as_they_are(name: str, calls: list[Any], tmp_path: Path) -> None:
    """Its log-probs are the training's but for float32; the ratio's weights are journalled, and none is capped."""
    records = list(with_vllm(VLLM[name], tmp_path).rounds())
    assert len(records) == 3 and all(one.metrics["sampler_difference"] < 1e-4 for one in records)
    assert all(abs(one.metrics["sampler_kl"]) < 1e-4 for one in records)
    if name == "online dpo":
        assert "importance_ratio" not in records[0].metrics
    else:
        assert all(one.metrics["importance_ratio"] == pytest.approx(1, abs=1e-4) for one in records)
        assert all(one.metrics["importance_capped"] == 0 for one in records)
    (_, options), *rest = calls
    assert options["logprobs_mode"] == "processed_logprobs" and options["enable_sleep_mode"]
    again = [("wake", "weights"), ("reload_weights",), ("wake", "kv_cache"), ("sleep", 2)]
    assert rest == [("sleep", 2), *again, *again]


def test_stale_weights_would_show(calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not load the weights again differs from the training from the second round on."""
    import vllm

    first = tmp_path / "first"
    load = vllm.LLM.load

    def load_first(engine: Any) -> None:
        if not first.is_dir():
            Path(engine.folder).rename(first)
        engine.folder = str(first)
        load(engine)

    monkeypatch.setattr(vllm.LLM, "load", load_first)
    differences = [one.metrics["sampler_difference"] for one in with_vllm(VLLM["rloo"], tmp_path).rounds()]
    assert differences[0] < 1e-4 < 1e-2 < min(differences[1:])


def test_without_vllm_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="online.sampler: vllm cannot be imported .*remove `sampler`"):
        with_vllm(VLLM["ppo"], tmp_path)


def round_of(row: dict[str, Any]) -> tuple[Any, Rollouts, torch.Tensor]:
    """A training, and a round of it with log-probs and scores."""
    training = online_training(row)
    rollouts = sample_round(training.sampler, PROMPTS, 0, training.settings)
    scores = torch.from_numpy(counted_token(rollouts.comparisons(PROMPTS)))
    old = rollouts.sampled.float()
    values = torch.linspace(-1, 1, len(old)) if row["method"] == "ppo" else None
    return training, rollouts.with_values(scores=scores, old=old, reference=old - 0.1, values=values), scores


@pytest.mark.parametrize("name", ["ppo", "reinforce", "rloo", "grpo"])
def test_equal_log_probs_have_a_ratio_of_exactly_one(name: str) -> None:
    training, rollouts, scores = round_of({"method": name, "samples": 3})
    method, plain = training.method, training.settings
    capped = plain.model_copy(update={"importance_cap": 2.0})
    same = rollouts.with_values(sampled=rollouts.old.double())
    one, other = (targets_of(method, settings, same, scores, 0.1) for settings in (plain, capped))
    assert torch.equal(one.advantages, other.advantages)
    assert other.metrics == one.metrics | {"importance_ratio": 1.0, "importance_capped": 0.0}


@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_the_ratio_weighs_the_advantages_up_to_the_cap(name: str) -> None:
    """Of PPO each token's, of RLOO that of the whole response; a sampler that was less sure weighs more."""
    training, rollouts, scores = round_of({"method": name, "samples": 3})
    change = torch.where(torch.arange(len(rollouts.ids)) % 2 == 0, 0.4, -0.6).double()
    other = rollouts.with_values(sampled=rollouts.old.double() - change)
    plain = targets_of(training.method, training.settings, rollouts, scores, 0.1).advantages
    settings = training.settings.model_copy(update={"importance_cap": 1.2})
    targets = targets_of(training.method, settings, other, scores, 0.1)
    lengths = rollouts.lengths.flatten().tolist()
    parts = [part.sum().expand(len(part)) if name == "rloo" else part for part in change.split(lengths)]
    expected = torch.cat(parts).exp()
    assert torch.allclose(targets.advantages, plain * expected.clamp(max=1.2), atol=1e-12)
    assert targets.metrics["importance_capped"] == pytest.approx((expected > 1.2).double().mean().item())
    assert 0 < targets.metrics["importance_capped"] < 1


def settings_of_row(**row: Any) -> Online:
    mistakes = Mistakes()
    runs = expanded([{"name": "row", **row}], {}, SETTINGS, "suite.yaml", mistakes)
    mistakes.check()
    assert runs[0].online is not None
    return runs[0].online


def test_importance_weights_are_those_of_vllm_by_default() -> None:
    assert settings_of_row(method="ppo").importance_cap is None
    assert settings_of_row(method="ppo", sampler="vllm").importance_cap == 2
    assert settings_of_row(method="ppo", sampler="vllm", importance_cap=None).importance_cap is None
    assert settings_of_row(method="dpo", beta=0.1, online={"sampler": "vllm", "labels": "soft"}).importance_cap is None


TRUNCATED = {**ROWS["rloo"], "top_p": 0.8, "top_k": 5, "truncated_sampling": "biased"}


def test_truncation_is_asked_for_with_its_bias_named() -> None:
    runs = expanded([{"name": "row", **TRUNCATED}], {}, SETTINGS, "suite.yaml", Mistakes())
    optimum = optimum_of(runs[0].objective, runs[0].online)
    assert "tokens that they leave out are never sampled" in optimum.warning
    assert optimum.sentence.startswith("biased, as top_p and top_k")
    assert runs[0].online.shown_options()["top_k"] == 5


def test_truncated_samples_are_the_likely_tokens_and_their_bias_is_journalled() -> None:
    """The sampler's log-probs are of the truncated distribution: above the training's by the log of its mass."""
    seen: list[Rollouts] = []
    training = online_training(
        {**TRUNCATED, "max_steps": 1}, on_round=lambda number, rollouts, seconds: seen.append(rollouts)
    )
    policy = tiny(dtype=torch.float32)  # as it was
    (record,) = list(training.rounds())
    gaps = seen[0].sampled - seen[0].old.double()
    assert gaps.min() > -1e-5 and gaps.max() <= -np.log(0.8 * 5 / 50)
    assert record.metrics["sampler_kl"] == pytest.approx(gaps.mean().item()) and record.metrics["sampler_kl"] > 0.1
    for one in seen[0].comparisons(PROMPTS):
        for ids in one.responses:
            whole = torch.tensor([[*one.prompt.tolist(), *ids.tolist()]])
            with transformers_attention(policy):
                rows = policy(whole).logits[0, len(one.prompt) - 1 : -1]
            better = (rows > rows.gather(1, torch.tensor(ids.astype(np.int64))[:, None])).sum(1)
            assert better.max() < 5


@pytest.mark.parametrize("size", [1, 3, 64])
def test_truncated_draws_do_not_depend_on_the_batch(size: int) -> None:
    settings = online_training(TRUNCATED).settings
    sampler = OwnSampler(tiny(), EOS, settings.top_k)
    one = sample_round(sampler, PROMPTS, 1, settings)
    other = sample_round(sampler, PROMPTS, 1, settings.model_copy(update={"sampling_batch_size": size}))
    assert torch.equal(one.ids, other.ids) and torch.allclose(one.sampled, other.sampled, atol=1e-12)


@pytest.mark.parametrize(
    ("top_p", "top_k", "allowed"),
    [(1.0, 2, [0.5, 0.3]), (0.6, None, [0.5, 0.3]), (0.6, 2, [0.5]), (0.7, 2, [0.5, 0.3]), (1.0, 9, [0.5, 0.3, 0.2])],
)
def test_top_k_comes_before_top_p(top_p: float, top_k: int | None, allowed: list[float]) -> None:
    """The share that top_p reaches is one of the top_k tokens: 0.5 of 0.8 is above 0.6."""
    uniform = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    logits = torch.tensor([0.3, 0.5, 0.2]).log().expand(50, 3)
    ids, mass = sample_truncated(logits, uniform, 1.0, top_p, top_k)
    assert set(ids.tolist()) == {[0.3, 0.5, 0.2].index(one) for one in allowed}
    assert mass.exp() == pytest.approx(np.full(50, sum(allowed)), abs=1e-6)


def test_estimators_of_the_kl_have_errors_and_every_epoch_its_change() -> None:
    """k2 of the first round is half the squared log-ratios; the first epoch's change is that of its updates."""
    seen: list[Rollouts] = []
    row = {**ROWS["ppo"], "epochs": 3, "max_steps": 2}
    records = list(online_training(row, on_round=lambda number, rollouts, seconds: seen.append(rollouts)).rounds())
    metrics, rollouts = records[1].metrics, seen[1]
    ratio = (rollouts.old - rollouts.reference).double()
    totals = torch.stack([(part**2 / 2).sum() for part in ratio.split(rollouts.lengths.flatten().tolist())])
    assert metrics["k2"] == pytest.approx(totals.mean().item(), rel=1e-6)
    assert metrics["k2_se"] == pytest.approx((totals.std() / len(totals) ** 0.5).item(), rel=1e-6)
    assert metrics["k1_se"] > 0 and metrics["k3_se"] > 0
    assert metrics["approx_kl_epoch1"] == metrics["approx_kl_first_epoch"]
    assert metrics["approx_kl_epoch3"] == metrics["approx_kl_last_epoch"] != metrics["approx_kl_epoch2"]
