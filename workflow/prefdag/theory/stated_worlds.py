"""Worlds that a file states, and the policy that every on-policy method reaches in each, and what theory gives."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefdag.config.exact_policy import ExactPolicy
from prefdag.config.objectives import objective
from prefdag.config.optimum import Optimum
from prefdag.config.optimum import preference_optimum as words
from prefdag.errors import UserError
from prefdag.evaluation.sampling_laws import rejection
from prefdag.schema import read_json
from prefdag.theory.expected import converge
from prefdag.theory.online_pairs import distilled_best_of_n, iterated, online
from prefdag.theory.predictions import Choice, backward, expected, forward_kl, soft, tilted
from prefdag.theory.solve import Minimum
from prefdag.theory.world import World, prefixes

DISCOUNTS = (0.7, 0.8, 0.9, 0.95, 0.99)
ROUNDS = (2, 3, 4)


@dataclass(frozen=True)
class StatedWorld:
    """A world of one prompt with its beta and group size; `states` maps the file's order to ours."""

    world: World
    beta: float
    samples: int
    states: list[int]

    def plain(self, log_tokens: Tensor) -> Any:
        """Return probabilities as the file states them: of responses of one token, or of tokens by state."""
        rows = log_tokens[0].exp()[self.states].tolist()
        return rows[0] if len(rows) == 1 else rows


def read_worlds(path: Path) -> dict[str, StatedWorld]:
    """Read a file of worlds. Raises `UserError` for any other file."""
    values = read_json(path)
    sections = {name: section for name, section in values.items() if isinstance(section, dict) and "reward" in section}
    if not sections:
        raise UserError(f"{path}: no world in it; a world has `reward`, `beta`, and `pi_ref` or `ref` and `sequences`")
    worlds = {}
    for name, section in sections.items():
        try:
            worlds[name] = _bandit(section) if "pi_ref" in section else _tokens(section)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
            raise UserError(f"{path}: {name}: malformed: {' '.join(str(error).split())}") from None
    return worlds


def _bandit(section: dict[str, Any]) -> StatedWorld:
    """One token a response."""
    reward, reference = _numbers(section["reward"]), _numbers(section["pi_ref"])
    if reward.shape != reference.shape:
        raise ValueError(f"{len(reward)} rewards of {len(reference)} responses")
    responses = tuple((token,) for token in range(len(reward)))
    world = World(len(reward) - 1, responses, reward[None], reference.log()[None, None])
    return StatedWorld(world, section["beta"], section.get("G", 3), [0])


def _tokens(section: dict[str, Any]) -> StatedWorld:
    """Responses of several tokens; a state is named by its tokens, `(a)`."""
    alphabet = section["alphabet"]
    responses = tuple(tuple(sequence) for sequence in section["sequences"])
    names = ["".join(alphabet[token] for token in state) for state in prefixes(responses)]
    stated = [re.sub(r"[^\w]", "", name) for name in section["states"]]
    order = [stated.index(name) for name in names]
    reference = _numbers(section["ref"])[order].log()
    world = World(len(alphabet) - 1, responses, _numbers(section["reward"])[None], reference[None])
    return StatedWorld(world, section["beta"], section.get("G", 3), [names.index(name) for name in stated])


def _numbers(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Reached:
    """A method's policy by expected updates, theory's where it has a closed form, and its name in words.

    Policies are log-probs [1, N, V + 1].
    """

    log_policy: Tensor
    theory: Tensor | None
    optimum: Optimum
    interior: bool = True


def policies(stated: StatedWorld) -> dict[str, Reached]:
    """Return every method's policy, by the names that files of worlds use."""
    world, beta, several = stated.world, stated.beta, len(stated.states) > 1
    group = beta * stated.samples / (stated.samples - 1)
    optimum = backward(world, tilted(beta), soft(beta))
    result = {"optimum": Reached(optimum, optimum, Optimum("pi*"))}

    def add(name: str, theory: Tensor | None, **row: Any) -> None:
        setting = ExactPolicy.model_validate({"beta": beta, **row})
        result[name] = _reached(converge(world, setting), theory, setting.optimum)

    sampled: dict[str, Any] = {"samples": stated.samples}
    for method in ("rloo", "dr_grpo", "grpo"):
        add(f"{method.replace('_', '')}_kl_in_reward", optimum, method=method, **sampled)
    add("reinforce_kl_in_reward", optimum, method="reinforce")
    add("ppo_gae_exact_values", optimum, method="ppo")
    add("ppo_wrong_values_lambda_1", optimum, method="ppo", lam=1.0, critic_error=0.7)
    add("ppo_wrong_values_lambda_05", None, method="ppo", lam=0.5, critic_error=0.7)
    for discount in DISCOUNTS:
        theory = backward(world, tilted(beta), soft(beta), discount)
        add(f"reinforce_gamma_{str(discount).replace('.', '')}", theory, method="reinforce", gamma=discount)
    in_loss = {"where": "loss", **sampled}
    estimators: dict[str, Callable[[float], Choice]] = {
        **dict.fromkeys(("k2", "ratio_k3", "ratio_k1", "full"), tilted), "k3": forward_kl,
    }  # fmt: skip
    for estimator, choice in estimators.items():
        add(f"rloo_{estimator}_in_loss", backward(world, choice(beta), expected), method="rloo",
            estimator=estimator, **in_loss)  # fmt: skip
        add(f"drgrpo_{estimator}_in_loss", backward(world, choice(group), expected), method="dr_grpo",
            estimator=estimator, **in_loss)  # fmt: skip
        add(f"grpo_{estimator}_in_loss", None, method="grpo", estimator=estimator, **in_loss)
    add("rloo_k1_in_loss", None, method="rloo", estimator="k1", **in_loss)
    if several:
        result |= {f"per_token_{name}_in_loss": result[f"rloo_{name}_in_loss"] for name in estimators}
    return result | _of_pairs(stated, optimum)


def _of_pairs(stated: StatedWorld, optimum: Tensor) -> dict[str, Reached]:
    """Return the policies of online preference methods, and of laws of selected samples."""
    world, beta = stated.world, stated.beta
    dpo = objective({"method": "dpo", "beta": beta}, "world", "dpo")
    ipo = objective({"method": "ipo", "beta": beta, "logprob": "summed"}, "world", "ipo")
    rebel = objective({"method": "rebel", "eta": 1 / beta}, "world", "rebel")
    result = {
        "online_dpo_bt_labels": _reached(
            online(world, dpo, "bradley_terry"), optimum, words("dpo", labels="bradley_terry")
        ),
        "online_dpo_hard_labels": _reached(online(world, dpo, "hard"), None, words("dpo")),
        "online_ipo_hard_labels": _reached(online(world, ipo, "hard"), None, words("ipo")),
        "iterative_rebel_raw_reward_1_rounds": _reached(
            iterated(world, rebel, "bradley_terry", 1, True), optimum, words("rebel")
        ),
    }
    for rounds in ROUNDS:
        moved = backward(world, tilted(beta / rounds), soft(beta / rounds))
        for name, method in (("iterative_dpo_moving_ref", dpo), ("iterative_rebel_raw_reward", rebel)):
            minimum = iterated(world, method, "bradley_terry", rounds, moving=True)
            about = words(method.method, labels="bradley_terry", rounds=rounds, reference="round")
            result[f"{name}_{rounds}_rounds"] = _reached(minimum, moved, about)
    law = rejection(world.log_reference[0].exp(), world.reward[0], beta).law.log()[None]
    result["rso_law"] = Reached(conditioned(world, law), optimum, Optimum("pi*: accepted samples have this law"))
    for n in (2, 4):
        result[f"best_of_{n}"] = Reached(
            conditioned(world, distilled_best_of_n(world, n)), None, words("preferred_ft", pairs="best_of_n")
        )
    return result


def _reached(minimum: Minimum, theory: Tensor | None, optimum: Optimum) -> Reached:
    return Reached(minimum.logits.log_softmax(-1), theory, optimum, math.isfinite(minimum.gradient))


def conditioned(world: World, log_law: Tensor) -> Tensor:
    """Return the token policy [X, N, V + 1] of a law of responses [X, Y]."""
    sums = torch.zeros_like(world.reference).flatten(1)
    for response, cells in enumerate(world.cells):
        sums[:, cells] += log_law[:, response, None].exp()
    sums = sums.view_as(world.reference)
    return (sums / sums.sum(-1, keepdim=True)).log()


def summary(stated: StatedWorld) -> dict[str, Any]:
    """Return, as JSON: the policy of every method, its distance to theory, and what has no interior optimum."""
    world, reached = stated.world, policies(stated)
    optimum = world.log_policy(reached["optimum"].log_policy)
    deviations = {
        name: (one.log_policy.exp() - one.theory.exp()).abs().max().item()
        for name, one in reached.items()
        if one.theory is not None
    }
    distances = {name: _kl(world.log_policy(one.log_policy), optimum) for name, one in reached.items()}
    result = {
        "beta": stated.beta,
        "G": stated.samples,
        "sequence_optimum": optimum[0].exp().tolist(),
        "converges_to": {name: stated.plain(one.log_policy) for name, one in reached.items()},
        "max_abs_dev_from_theory": deviations,
        "kl_to_optimum": distances,
        "optimum_in_words": {name: one.optimum.sentence for name, one in reached.items()},
        "no_interior_optimum": [name for name, one in reached.items() if not one.interior],
    }
    if len(stated.states) > 1:
        result["value_at_optimum"] = _values(stated, reached["optimum"].log_policy)
    return result


def _kl(log_p: Tensor, log_q: Tensor) -> float:
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum().item()


def _values(stated: StatedWorld, log_policy: Tensor) -> dict[str, float]:
    """Return E[r - beta log pi / pi_ref] behind every prefix under the policy."""
    world = stated.world
    chance = world.log_policy(log_policy)[0].exp()
    ratio = (log_policy - world.reference.log_softmax(-1)).flatten(1)[0]
    result = {}
    for state in prefixes(world.responses):
        members = [y for y, response in enumerate(world.responses) if response[: len(state)] == state]
        weights = chance[members] / chance[members].sum()
        rest = torch.stack([ratio[world.cells[y][len(state) :]].sum() for y in members])
        result[str(state)] = (weights @ (world.reward[0, members] - stated.beta * rest)).item()
    return result
