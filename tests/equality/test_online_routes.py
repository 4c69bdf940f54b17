"""On-policy training of every kind of architecture: its log-probs are those of single rows and of its own sampler."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_routes import EOS, saved

from comparisons import comparisons
from prefdag.config.online.methods import METHODS
from prefdag.config.online.settings import Online
from prefdag.data.token_store import Comparison
from prefdag.errors import UserError
from prefdag.models.loading import load_policy
from prefdag.models.packing import pack
from prefdag.models.policy_stats import distribution, states_of, tempered_logprobs
from prefdag.models.route import Route, implementation, route_of, set_route
from prefdag.online.critic import load_critic
from prefdag.online.loop import OnlineTraining
from prefdag.online.round import Models

CPU = torch.device("cpu")
# Padded; under a mask; a factor of the logits; a soft cap; the fastest, and again with the model's own head.
NAMES = ("gpt_neo", "bloom", "mamba", "falcon", "cohere", "gemma2", "llama")
PROMPTS = [one.prompt for one in comparisons(5, 1, seed=4)]
SETTINGS = {"batch_size": 4, "max_steps": 2, "max_new_tokens": 5, "learning_rate": 1e-2, "sample_table": 1}


def share_even(compared: Sequence[Comparison]) -> np.ndarray:
    return np.array([[(ids % 2 == 0).mean() for ids in one.responses] for one in compared])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models as users have them; their proofs are shared by the tests of this module."""
    base = tmp_path_factory.mktemp("models")
    return {name: saved(name, base / name) for name in NAMES}


@pytest.fixture(autouse=True, scope="module")
def _proofs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("proofs")))
        yield


def policy_of(folder: Path, own_head: bool = False) -> Any:
    model = load_policy(folder, CPU)
    if own_head:
        model.set_attn_implementation("eager")
        set_route(model, Route(kind="padded", last_layer=False, head="model", reason="as a test says"))
    return model


CASES = [*((name, False) for name in NAMES), ("llama", True)]


@pytest.mark.parametrize(("name", "own_head"), CASES)
def test_tempered_log_probs_are_those_of_single_rows(name: str, own_head: bool, folders: dict[str, Path]) -> None:
    """At temperature 0.7, with the entropy of the same distribution."""
    model = policy_of(folders[name], own_head)
    compared = comparisons(3, 2, seed=2)
    segments = pack(compared, [[0, 1], [2]])
    with torch.no_grad():
        states = states_of(model, segments)
        values = tempered_logprobs(model, states, segments.target, 0.7)
        entropy = distribution(model, states, 0.7).entropy
        expected, entropies = [], []
        with implementation(model, "eager"):
            for one in compared:
                for ids in one.responses:
                    row = torch.tensor([[*one.prompt.tolist(), *ids.tolist()]])
                    logits = model(row, use_cache=False).logits[0, len(one.prompt) - 1 : -1] / 0.7
                    rows = logits.log_softmax(-1)
                    expected.append(rows.gather(1, torch.tensor(ids.tolist())[:, None]).squeeze(1))
                    entropies.append(-(rows.exp() * rows).sum(1))
    torch.testing.assert_close(values, torch.cat(expected), atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(entropy, torch.cat(entropies), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("name", "own_head"), CASES)
def test_two_rounds_of_every_architecture(name: str, own_head: bool, folders: dict[str, Path]) -> None:
    """The sampler's log-probs are the training's, the first ratio is 1, and the weights move."""
    policy, reference = (policy_of(folders[name], own_head) for _ in range(2))
    method = METHODS["rloo"].parse({"method": "rloo"}, "tests")
    settings = Online.parse({**SETTINGS, "samples": 2, "temperature": 0.7}, "tests")
    models = Models(policy.train(), reference.requires_grad_(False), None)
    records = list(OnlineTraining(models, method, settings, PROMPTS, share_even, EOS).rounds())
    assert all(one.metrics["sampler_difference"] < 1e-3 and one.metrics["first_ratio_error"] == 0 for one in records)
    moved = [
        not torch.equal(one, other) for one, other in zip(policy.parameters(), reference.parameters(), strict=True)
    ]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize(("name", "own_head"), [("gpt_neo", False), ("bloom", False), ("llama", True)])
def test_a_value_head_has_a_trunk_of_its_own(name: str, own_head: bool, folders: dict[str, Path]) -> None:
    policy = policy_of(folders[name], own_head)
    method = METHODS["ppo"].parse({"method": "ppo", "score_at": "after_eos"}, "tests")
    critic = load_critic(method, policy, folders[name], None, 0, CPU)
    settings = Online.parse({**SETTINGS, "kl": 0}, "tests")
    models = Models(policy.train(), None, critic)
    records = list(OnlineTraining(models, method, settings, PROMPTS, share_even, EOS).rounds())
    assert records[-1].metrics["value_loss"] > 0 and records[-1].metrics["value_grad_norm"] > 0
    if own_head:
        assert route_of(policy).head == "model"
        shared = method.model_copy(update={"value": "shared"})
        with pytest.raises(UserError, match="which a shared value head reads; say `value: own`"):
            load_critic(shared, policy, folders[name], None, 0, CPU)
