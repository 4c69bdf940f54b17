"""The registry of policy-gradient methods, and presets of rows.

A method states the optimum that it has in a world where every response can be enumerated: pi* is
pi_ref exp(r / beta) / Z, with beta the KL's coefficient.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from prefdag.config.objectives import Objective, objective
from prefdag.config.online.settings import JUDGE, TRUNCATION_BIAS, Online
from prefdag.config.optimum import Optimum, policy_gradient_optimum, preference_optimum
from prefdag.config.sections.adapter import over_section
from prefdag.errors import Mistakes
from prefdag.schema import NonNegative, Positive, wording

PRESETS: dict[str, dict[str, Any]] = {
    "dpo-paper": {"method": "ppo", "kl": {"target": 6.0}, "clip": 0.2, "value_coefficient": 0.1, "epochs": 4},
    "dpo-paper-tuned": {
        "method": "ppo", "kl": {"target": 6.0}, "value_coefficient": 0.1, "epochs": 4, "normalise_rewards": "standard",
    },
    "nplus": {
        "method": "ppo", "kl": 0.05, "temperature": 0.7, "max_new_tokens": 53, "epochs": 4, "learning_rate": 3e-6,
        "schedule": "linear", "value_coefficient": 0.1, "value_from": "reward", "whiten": "population",
        "score_at": "after_eos", "missing_eos": {"penalty": 1.0, "how": "replace"}, "reward": "trained",
    },
    "trl-grpo": {
        "method": "grpo", "kl": {"coefficient": 0.0, "where": "loss", "estimator": "ratio_k3"}, "samples": 8,
        "aggregation": "dapo", "epsilon": 1e-4, "learning_rate": 1e-6,
    },
}  # fmt: skip


NO_DATASET = "an on-policy row takes no dataset, it is trained on its own answers; leave it out"
Clip = Annotated[float, Field(gt=0, description="the ratio to the sampling policy is clipped to 1 -+ clip")]


class PolicyMethod(Objective):
    """A policy-gradient method.

    Attributes:
        optimum: what the method converges to in an enumerable world, as a sentence.
        default_samples: responses per prompt.
        least_samples: the fewest that its advantages are defined for.
    """

    family = "policy"
    optimum: ClassVar[str] = ""
    default_samples: ClassVar[int] = 1
    least_samples: ClassVar[int] = 1

    entropy: NonNegative = Field(0.0, description="coefficient of the entropy bonus")


class TokenMethod(PolicyMethod):
    """A method whose rewards and advantages are of tokens."""

    gamma: float = Field(1.0, gt=0, le=1, description="discount per token; below 1 the optimum is another one")
    score_at: Literal["eos", "after_eos"] = Field(
        "eos", description="token that gets the score: the last one, or the position behind it (TRL's PPO)"
    )
    whiten: Literal["off", "sample", "population"] = Field(
        "off", description="standardise advantages over the round, with the variance over n - 1 or n"
    )
    value: Literal["own", "shared"] = Field("own", description="the value head's trunk: its own, or the policy's")
    value_from: Literal["policy", "reward"] = Field("policy", description="what an own trunk, and the head, start from")
    value_coefficient: NonNegative = 0.1
    value_clip: Positive | None = Field(0.2, description="clip values around the former ones; null: never")
    value_learning_rate: Positive | None = Field(None, description="default: the policy's")


class PPO(TokenMethod):
    """Proximal policy optimization with generalised advantage estimation and a value head."""

    title = "PPO"
    paper = "Schulman et al. 2017, arXiv 1707.06347, eq. 7; Ziegler et al. 2019, arXiv 1909.08593"
    formula = "max(-A rho, -A clip(rho, 1-c, 1+c))"
    optimum = "pi* with an exact value head or lambda 1; a wrong value head with lambda below 1 shifts it"
    method: Literal["ppo"]
    clip: Clip = 0.2
    lam: float = Field(0.95, ge=0, le=1, description="lambda of GAE")


class Reinforce(TokenMethod):
    """REINFORCE with rewards-to-go."""

    title = "REINFORCE"
    paper = "Williams 1992; Sutton et al. 1999"
    formula = "-(R - b) log pi"
    optimum = "pi* for any baseline; a gamma below 1 has a discounted optimum instead"
    read_with: ClassVar[dict[str, tuple[str, str]]] = {
        **dict.fromkeys(("value", "value_from", "value_coefficient", "value_clip"), ("baseline", "learned")),
        "value_learning_rate": ("baseline", "learned"),
        "constant": ("baseline", "constant"),
    }
    method: Literal["reinforce"]
    baseline: Literal["none", "constant", "learned", "greedy"] = Field(
        "none", description="subtracted from rewards-to-go: a number, a value head, the reward of the greedy answer"
    )
    constant: float = 0.0


class RLOO(PolicyMethod):
    """REINFORCE with the mean of the prompt's other responses as the baseline."""

    title = "RLOO"
    paper = "Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740"
    formula = "A_i = r_i - mean of r_j, j != i"
    optimum = "pi*: a response is not part of its own baseline, so the gradient is unbiased"
    default_samples, least_samples = 4, 2
    method: Literal["rloo"]
    clip: Clip = 0.2


class DrGRPO(PolicyMethod):
    """GRPO without division by the deviation and the length."""

    title = "Dr. GRPO"
    paper = "Liu et al. 2025, arXiv 2503.20783"
    formula = "A_i = r_i - mean(r)"
    optimum = "pi* with the KL in the reward; in the loss that of beta G / (G - 1) with G samples"
    default_samples, least_samples = 8, 2
    method: Literal["dr_grpo"]
    clip: Clip = 0.2


class GRPO(PolicyMethod):
    """Group relative policy optimization: advantages standardised within a prompt's responses."""

    title = "GRPO"
    paper = "Shao et al. 2024, arXiv 2402.03300"
    formula = "A_i = (r_i - mean(r)) / (std(r) + eps)"
    optimum = "pi* with the KL in the reward and a decaying learning rate; another policy with the KL in the loss"
    default_samples, least_samples = 8, 2
    method: Literal["grpo"]
    clip: Clip = 0.2
    epsilon: Positive = Field(1e-4, description="added to the deviation")
    aggregation: Literal["grpo", "dapo", "bnpo"] = Field(
        "grpo", description="mean of responses' token means, or of the step's tokens"
    )


METHODS: dict[str, type[PolicyMethod]] = {
    "reinforce": Reinforce, "rloo": RLOO, "grpo": GRPO, "dr_grpo": DrGRPO, "ppo": PPO,
}  # fmt: skip


def reads_values(method: TokenMethod) -> bool:
    """Return whether a method trains a value head."""
    return isinstance(method, PPO) or (isinstance(method, Reinforce) and method.baseline == "learned")


def optimum_of(method: Objective, settings: Online) -> Optimum:
    """Return what an on-policy run converges to where every response can be enumerated."""
    optimum = _optimum_of(method, settings)
    return optimum.with_doubt(TRUNCATION_BIAS) if settings.truncates else optimum


def _optimum_of(method: Objective, settings: Online) -> Optimum:
    """Return the optimum with nothing left out of the sampling."""
    if settings.labels is not None:
        return preference_optimum(method.method, labels=settings.labels)
    return policy_gradient_optimum(
        method.method,
        coefficient=settings.kl.coefficient,
        where=settings.kl.where,
        estimator=settings.kl.estimator,
        samples=settings.samples,
        gamma=getattr(method, "gamma", 1.0),
        lam=getattr(method, "lam", None),
        aggregation=getattr(method, "aggregation", None),
        normalised=settings.normalise_rewards != "off" or getattr(method, "whiten", "off") != "off",
    )


def row_objective(values: dict[str, Any], where: str, inside: str) -> Objective:
    """Validate the objective of a run: a policy-gradient method or a preference loss."""
    check = policy_method if values.get("method") in METHODS else objective
    return check(values, where, inside)


def policy_method(values: dict[str, Any], where: str, inside: str) -> PolicyMethod:
    """Validate the method of an on-policy row. Raises `UserError` for an option that the method does not read."""
    entry = METHODS[values["method"]]
    options = [name for name in entry.model_fields if name != "method"]
    known, mistakes = (*options, *Online.model_fields), Mistakes()
    for key in values:
        if key == "dataset":
            mistakes.add(f"{where}: {inside}.{key}: {NO_DATASET}")
        elif key not in entry.model_fields:
            unread = (
                f"{values['method']} does not read {key}; its options are {', '.join(options)}, and keys of `online`"
            )
            mistakes.add(f"{where}: {inside}.{key}: {'; '.join([unread, *wording().hints(key, known)])}")
    stated = {key: value for key, value in values.items() if key in entry.model_fields}
    method: PolicyMethod = mistakes.attempt(entry.parse, stated, where, inside)
    mistakes.check()
    return method


def pair_loss(values: dict[str, Any], where: str, inside: str) -> Objective:
    """Validate the loss of a row with `online`. Raises `UserError` for one that two responses do not suffice for."""
    mistakes = Mistakes()
    if "dataset" in values:
        mistakes.add(f"{where}: {inside}.dataset: {NO_DATASET}")
    stated = {key: value for key, value in values.items() if key != "dataset"}
    loss: Objective | None = mistakes.attempt(objective, stated, where, inside)
    if loss and not loss.of_pairs_alone:
        mistakes.add(
            f"{where}: {inside}.method: {loss.method} needs more than the log-probs of two responses to a prompt, so "
            "it cannot be trained online; take dpo, ipo or another pair loss"
        )
    mistakes.check()
    assert loss is not None
    return loss


def pair_settings(values: dict[str, Any], shared: dict[str, Any], where: str, inside: str) -> Online:
    """Validate the settings of a pair loss on sampled pairs.

    Args:
        values: what the row states.
        shared: the section `online`, whose KL and number of samples such a loss does not read.
        where: the suite's file, for messages.
        inside: the row's place in it, for messages.
    """
    unread, mistakes = ("kl", "samples", "missing_eos", "normalise_rewards"), Mistakes()
    for key in unread:
        if key in values:
            mistakes.add(f"{where}: {inside}.{key}: a pair loss does not read it; its KL is in the loss, by beta")
    below = {key: value for key, value in shared.items() if key not in unread}
    judged = str({**below, **values}.get("reward")).startswith(JUDGE)
    chosen = {"labels": "hard" if judged else "bradley_terry", **over_section(below, values), "samples": 2, "kl": 0}
    settings: Online | None = mistakes.attempt(Online.parse, chosen, where, inside)
    if settings and settings.judge and settings.labels != "hard":
        mistakes.add(f"{where}: {inside}.labels: a judge's verdicts are labels themselves; leave {settings.labels} out")
    mistakes.check()
    assert settings is not None
    return settings


def settings_of(values: dict[str, Any], method: PolicyMethod, where: str, inside: str) -> Online:
    """Validate a row's settings, with the method's number of samples where none is stated."""
    settings = Online.parse({"samples": method.default_samples, **values}, where, inside)
    mistakes = Mistakes()
    if settings.judge:
        mistakes.add(
            f"{where}: {inside}.reward: a judge compares two responses, and {method.method} reads a score of each; "
            "take a pair loss with `online:`, such as dpo"
        )
    if settings.labels is not None:
        mistakes.add(f"{where}: {inside}.labels: only a pair loss, such as dpo, reads labels; leave it out")
    if settings.samples < method.least_samples:
        mistakes.add(f"{where}: {inside}.samples: {method.method} compares a prompt's responses; state 2 or more")
    if isinstance(method, Reinforce) and settings.epochs * settings.minibatches > 1:
        key = "epochs" if settings.epochs > 1 else "minibatches"
        mistakes.add(
            f"{where}: {inside}.{key}: reinforce has no ratio to the sampling policy, so it takes one update per "
            "round; leave epochs and minibatches at 1, or take ppo"
        )
    if settings.minibatches > settings.batch_size:
        mistakes.add(
            f"{where}: {inside}.minibatches: a round has {settings.batch_size} prompts to share out; state fewer"
        )
    mistakes.check()
    return settings
