"""Which comparisons each optimizer step takes: a seeded order of single comparisons, or of whole prompts."""

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from prefdag.config.sections.training import Training
from prefdag.data.token_store import Comparisons
from prefdag.errors import UserError
from prefdag.models.packing import step_members
from prefdag.seeds import generator

StepOrder = Callable[[int], NDArray[np.int64]]


def step_order(store: Comparisons, settings: Training) -> StepOrder:
    """Return a function of a step's number (from 0) that returns its comparisons."""
    if settings.group is None:
        return lambda step: step_members(step, len(store), settings.batch_size, settings.seed)
    return whole_prompts(np.asarray(store.prompts), settings.batch_size, settings.seed)


def whole_prompts(prompts: NDArray[np.int64], batch_size: int, seed: int) -> StepOrder:
    """Return the order of `group: prompt`: a step takes all comparisons of its prompts.

    An epoch of N comparisons has as many steps S as without groups. Its prompts are shuffled and laid end to end; step
    s takes those whose first comparison is at s N / S or later, and before (s + 1) N / S. So every comparison occurs
    once in an epoch, no step is empty, and a step's size differs from N / S by less than the largest prompt's.

    Args:
        prompts: equal for equal prompts, [N].
        batch_size: N / S is at most this.
        seed: of the order; each epoch has its own.

    Raises:
        UserError: if a prompt has more comparisons than a step.
    """
    _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    num = len(prompts)
    per_epoch = math.ceil(num / batch_size)
    if num and sizes.max() > num // per_epoch:
        raise UserError(
            f"group: a prompt has {sizes.max()} comparisons and a step {num // per_epoch}; raise batch_size to "
            f"{2 * sizes.max()} or more, or remove `group: prompt`"
        )

    @functools.lru_cache(maxsize=2)
    def epoch_order(epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shuffled = generator(seed, "order of prompts", epoch).permutation(len(sizes))
        place = np.empty(len(sizes), dtype=np.int64)
        place[shuffled] = np.arange(len(sizes))
        starts = np.concatenate([[0], np.cumsum(sizes[shuffled])])
        return np.argsort(place[group], kind="stable"), starts

    def members(step: int) -> NDArray[np.int64]:
        epoch, number = divmod(step, per_epoch)
        order, starts = epoch_order(epoch)
        cuts = [-(-at * num // per_epoch) for at in (number, number + 1)]  # rounded up
        begin, end = starts[np.searchsorted(starts, cuts)]
        return order[begin:end]

    return members
