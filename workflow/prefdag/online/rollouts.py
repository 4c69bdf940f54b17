"""Sample a round's responses, and hold what is measured of them.

A response's noise is named by (seed, round, prompt, sample), so neither the batch size nor the number of processes nor
an interruption changes which noise it gets. The prompts of a round are a function of (seed, number of prompts, round).

Shapes: N prompts of G responses; T response tokens of the whole round, ordered by prompt, response and place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefdag.config.online.settings import Online
from prefdag.config.sections.sampling import Sampling
from prefdag.data.token_store import Comparison
from prefdag.distributed.collectives import all_gather_objects
from prefdag.distributed.ranks import is_first, num_ranks, rank
from prefdag.models.generation import Sample
from prefdag.online.sampler import Sampler
from prefdag.seeds import generator


@dataclass(frozen=True)
class Rollouts:
    """The responses of one round.

    Attributes:
        prompts: index of each prompt, [N].
        ids: token ids of every response, [T].
        lengths: tokens of each response, [N, G].
        ended: whether each response has its end-of-turn, [N, G].
        sampled: log-probs of the tokens under the distribution they were sampled from, by the sampler, [T] float64.
        scores: of each response, [N, G] float64; None until it is scored.
        labels: of pairs: how much the first response is preferred, 0 to 1, [N].
        old, reference: log-probs of the tokens under the sampling policy and the reference, [T].
        values: of the value head before each token, [T].
        last_values: of the value head behind each response, [N, G].
        entropy: of the policy before each token, [T]. kl: its divergence from the reference there, [T].
    """

    prompts: Tensor
    ids: Tensor
    lengths: Tensor
    ended: Tensor
    sampled: Tensor
    scores: Tensor | None = None
    labels: Tensor | None = None
    old: Tensor | None = None
    reference: Tensor | None = None
    values: Tensor | None = None
    last_values: Tensor | None = None
    entropy: Tensor | None = None
    kl: Tensor | None = None

    @classmethod
    def of_samples(cls, prompts: Sequence[int], samples: Sequence[Sample], per_prompt: int) -> Self:
        """Collect samples, which are ordered by prompt and number."""
        shape = len(prompts), per_prompt
        return cls(
            torch.tensor(list(prompts)),
            torch.tensor([token for one in samples for token in one.ids]),
            torch.tensor([len(one.ids) for one in samples]).view(shape),
            torch.tensor([one.ended for one in samples]).view(shape),
            torch.tensor([value for one in samples for value in one.logprobs], dtype=torch.float64),
        )

    @property
    def starts(self) -> Tensor:
        """Return where each prompt's tokens start, and the end: [N + 1]."""
        return torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.sum(1).cumsum(0)])

    def tokens_of(self, rows: Sequence[int]) -> Tensor:
        """Return the indices of the tokens of some prompts of the round, in the order of `rows`."""
        starts = self.starts.tolist()
        return torch.cat([torch.arange(starts[row], starts[row + 1]) for row in rows])

    def responses(self) -> list[list[list[int]]]:
        """Return the token ids of every response, by prompt."""
        parts = [part.tolist() for part in self.ids.split(self.lengths.flatten().tolist())]
        group = self.lengths.shape[1]
        return [parts[at : at + group] for at in range(0, len(parts), group)]

    def comparisons(self, prompts: Sequence[NDArray[np.int32]]) -> list[Comparison]:
        """Return each prompt with its responses. prompts: token ids of every prompt of the training."""
        return [
            Comparison(prompts[index], tuple(np.array(ids, dtype=np.int32) for ids in group))
            for index, group in zip(self.prompts.tolist(), self.responses(), strict=True)
        ]

    def with_values(self, **values: Any) -> Self:
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return what a state file holds."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def prompts_of_round(number: int, num_prompts: int, batch_size: int, seed: int) -> list[int]:
    """Return the prompts of a round (from 0): the next slice of a permutation, a new one for every pass."""
    passes, place = divmod(number, num_prompts // batch_size)
    order = generator(seed, "prompts", passes).permutation(num_prompts)
    return [int(index) for index in order[place * batch_size : (place + 1) * batch_size]]


def sample_round(
    sampler: Sampler,
    prompts: Sequence[NDArray[np.int32]],
    number: int,
    settings: Online,
    temperature: float | None = None,
) -> Rollouts:
    """Sample a round's responses, shared out over the processes by whole batches if the sampler permits.

    Args:
        sampler: of the policy.
        prompts: token ids of every prompt of the training.
        number: the round, from 0.
        settings: how many, and how.
        temperature: in place of the settings'; 0 gives the greedy answer, one per prompt.
    """
    chosen = prompts_of_round(number, len(prompts), settings.batch_size, settings.seed)
    samples = 1 if temperature == 0 else settings.samples
    sampling = Sampling(
        seed=settings.seed,
        num_samples=samples,
        temperature=settings.temperature if temperature is None else temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.sampling_batch_size,
    )
    # A batch has the same members for any number of processes: its members change the low bits of the logits.
    places = sorted(range(len(chosen)), key=lambda place: (len(prompts[chosen[place]]), place))
    size = max(1, settings.sampling_batch_size // samples)
    batches = [places[at : at + size] for at in range(0, len(places), size)]
    result: dict[tuple[int, int], Sample] = {}
    share = batches[rank() :: num_ranks()]
    if not sampler.shares:
        share = [places] if is_first() else []
    for batch in share:
        ids = [prompts[chosen[place]].tolist() for place in batch]
        keys = [f"round {number}/{chosen[place]}" for place in batch]
        for one in sampler(ids, keys, sampling, f"round {number + 1}"):
            result[batch[one.prompt], one.sample] = one
    for part in all_gather_objects(result):
        result.update(part)
    return Rollouts.of_samples(chosen, [result[key] for key in sorted(result)], samples)
