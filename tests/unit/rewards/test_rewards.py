"""Reward models: heads, ensembles, normalisation, what is kept on disk; and the implicit reward."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from artifacts import run_of
from comparisons import comparisons, naive_rewards, naive_values, tiny
from prefdag.errors import UserError
from prefdag.models.loading import load_policy, load_scorer
from prefdag.models.naive import naive_logprobs
from prefdag.models.packing import pack
from prefdag.provenance.manifest import read_manifest
from prefdag.rewards.evaluation import evaluation, score_all
from prefdag.rewards.implicit import ImplicitReward
from prefdag.rewards.model import (
    RewardModel,
    Scoring,
    combined,
    initial_heads,
    load_reward_model,
    member_folder,
    reward_of,
    save_untrained,
    untrained_reward_model,
    zero_mean,
)

CPU = torch.device("cpu")
BATCH = comparisons(9, 3)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    tiny(dtype=torch.float32).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def scorer(policy: Path, seeds: Sequence[int] = (0,), heads: int = 1) -> PreTrainedModel:
    model = load_scorer(policy, CPU, new_heads=heads * len(seeds))
    initial_heads(model, 0.5, seeds)
    return model


def test_loaded_parameters_begin_where_torch_would_begin_them(policy: Path) -> None:
    """Whatever the length of the file's header, which moves everything behind it by eight bytes here."""
    path = policy / "model.safetensors"
    weights = load_file(path)
    for length in range(0, 64, 8):
        save_file(weights, path, {"format": "pt", "note": "x" * length})
        assert not [name for name, one in load_policy(policy, CPU).named_parameters() if one.data_ptr() % 64]


def near(values: Tensor, expected: Tensor) -> bool:
    return torch.allclose(values.double(), expected.double(), rtol=0, atol=2e-5)


def test_combinations_by_hand() -> None:
    """Heads 1 and 3: mean 2, deviation 1 (over two heads, not one). Heads 0, 0, 3: mean 1, deviation sqrt(2)."""
    values = torch.tensor([[1.0, 3.0], [-1.0, -1.0]])
    assert combined(values, "mean").tolist() == [2, -1]
    assert combined(values, "mean_minus_deviation").tolist() == [1, -1]
    assert combined(values, "minimum").tolist() == [1, -1]
    assert combined(torch.tensor([0.0, 0, 3]), "mean_minus_deviation").item() == pytest.approx(1 - math.sqrt(2))


@torch.no_grad()
@pytest.mark.parametrize("how", ["mean", "mean_minus_deviation", "minimum"])
def test_an_ensemble_is_its_heads_combined(how: str, policy: Path) -> None:
    """Two members of two heads each: the combination of four heads, each computed alone the plain way."""
    members = (scorer(policy, heads=2), scorer(policy, seeds=(1,), heads=2))
    model = RewardModel(members, Scoring(seeds=(0, 1), combine=how))
    values = naive_values(members, BATCH)
    assert values.shape == (9, 3, 4) and values.std(-1).min() > 0.1
    assert near(model.values(pack(BATCH)), values)
    assert near(model(pack(BATCH)), combined(values, how))


def test_a_heads_first_weights_do_not_depend_on_the_others(policy: Path) -> None:
    """Seed by seed and head by head; each draw is its own."""
    alone = [scorer(policy, (seed,), 3).score.weight for seed in (4, 7)]
    assert torch.equal(torch.cat(alone), scorer(policy, (4, 7), 3).score.weight)
    assert torch.equal(alone[0][:1], scorer(policy, (4,)).score.weight)
    assert len({tuple(row.tolist()) for row in torch.cat(alone)}) == 6


@torch.no_grad()
def test_length_normalised_rewards_are_the_head_over_alpha_and_tokens(policy: Path) -> None:
    model = scorer(policy)
    tokens = torch.tensor([[len(response) for response in one.responses] for one in BATCH])
    assert tokens.min() == 1 and tokens.max() == 8
    for alpha in (0.0, 2.5):
        values = RewardModel((model,), Scoring(length_normalisation=alpha))(pack(BATCH))
        assert near(values, naive_rewards(model, BATCH) / (alpha + tokens))


@pytest.mark.parametrize("how", ["mean", "mean_minus_deviation", "minimum"])
def test_zero_mean_is_zero_mean(how: str) -> None:
    """Heads 1, 2, 6 of one response and 1, 0, 0 of the other: head means 1, 1, 3, so 0, 1, 3 and 0, -1, -3 apart.

    The mean is 4/3 and -4/3. The minimum is 0 and -3, so -3/2 more goes from every head: 3/2 and -3/2.
    """
    values = torch.tensor([[[1.0, 2, 6], [1, 0, 0]]])
    scoring = zero_mean(values.numpy(), Scoring(combine=how))
    values = reward_of(values, scoring)
    assert values.mean().item() == pytest.approx(0, abs=1e-6) and values[0, 0] > values[0, 1]
    if how == "mean":
        assert scoring.offset == (1, 1, 3)
    if how == "minimum":
        assert scoring.offset == (-0.5, -0.5, 1.5) and values.tolist() == [[1.5, -1.5]]


def saved(folder: Path, members: Sequence[PreTrainedModel], scoring: Scoring) -> Path:
    """A reward model's folder, as the stage leaves it."""
    for place, member in enumerate(members):
        member.save_pretrained(member_folder(folder, place, scoring.seeds))
    (folder / "scoring.json").write_text(scoring.canonical())
    return folder


@torch.no_grad()
def test_a_reward_model_is_read_back_as_it_was(policy: Path, tmp_path: Path) -> None:
    """An ensemble of two seeds and two heads, offsets and all: the very same rewards; and the untrained one's."""
    seeds, segments = (3, 8), pack(BATCH)
    members = tuple(scorer(policy, (seed,), 2) for seed in seeds)
    scoring = Scoring(seeds=seeds, combine="minimum", length_normalisation=1, offset=(0.1, 0.2, 0.3, 0.4))
    folder = saved(tmp_path / "reward", members, scoring)
    save_untrained(scorer(policy, seeds, 2), folder)
    model = RewardModel(members, scoring)
    assert torch.equal(load_reward_model(folder, CPU)(segments), model(segments))
    before = untrained_reward_model(policy, folder, CPU)
    assert near(before.values(segments), model.values(segments)), "nothing was trained here"
    assert near(before(segments), combined(naive_values(members, BATCH) / (1 + lengths()), "minimum"))


def lengths() -> Tensor:
    return torch.tensor([[len(response) for response in one.responses] for one in BATCH])[..., None]


def test_a_folder_without_its_head_is_no_reward_model(policy: Path, tmp_path: Path) -> None:
    """Each thing that a reward model is made of, lost: one sentence that names it."""
    policy.rename(tmp_path / "reward-model")
    (tmp_path / "headless").mkdir()
    (tmp_path / "reward-model").rename(tmp_path / "headless/model")
    where = tmp_path / "headless"
    with pytest.raises(UserError, match=r"headless: holds no scoring.json, so it is no reward model"):
        load_reward_model(where, CPU)
    (where / "scoring.json").write_text(Scoring().canonical())
    with pytest.raises(UserError, match=r"headless/model: its weights lack score.weight \(1 missing\)"):
        load_reward_model(where, CPU)
    with pytest.raises(UserError, match=r"head.safetensors: the untrained heads are missing; rerun `reward`"):
        untrained_reward_model(where / "model", where, CPU)
    whole = saved(tmp_path / "whole", [scorer(where / "model")], Scoring(offset=(0.5, 0.5)))
    with pytest.raises(UserError, match=r"scoring.json: offset has 2 numbers for 1 heads"):
        load_reward_model(whole, CPU)
    (whole / "scoring.json").write_text(Scoring(seeds=(0, 5)).canonical())
    with pytest.raises(UserError, match=r"whole/seeds/5: cannot load a model"):
        load_reward_model(whole, CPU)


@torch.no_grad()
def test_the_implicit_reward_is_beta_times_the_log_ratio(policy: Path, tmp_path: Path) -> None:
    """beta (S - R) of summed log-probs S and R from transformers' own attention and the full softmax."""
    path = run_of(tmp_path / "dpo", "dpo", {"reference": "x"}, beta=0.3)
    reference = load_policy(policy, CPU)
    reward = ImplicitReward.of_run(read_manifest(path), reference, CPU)
    expected = naive_logprobs(reward.policy.double(), BATCH).total - naive_logprobs(reference.double(), BATCH).total
    values = torch.from_numpy(score_all(reward, BATCH, 40, CPU))
    assert expected.abs().max() > 1 and torch.allclose(values.double(), 0.3 * expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "inputs", "options"), [("preferred_ft", {"reference": "x"}, {}), ("simpo", {}, {"beta": 2.0})]
)
def test_a_run_without_beta_or_reference_has_no_implicit_reward(
    method: str, inputs: dict[str, str], options: dict[str, float], policy: Path, tmp_path: Path
) -> None:
    run = read_manifest(run_of(tmp_path / method, method, inputs, **options))
    with pytest.raises(UserError, match="no implicit reward; name a run whose loss has a beta and reads the reference"):
        ImplicitReward.of_run(run, load_policy(policy, CPU), CPU)


def test_accuracy_of_rankings_by_hand() -> None:
    """2 > 1 > 0 has 3 of 3 pairs right, 0 < 1 < 2 none, 1 = 1 > 0 two and a half: (1 + 0 + 5/6) / 3."""
    values = torch.tensor([[2.0, 1, 0], [0, 1, 2], [1, 1, 0]]).numpy()
    values = evaluation(values, torch.arange(3).numpy())
    assert values["accuracy"] == pytest.approx(11 / 18) and values["n"] == 3
    assert values["mean"] == pytest.approx(8 / 9)
