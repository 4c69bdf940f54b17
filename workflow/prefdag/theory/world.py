"""A world small enough to enumerate: every response to every prompt, its exact reward, and the exact optimum.

X prompts, V words and the end token, responses of at most L tokens: a response ends with the end token or is full. A
policy is a logit row per (prompt, prefix), [X, N, V + 1], and so can be any distribution over the Y responses. All
in float64; values of a policy are means over prompts, in nats.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prefdag.config.exact import Exact

STRONGEST, WEAKEST = 1e-4, 1e9  # betas between which the frontier is searched


@dataclass(frozen=True)
class World:
    """Responses as tuples of tokens, the end token being `words`; reward [X, Y]; reference [X, N, V + 1] logits."""

    words: int
    responses: tuple[tuple[int, ...], ...]
    reward: Tensor
    reference: Tensor

    @classmethod
    def of(cls, settings: Exact) -> "World":
        """Sample a suite's world: rewards and the reference's logits are standard normal numbers of its seed."""
        draw = torch.Generator().manual_seed(settings.seed)
        responses = tuple(enumerated(settings.words, settings.length))
        num_prefixes = len(prefixes(responses))
        reward = torch.randn(settings.prompts, len(responses), generator=draw, dtype=torch.float64)
        reference = torch.randn(settings.prompts, num_prefixes, settings.words + 1, generator=draw, dtype=torch.float64)
        return cls(settings.words, responses, reward, reference)

    @cached_property
    def log_reference(self) -> Tensor:
        """log pi_ref(y | x): [X, Y]."""
        return self.log_policy(self.reference)

    def log_policy(self, logits: Tensor) -> Tensor:
        """Return log pi(y | x) of a policy's logits: [X, Y]."""
        tokens = logits.log_softmax(-1).flatten(1)
        return torch.stack([tokens[:, cells].sum(1) for cells in self._cells], 1)

    @cached_property
    def cells(self) -> list[list[int]]:
        """Return, for every response, its tokens' places in a prompt's flattened [N, V + 1] logits."""
        place = {prefix: index for index, prefix in enumerate(prefixes(self.responses))}
        width = self.words + 1
        return [[place[y[:t]] * width + token for t, token in enumerate(y)] for y in self.responses]

    @cached_property
    def _cells(self) -> list[Tensor]:
        return [torch.tensor(cells) for cells in self.cells]

    @cached_property
    def preferred(self) -> Tensor:
        """p(y > y' | x) = s(r(y) - r(y')), Bradley and Terry: [X, Y, Y]."""
        return torch.sigmoid(self.reward[:, :, None] - self.reward[:, None, :])

    def optimum(self, beta: float) -> Tensor:
        """Return log pi*(y | x) of max E r - beta KL: pi_ref exp(r / beta) / Z (Rafailov et al. 2023, eq. 4)."""
        return (self.log_reference + self.reward / beta).log_softmax(-1)

    def kl(self, log_policy: Tensor) -> float:
        """Return KL(pi || pi_ref)."""
        return divergence(log_policy, self.log_reference)

    def value(self, log_policy: Tensor) -> float:
        """Return E r under the policy."""
        return (log_policy.exp() * self.reward).sum(1).mean().item()

    def beta_at(self, kl: float) -> float:
        """Return the beta whose optimum is `kl` nats from the reference, by bisection; the KL falls as beta rises."""
        low, high = math.log(STRONGEST), math.log(WEAKEST)
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.kl(self.optimum(math.exp(middle))) > kl else (low, middle)
        return math.exp((low + high) / 2)

    def best_at(self, kl: float) -> float:
        """Return the largest reward of any policy within `kl` nats of the reference: the frontier."""
        return self.value(self.optimum(self.beta_at(kl)))


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Return KL(p || q) of [X, Y] log-probs; a response of probability 0 adds 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1).mean().item()


def enumerated(words: int, length: int) -> list[tuple[int, ...]]:
    """Return every response: each sequence of fewer than `length` words closed by the end token, and each full one."""
    ended = [(*y, words) for size in range(length) for y in itertools.product(range(words), repeat=size)]
    return [*ended, *itertools.product(range(words), repeat=length)]


def prefixes(responses: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Return every prefix of a response once, shortest first."""
    return sorted({y[:t] for y in responses for t in range(len(y))}, key=lambda prefix: (len(prefix), prefix))
