"""Golden cases of policy optimization: advantages, losses, KL estimators, pair choices and sampling laws.

A method takes a case's hyper-parameters and its fixture and returns named numbers, `loss` first; fixtures hold padded
tokens [B, L] ("ppo"), groups [N, G] ("group"), logits [B, L, V] ("dist"), or a distribution ("world").
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefdag.evaluation import sampling_laws
from prefdag.evaluation.best_of_n import divergence_bound
from prefdag.losses import advantages as adv
from prefdag.losses import pair_choice
from prefdag.losses import policy_gradient as pg
from prefdag.testing.fixtures import Fixture, Leaves, fixed, leaf

# Peers' names of aggregations.
AGGREGATIONS: dict[str, pg.Aggregation] = {
    "token-mean": "token_mean",
    "dapo": "token_mean",
    "bnpo": "token_mean",
    "seq-mean-token-mean": "sequence_mean",
    "grpo": "sequence_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "constant",
    "dr_grpo": "constant",
}
KL = {"k1": pg.kl_k1, "k2": pg.kl_k2, "k3": pg.kl_k3, "k3+": pg.kl_k3_straight_through}
Hyper = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """Named numbers of a case, and the leaves whose gradients of `loss` are reported."""

    values: dict[str, Any]
    leaves: Leaves = field(default_factory=dict)


PolicyMethod = Callable[[Hyper, Fixture], Result]
# The hyper-parameter under which `evaluate` hands over whether values are reported times the mask.
MASKED = "times mask"


def tensors(fixture: Fixture, *names: str) -> list[Tensor]:
    return [fixed(fixture[name]) for name in names]


def gae(hp: Hyper, fixture: Fixture) -> Result:
    rewards, values, mask = tensors(fixture, "rewards", "old_values", "mask")
    advantages, returns = adv.gae(rewards, values, mask, gamma=hp["gamma"], lam=hp["lam"])
    return Result({"loss": advantages, "advantages": advantages, "returns": returns})


def gae_bootstrap(hp: Hyper, fixture: Fixture) -> Result:
    rewards, values, mask, last = tensors(fixture, "rewards", "old_values", "mask", "bootstrap")
    advantages, returns = adv.gae(rewards, values, mask, gamma=hp["gamma"], lam=hp["lam"], bootstrap=last)
    return Result({"loss": advantages, "advantages": advantages, "returns": returns})


def rewards_to_go(hp: Hyper, fixture: Fixture) -> Result:
    return Result({"loss": adv.rewards_to_go(*tensors(fixture, "rewards", "mask"), gamma=hp["gamma"])})


def reinforce_advantage(hp: Hyper, fixture: Fixture) -> Result:
    rewards, baseline, mask = tensors(fixture, "rewards", "baseline", "mask")
    returns = adv.rewards_to_go(rewards, mask, gamma=hp.get("gamma", 1.0))
    return Result({"loss": adv.subtract_baseline(returns, baseline, mask)})


def reinforce_loss(hp: Hyper, fixture: Fixture) -> Result:
    advantage, mask = tensors(fixture, "adv", "mask")
    logp = leaf(fixture["logp"])
    return Result({"loss": _aggregate(hp, pg.reinforce(logp, advantage), mask)}, {"logp": logp})


def masked_whiten(hp: Hyper, fixture: Fixture) -> Result:
    values, mask = tensors(fixture, "adv", "mask")
    return Result({"loss": adv.whiten(values, mask, shift_mean=hp.get("shift_mean", True), ddof=hp.get("ddof", 1))})


def ppo_policy(hp: Hyper, fixture: Fixture) -> Result:
    old, advantage, mask = tensors(fixture, "old_logp", "adv", "mask")
    logp, bounds = leaf(fixture["logp"]), _clip(hp)
    tokens = pg.ppo_policy(logp, old, advantage, **bounds, dual_clip=hp.get("dual_clip"))
    metrics = {
        "clip_fraction": pg.clipped_tokens(logp, old, advantage, **bounds),
        "kl_old_k1": pg.kl_k1(old, logp),
        "kl_old_k2": pg.kl_k2(old, logp),
    }
    means = {name: pg.aggregate(values, mask, "token_mean") for name, values in metrics.items()}
    return Result({"loss": _aggregate(hp, tokens, mask), **means}, {"logp": logp})


def ppo_value(hp: Hyper, fixture: Fixture) -> Result:
    old, returns, mask = tensors(fixture, "old_values", "returns", "mask")
    values, clip = leaf(fixture["values"]), hp.get("clip")
    loss = pg.aggregate(pg.ppo_value(values, old, returns, clip=clip), mask, "token_mean")
    named = {"loss": loss, "explained_variance": pg.explained_variance(values, returns, mask)}
    if clip is not None:
        clipped = (pg.clip_values(values, old, clip) - returns) ** 2 > (values - returns) ** 2
        named["clip_fraction"] = pg.aggregate(clipped.double(), mask, "token_mean")
    return Result(named, {"values": values})


def kl(estimate: Callable[[Tensor, Tensor], Tensor], weighted: bool = False) -> PolicyMethod:
    """Evaluate an estimator at every token."""

    def values(hp: Hyper, fixture: Fixture) -> Result:
        logp = leaf(fixture["logp"])
        tokens = estimate(logp, fixed(fixture["ref_logp"]))
        if weighted:
            tokens = pg.importance_weighted(tokens, logp, fixed(fixture["old_logp"]))
        return Result({"loss": tokens * fixed(fixture["mask"]) if hp[MASKED] else tokens}, {"logp": logp})

    return values


def shaped_reward(hp: Hyper, fixture: Fixture) -> Result:
    scores, old, reference, mask = tensors(fixture, "scores", "old_logp", "ref_logp", "mask")
    at = hp.get("at", hp.get("score_at", "eos"))
    return Result({"loss": _rewards(scores, old, reference, mask, hp["kl_coef"], at)})


def ppo_round(hp: Hyper, fixture: Fixture) -> Result:
    """Evaluate a whole round: rewards, advantages, whitening, and both losses of its first minibatch."""
    scores, old, reference, old_values, mask = tensors(fixture, "scores", "old_logp", "ref_logp", "old_values", "mask")
    at = hp.get("score_at", "eos")
    learned = adv.value_mask(mask, at)
    rewards = _rewards(scores, old, reference, mask, hp["kl_coef"], at)
    advantages, returns = adv.gae(rewards, old_values, learned, gamma=hp["gamma"], lam=hp["lam"])
    advantages = _whitened(str(hp.get("whiten", "none")), advantages, mask)
    logp, values = leaf(fixture["logp"]), leaf(fixture["values"])
    policy_loss = _aggregate(hp, pg.ppo_policy(logp, old, advantages, **_clip(hp)), mask)
    value_loss = pg.aggregate(
        pg.ppo_value(values, old_values, returns, clip=hp.get("value_clip")), learned, "token_mean"
    )
    named = {"rewards": rewards, "advantages": advantages, "returns": returns, "value_mask": learned}
    losses = {"policy_loss": policy_loss, "value_loss": value_loss}
    return Result(
        {"loss": policy_loss + hp["vf_coef"] * value_loss, **named, **losses}, {"logp": logp, "values": values}
    )


def missing_eos(hp: Hyper, fixture: Fixture) -> Result:
    ended = torch.tensor(fixture["has_eos"], dtype=torch.bool)
    return Result({"loss": adv.missing_eos(fixed(fixture["scores"]), ended, how=hp["mode"], value=hp["value"])})


def grpo_loss(hp: Hyper, fixture: Fixture) -> Result:
    old, reference, advantage, mask = tensors(fixture, "old_logp", "ref_logp", "adv", "mask")
    logp = leaf(fixture["logp"])
    tokens = pg.ppo_policy(logp, old, advantage[:, :1], **_clip(hp))
    name = hp.get("kl", "none").split()[0]
    if hp.get("beta", 0.0) and name != "none":
        penalty = KL[name](logp, reference)
        if "ratio" in hp["kl"]:
            penalty = pg.importance_weighted(penalty, logp, old)
        tokens = tokens + hp["beta"] * penalty
    loss = pg.aggregate(tokens, mask, AGGREGATIONS[hp["loss_type"]], max_length=hp.get("max_completion_length"))
    return Result({"loss": loss}, {"logp": logp})


def rloo_loss(hp: Hyper, fixture: Fixture) -> Result:
    """Evaluate the loss with the ratio of whole responses, or of tokens."""
    old, advantage, mask = tensors(fixture, "old_logp", "adv", "mask")
    logp = leaf(fixture["logp"])
    if "sequence" not in hp.get("ratio", "whole sequence"):
        return Result(
            {"loss": _aggregate(hp, pg.ppo_policy(logp, old, advantage[:, :1], **_clip(hp)), mask)}, {"logp": logp}
        )
    total, old_total = (logp * mask).sum(1), (old * mask).sum(1)
    return Result({"loss": pg.ppo_policy(total, old_total, advantage[:, 0], **_clip(hp)).mean()}, {"logp": logp})


def rloo_advantage(hp: Hyper, fixture: Fixture) -> Result:
    scores, kl = tensors(fixture, "scores", "seq_kl")
    return Result({"loss": adv.leave_one_out(scores - hp["beta"] * kl if hp.get("kl") == "in_reward" else scores)})


def grpo_advantage(hp: Hyper, fixture: Fixture) -> Result:
    scores, scale = fixed(fixture["scores"]), hp.get("scale", "group")
    if scale == "none":
        return Result({"loss": adv.group_mean(scores)})
    return Result({"loss": adv.group_normalised(scores, scale=scale, eps=hp["eps"], ddof=hp.get("ddof", 1))})


def choice(hp: Hyper, fixture: Fixture) -> Result:
    """Choose pairs; D2PO's are flat indices, a block of chosen ones before their rejected ones in each minibatch."""
    scores, how = fixed(fixture["scores"]), hp["how"]
    if how == "online_dpo_first_two":
        return Result({"loss": pair_choice.first_if_not_worse(scores)})
    if how != "d2po":
        return Result({"loss": pair_choice.choose_pair(scores, how)})
    groups = scores.flatten().view(-1, hp["oversample"])
    begin = torch.arange(len(groups)) * hp["oversample"]
    blocks = zip(
        *((begin + best).split(hp["mini_batch_pairs"]) for best in (groups.argmax(1), groups.argmin(1))), strict=True
    )
    return Result({"loss": torch.cat([block for both in blocks for block in both])})


def dno_pairs(hp: Hyper, fixture: Fixture) -> Result:
    pairs = pair_choice.margin_pairs(fixed(fixture["scores"]), hp["threshold"])
    return Result({"loss": [[list(pair) for pair in one] for one in pairs]})


def entropy(hp: Hyper, fixture: Fixture) -> Result:
    logits, mask = leaf(fixture["logits"]), fixed(fixture["mask"])
    tokens = pg.entropy(logits.log_softmax(-1))
    return Result({"loss": _aggregate(hp, tokens, mask), "per_token": tokens}, {"logits": logits})


def kl_full(hp: Hyper, fixture: Fixture) -> Result:
    logits, (reference, mask) = leaf(fixture["logits"]), tensors(fixture, "ref_logits", "mask")
    tokens = pg.kl_full(logits.log_softmax(-1), reference.log_softmax(-1)) * mask
    return Result({"loss": tokens, "loss_sum": tokens.sum()}, {"logits": logits})


def rso_target(hp: Hyper, fixture: Fixture) -> Result:
    reference, reward = tensors(fixture, "pi_ref", "reward")
    result = sampling_laws.rejection(reference, reward, hp["beta"])
    rates = {"acceptance_rate": result.rate, "expected_draws_per_accept": 1 / result.rate}
    return Result({"loss": result.law, "acceptance": result.acceptance, **rates})


def rso_algorithm1(hp: Hyper, fixture: Fixture) -> Result:
    return Result({"loss": sampling_laws.inclusion(fixed(fixture["reward"]), hp["beta"], hp["num_samples"])})


def best_of_n(hp: Hyper, fixture: Fixture) -> Result:
    reference, reward = tensors(fixture, "pi_ref", "reward")
    law = sampling_laws.best_of_n(reference, reward, hp["n"])
    kl = torch.where(law > 0, law * (law / reference).log(), 0.0).sum()
    return Result({"loss": law, "kl": kl, "kl_bound": divergence_bound(hp["n"]), "expected_reward": law @ reward})


def kl_controller(hp: Hyper, fixture: Fixture) -> Result:
    """Return the coefficient after each round of the listed KLs, which may be JSON text."""
    kls = json.loads(hp["kls"]) if isinstance(hp["kls"], str) else hp["kls"]
    coefficients = [hp["init"]]
    for kl in kls:
        coefficients.append(
            pg.adapted_coefficient(
                coefficients[-1], kl, target=hp["target"], horizon=hp["horizon"], batch_size=hp["batch"]
            )
        )
    return Result({"loss": coefficients[1:]})


def _rewards(scores: Tensor, old: Tensor, reference: Tensor, mask: Tensor, coefficient: float, at: Any) -> Tensor:
    return adv.token_rewards(scores, pg.kl_k1(old, reference), mask, coefficient=coefficient, score_at=at)


def _clip(hp: Hyper) -> dict[str, float]:
    """Return the clipping range, from one number or from its two ends."""
    low = hp.get("clip_low", hp.get("clip"))
    if low is None:
        raise KeyError("clip")
    return {"clip_low": low, "clip_high": hp.get("clip_high", low)}


def _aggregate(hp: Hyper, tokens: Tensor, mask: Tensor) -> Tensor:
    how = AGGREGATIONS[hp.get("agg", "token-mean")]
    return pg.aggregate(tokens, mask, how, max_length=hp.get("max_completion_length", mask.shape[1]))


def _whitened(how: str, advantages: Tensor, mask: Tensor) -> Tensor:
    """Whiten as a case words it: "none", "mean 0, ddof 1", or anything else with ddof 0 or 1, which shifts no mean."""
    if how.lower() in {"none", "off", "false"}:
        return advantages * mask
    return adv.whiten(advantages, mask, shift_mean="mean 0" in how, ddof=0 if "ddof 0" in how else 1)


_SAME_NAME: tuple[Callable[[Hyper, Fixture], Result], ...] = (
    *(gae, gae_bootstrap, rewards_to_go, reinforce_advantage, reinforce_loss, masked_whiten, ppo_policy, ppo_value),
    *(shaped_reward, ppo_round, missing_eos, grpo_loss, rloo_loss, rloo_advantage, grpo_advantage, dno_pairs),
    *(entropy, kl_full, rso_target, rso_algorithm1, best_of_n, kl_controller),
)
POLICY_METHODS: dict[str, PolicyMethod] = {
    **{method.__name__: method for method in _SAME_NAME},
    "kl_k1": kl(pg.kl_k1),
    "kl_k2": kl(pg.kl_k2),
    "kl_k3": kl(pg.kl_k3),
    "kl_k3_straight_through": kl(pg.kl_k3_straight_through),
    "kl_k1_importance": kl(pg.kl_k1, weighted=True),
    "pair_choice": choice,
}
