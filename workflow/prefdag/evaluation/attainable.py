"""The largest reward that any policy attains at a KL divergence to SFT, estimated from a pool of SFT's samples.

Of all policies whose mean KL over prompts is at most k, the best is pi_SFT exp(r / beta) / Z with one beta for all
prompts (Rafailov et al. 2023, eq. 4). From n samples of a prompt it has the weights w proportional to exp(r / beta),
self-normalised: expected reward sum w r, KL sum w log(n w), effective sample size 1 / sum w^2.

The estimate is the exact frontier of the pool's empirical distribution, min over beta of beta k + beta mean log Z with
Z the mean of exp(r / beta) over the pool. log and the minimum are concave, so by Jensen's inequality its expectation is
never above the true frontier and rises with n: what is attainable is understated on average, and a share of it
overstated. To first order the bias is -beta / 2 (mean sum w^2 - 1 / n). No KL above log n can be seen.

Shapes: G prompts, n samples, B betas, D draws of prompts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefdag.seeds import generator

Values = NDArray[np.float64]
LEAST_SAMPLES = 10.0  # effective samples per prompt, below which the curve is not trusted: a bias of beta / 20
BETAS = 240


@dataclass(frozen=True)
class Frontier:
    """The frontier of a pool, from SFT (beta infinite) on.

    Attributes:
        betas: Falling, the first infinite [B].
        reward, kl, crowding: Expected reward, KL and sum of squared weights of each prompt [G, B].
    """

    betas: Values
    reward: Values
    kl: Values
    crowding: Values

    @property
    def effective_samples(self) -> Values:
        """The harmonic mean over prompts of the effective sample size [B]; the bias is a mean of its inverse."""
        return 1 / self.crowding.mean(axis=0)

    @property
    def bias(self) -> Values:
        """The bias of the reward at each beta's KL, to first order: 0 or below [B]."""
        betas = np.where(np.isfinite(self.betas), self.betas, 0.0)
        return -betas / 2 * (self.crowding - self.crowding[:, :1]).mean(axis=0)

    @property
    def trusted_kl(self) -> float:
        """The mean KL up to which `LEAST_SAMPLES` samples of a prompt count; 0 for a smaller pool."""
        enough = self.effective_samples >= LEAST_SAMPLES
        return float(self.kl[:, enough].mean(axis=0).max(initial=0.0))

    def gain_at(self, kl: Values, weights: Values) -> Values:
        """Return the largest gain in reward over SFT at a mean KL, for each draw of prompts [D].

        Args:
            kl: KL in nats [D]; beyond the pool's own largest, the gain there.
            weights: Weights of the prompts, each row with sum 1 [D, G].
        """
        gains = weights @ (self.reward - self.reward[:, :1])
        roots = np.sqrt(weights @ self.kl)  # the gain is nearly linear in the root of KL
        rows = zip(np.sqrt(np.maximum(kl, 0.0)), roots, gains, strict=True)
        return np.array([np.interp(*row) for row in rows])


def frontier(rewards: Values) -> Frontier:
    """Return the frontier of a pool of rewards [G, n]."""
    n = rewards.shape[1]
    spread = np.sqrt(rewards.var(axis=1).mean()) or 1.0
    betas = np.concatenate([[np.inf], spread * np.geomspace(1e3, 1e-3, BETAS)])
    columns = []
    for beta in betas:
        weights = np.exp((rewards - rewards.max(axis=1, keepdims=True)) / beta)
        weights /= weights.sum(axis=1, keepdims=True)
        logs = np.log(n * weights, out=np.zeros_like(weights), where=weights > 0)
        columns.append([(weights * rewards).sum(axis=1), (weights * logs).sum(axis=1), (weights**2).sum(axis=1)])
    reward, kl, crowding = np.transpose(columns, (1, 2, 0))
    return Frontier(betas, reward, np.maximum(kl, 0.0), crowding)  # rounding makes a KL of 0 about -1e-16


def prompt_weights(num_prompts: int, bootstrap: int, seed: str) -> Values:
    """Return the weights of the prompts: equal ones, then those of each bootstrap resample [1 + bootstrap, G]."""
    draws = generator(0, "bootstrap", seed).multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), bootstrap)
    return np.vstack([np.ones(num_prompts), draws]) / num_prompts


def interval(values: Values) -> tuple[float, float, float]:
    """Return a value and its 95% percentile interval, from the value and those of the resamples."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return float(values[0]), float(low), float(high)


def share_of_attainable(pool: Frontier, gain: Values, kl: Values, weights: Values) -> Values:
    """Return the attainable gain at a policy's KL, and the share of it that the policy reaches [2, D].

    Args:
        pool: The frontier of the same prompts.
        gain, kl: The policy's mean reward less SFT's, and its KL to SFT, of each prompt [G].
        weights: Of the prompts [D, G]; a policy and the frontier are resampled together.
    """
    attainable = pool.gain_at(weights @ kl, weights)
    reached = weights @ gain
    share = np.divide(reached, attainable, out=np.full(len(weights), np.nan), where=attainable > 0)
    return np.stack([attainable, share])
