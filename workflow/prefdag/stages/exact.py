"""Solve one method over every response of an enumerated world, against the exact optimum.

INPUTS   none: the world follows from the suite's section `exact`
OUTPUTS  points.csv (a line per setting), policies.csv (its probability of every response), frontier.csv
"""

import json
from typing import Any

import numpy as np
import pandas as pd
import torch

from prefdag.config.exact import Exact, Sweep, optimum_of
from prefdag.config.exact_policy import ExactPolicy
from prefdag.config.objectives import Objective
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.theory.expected import converge
from prefdag.theory.online_pairs import iterated
from prefdag.theory.solve import Minimum, minimise, population_of
from prefdag.theory.world import World, divergence

STRONG, WEAK, ON_CURVE = 0.02, 50.0, 120  # betas of the curve's ends, and its points


class Job(Section):
    """The keys of `--config`."""

    exact: Exact
    run: Sweep


def run(job: Job, workspace: Workspace) -> dict[str, Any]:
    """Minimise a loss's population version at every setting of a row."""
    torch.set_num_threads(job.exact.threads)
    torch.use_deterministic_algorithms(True)
    world = World.of(job.exact)
    points, policies = [], []
    for step, loss in enumerate(job.run.objectives):
        minimum = solved(world, job, loss)
        point = measured(world, minimum)
        optimum = optimum_of(job.run, loss)
        points.append({**_about(job.run, loss), **point, "optimum": optimum.sentence, "warning": optimum.warning})
        policies.append(_probabilities(world, minimum, points[-1]))
        workspace.journal.metrics(step, {name: value for name, value in point.items() if np.isfinite(value)})
    for name, table in {
        "points": pd.DataFrame(points),
        "policies": pd.concat(policies),
        "frontier": curve(world),
    }.items():
        table.to_csv(workspace.output / f"{name}.csv", index=False, lineterminator="\n")
    return {"settings": len(points), "responses": len(world.responses)}


def solved(world: World, job: Job, loss: Objective) -> Minimum:
    """Minimise a loss over its population, or follow the expected updates of a method that samples from its policy."""
    if isinstance(loss, ExactPolicy):
        return converge(world, loss)
    if job.run.online:
        return iterated(world, loss, job.run.online, job.run.rounds, moving=True)
    return minimise(world, loss, population_of(world, loss, job.run.flips, job.exact.ranked))


def measured(world: World, minimum: Minimum) -> dict[str, float]:
    """What a policy is worth: its KL, reward, gap to the frontier, and distance to the frontier's policy at its KL.

    spread: the largest range within a prompt of r - beta log(pi / pi_ref), beta being that of the frontier at its KL;
    0 where the implicit reward is the reward up to a function of the prompt.
    """
    log_policy = minimum.log_policy
    kl, reward = world.kl(log_policy), world.value(log_policy)
    beta = world.beta_at(kl)
    off = world.reward - beta * (log_policy - world.log_reference)
    return {
        "kl": kl,
        "reward": reward,
        "gap": world.best_at(kl) - reward,
        "distance": divergence(log_policy, world.optimum(beta)),
        "beta_of_frontier": beta,
        "spread": (off.max(1).values - off.min(1).values).max().item(),
        "loss": minimum.loss,
        "gradient": minimum.gradient,
        "evaluations": minimum.evaluations,
    }


def _about(row: Sweep, loss: Objective) -> dict[str, Any]:
    """Which run and setting: options that the row sweeps are its label."""
    options = [other.parameters() for other in row.objectives]
    swept = [key for key in options[0] if len({str(other[key]) for other in options}) > 1]
    label = ", ".join(f"{key}={loss.parameters()[key]}" for key in swept)
    about = {
        "run": row.name,
        "method": loss.method,
        "family": "online" if row.online else loss.family,
        "setting": label,
        "flips": row.flips,
    }
    return {**about, "objective": json.dumps(loss.parameters(), sort_keys=True)}


def _probabilities(world: World, minimum: Minimum, about: dict[str, Any]) -> pd.DataFrame:
    """Return pi(y | x), pi_ref and the reward, one row per prompt and response."""
    prompts, num = world.reward.shape
    texts = ["".join("abcd"[token] if token < world.words else "." for token in y) for y in world.responses]
    table = {"run": about["run"], "setting": about["setting"], "prompt": np.repeat(np.arange(prompts), num)}
    table |= {"response": texts * prompts}
    parts = {"reward": world.reward, "reference": world.log_reference.exp(), "policy": minimum.log_policy.exp()}
    return pd.DataFrame({**table, **{name: values.flatten().numpy() for name, values in parts.items()}})


def curve(world: World) -> pd.DataFrame:
    """The exact frontier: beta, kl and reward of optimal policies, from the reference to the best responses."""
    betas = np.geomspace(WEAK, STRONG, ON_CURVE)
    optima = [world.optimum(beta) for beta in betas]
    rows = [{"beta": beta, "kl": world.kl(one), "reward": world.value(one)} for beta, one in zip(betas, optima)]
    reference = {"beta": np.inf, "kl": 0.0, "reward": world.value(world.log_reference)}
    return pd.DataFrame([reference, *rows])
