"""What a training method converges to where every response can be enumerated, and when that is not what its name says.

pi*(beta) is pi_ref exp(r / beta) / Z, the optimum of J = E r - beta KL(pi || pi_ref). The statements are those of
`prefdag world`, which reaches each policy by expected updates.
"""

from dataclasses import dataclass

POLICY_GRADIENT = ("reinforce", "rloo", "dr_grpo", "grpo", "ppo")
LEFT_OUT_TERM = "the later tokens' KL is not charged to earlier tokens"
# Pair losses whose minimum on the policy's own samples is finite when labels have no noise, and those that have none
# even when labels are sampled.
FINITE = ("ipo", "rebel", "caldpo", "sppo_hard", "hinge", "cdpo", "exo_pair", "discopop", "nca_pair", "apo_down")
UNBOUNDED = ("rpo", "robust", "orpo", "cpo", "apo_zero")
# Pair losses whose minimum with Bradley-Terry labels is pi* itself.
BRADLEY_TERRY = ("dpo", "wpo", "plackett_luce", "multi_negative", "all_pairs")


@dataclass(frozen=True)
class Optimum:
    """A method's optimum.

    sentence: the policy that it reaches, for tables and the report; warning: empty, or one sentence for the plan that
    says why the setting has no interior optimum or optimises something else than its name says.
    """

    sentence: str
    warning: str = ""

    def with_doubt(self, reason: str) -> "Optimum":
        """Return the optimum of a run that is biased, with the reason in both sentences."""
        warning = f"{self.warning}; {reason}" if self.warning else f"{reason}, so the optimum is another one"
        return Optimum(f"biased, as {reason}; without this {self.sentence}", warning)


def policy_gradient_optimum(
    method: str,
    *,
    coefficient: float = 0.05,
    where: str = "reward",
    estimator: str = "k1",
    samples: int = 1,
    gamma: float = 1.0,
    lam: float | None = None,
    aggregation: str | None = None,
    normalised: bool = False,
) -> Optimum:
    """Return the optimum of a policy-gradient method.

    Args:
        method: One of `POLICY_GRADIENT`.
        coefficient: beta; the first one where a controller adapts it.
        where: The KL is part of the "reward" or a term of the "loss".
        estimator: k1, k2, k3, ratio_k1, ratio_k3, or full (over the vocabulary).
        samples: Responses per prompt, G.
        gamma: Discount per token.
        lam: GAE's lambda, where the method has a critic.
        aggregation: How tokens are averaged, where the method has a choice.
        normalised: Whether scores are divided by their deviation, or advantages whitened.
    """
    if not coefficient:
        return Optimum(
            "none: without a KL term the policy runs to the largest reward, and the number of steps decides",
            "the KL has coefficient 0, so there is no interior optimum and the number of steps decides",
        )
    if where == "loss":
        return _kl_in_loss(method, estimator, samples, aggregation, normalised)
    if estimator != "k1":
        return Optimum(
            f"another policy than pi*: {estimator} in the reward lacks the gradient of its own value",
            f"{estimator} in the reward does not optimise E r - beta KL: only k1's own gradient has mean 0; say k1, "
            f"or put {estimator} in the loss",
        )
    if gamma < 1:
        return Optimum(
            f"the discounted optimum: pi_t ~ pi_ref exp(gamma V / beta), gamma {gamma:g}",
            f"gamma {gamma:g} discounts the score by the length, so the optimum is not pi*",
        )
    if aggregation in {"grpo", "sequence_mean"} and method in {"reinforce", "ppo"}:
        return Optimum(
            "another policy than pi*: shorter responses weigh more",
            "a mean over each response's tokens weighs shorter responses more, so the optimum is not pi*; take a sum "
            "or the mean over all tokens",
        )
    beta = "beta sigma" if normalised and method != "grpo" else "beta"
    critic = "; where lambda is below 1, as far as the critic is exact" if lam is not None and lam < 1 else ""
    decay = "; near it a step does not shrink, so the learning rate must decay to 0" if method == "grpo" else ""
    sigma = ", sigma the deviation that scores are divided by" if beta != "beta" else ""
    return Optimum(f"pi*({beta}){sigma}{critic}{decay}" if sigma else f"pi*{critic}{decay}")


def _kl_in_loss(method: str, estimator: str, samples: int, aggregation: str | None, normalised: bool) -> Optimum:
    """Return the optimum with the KL as a term of the loss."""
    if estimator == "k1":
        return Optimum(
            "none: the expected gradient of k1 in the loss is 0, so the policy runs to the largest reward",
            "k1 in the loss is no penalty: its expected gradient is 0; say `where: reward`, or k2, k3 or ratio_k3",
        )
    if method == "grpo" or normalised:
        return Optimum(
            "an interior policy that is no pi*, or none: the deviation divides the reward and not the KL",
            "the reward is divided by its deviation and the KL is not, so the strength of the KL changes as the policy "
            "does, and it may run to the largest reward; put the KL in the reward",
        )
    beta = "beta"
    if method == "dr_grpo":
        factor = f"{samples / (samples - 1):.4g}" if samples > 1 else "G / (G - 1)"
        beta = f"{factor} beta"
    scaled = f"a group of {samples} has {beta} in effect" if method == "dr_grpo" else ""
    if estimator == "k3":
        sentence, why = (
            f"max E r - {beta} KL(pi_ref || pi), per token",
            "k3 in the loss has the gradient of the forward KL",
        )
    else:
        sentence, why = f"per token pi ~ pi_ref exp(E[r] / ({beta}))", LEFT_OUT_TERM
    length = "; shorter responses weigh more" if aggregation in {"grpo", "sequence_mean"} else ""
    reasons = "; ".join(filter(None, [why, scaled]))
    return Optimum(
        f"{sentence}: {reasons}{length}",
        f"{reasons}{length}, so the optimum is not pi*; put the KL in the reward to have pi*",
    )


def preference_optimum(
    method: str,
    *,
    labels: str = "hard",
    rounds: int = 1,
    reference: str = "sft",
    pairs: str | None = None,
    gold: str | None = None,
) -> Optimum:
    """Return the optimum of a pair loss on pairs that the policy draws.

    Args:
        method: A preference loss of the registry.
        labels: "bradley_terry" (sampled with s(r - r')), "soft" (weighted by it), or "hard" (the larger score).
        rounds: Rounds after which the reference may become the last policy; 1 without rounds.
        reference: "sft", one reference for all rounds; "round", the policy that a round starts from.
        pairs: How a round forms its pairs: max_min, margin, rso or best_of_n; None for independent draws.
        gold: The gold labels, "hard" or "bradley_terry", of a reward model that is trained in every round; None: the
            reward is fixed.
    """
    moving = reference == "round" and rounds > 1
    if pairs == "best_of_n":
        power = f"N^{rounds}" if rounds > 1 else "N"
        return Optimum(f"the best of {power} responses of the reference, whose KL is at most log N - 1 + 1 / N a round")
    if method == "rebel":
        target = f"pi_ref exp({rounds} eta r)" if moving else "pi_ref exp(eta r)"
        return Optimum(f"{target} / Z: it regresses differences of scores, for any sampler")
    if method in UNBOUNDED:
        return Optimum(
            "none: on its own samples the policy runs to the largest reward",
            f"{method} has no interior optimum on the policy's own samples; stop by a held-out score, or take dpo",
        )
    if labels == "hard":
        if method in FINITE:
            return Optimum("a finite policy that is not pi*: labels without noise say the order and not the distance")
        return Optimum(
            "none: with labels without noise the policy drifts to the largest reward, and beta sets the speed alone",
            "hard labels have no interior optimum: the KL grows until training stops; draw labels by `bradley_terry`, "
            "or choose the number of steps by a held-out score",
        )
    if method not in BRADLEY_TERRY:
        return Optimum(f"that of {method} on Bradley-Terry labels, as the exact suite measures it")
    if gold is not None:
        beta = f"beta / {rounds}" if moving else "beta"
        distance = "" if gold == "bradley_terry" else ", and gold labels without noise say the order, not the distance"
        return Optimum(f"pi*({beta}) of the reward model, as far as its training finds the gold reward{distance}")
    if moving:
        return Optimum(f"pi*(beta / {rounds}): each round's reference is the policy before it")
    return Optimum("pi*, for any sampler: every pair's expected gradient is 0 there")
