"""Label a round's pairs by a model judge, as training goes."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from prefdag.config.online.settings import Online
from prefdag.config.sections.judge import LLM, name_of
from prefdag.errors import UserError
from prefdag.evaluation.judge.run import FOLDER, Pair
from prefdag.evaluation.judge.samples import judge_pairs
from prefdag.runtime.stage import Workspace

TIE = 0.5


def judge_comparison(
    judge: LLM, settings: Online, workspace: Workspace
) -> Callable[[list[str], list[str]], NDArray[np.float64]]:
    """Return a function of prompts and responses, two of each prompt, that says how far a judge prefers each.

    The two numbers of a pair sum to 1. Equal responses tie without a question, a pair whose answers cannot be read is a
    tie, and so is a response alone, as in the table of samples. Every answer is cached as it arrives: a training that
    the endpoint's failure stopped samples the same responses again and asks only what is left.

    Args:
        judge: the model.
        settings: the rounds, whose number of questions is checked before the first one.
        workspace: names the cache and the job.

    Raises:
        UserError: the training needs more requests than the judge's `max_requests`.
    """
    needed = 2 * settings.batch_size * settings.max_steps
    if needed > judge.max_requests:
        raise UserError(
            f"judge {name_of(judge)}: {settings.max_steps} rounds of {settings.batch_size} pairs need up to {needed} "
            f"requests and max_requests allows {judge.max_requests} in a job; nothing was asked; raise it, or train on "
            "fewer pairs"
        )
    folder, job = workspace.journal.root / FOLDER, f"online-{workspace.name or 'all'}"

    def compare(prompts: list[str], responses: list[str]) -> NDArray[np.float64]:
        scores = np.full(len(responses), TIE)
        if prompts[::2] != prompts[1::2]:  # responses alone
            return scores
        first = [place for place in range(0, len(responses), 2) if responses[place] != responses[place + 1]]
        pairs = [Pair(prompts[place], responses[place], responses[place + 1]) for place in first]
        values, _, _ = judge_pairs(judge, pairs, [(place // 2, 0) for place in first], folder, job)
        if unread := int(np.isnan(values).sum()):
            print(
                f"judge {name_of(judge)}: {unread} of {len(pairs)} pairs have no verdict and count as ties", flush=True
            )
        preferred = np.nan_to_num(values, nan=TIE)
        scores[first], scores[[place + 1 for place in first]] = preferred, 1 - preferred
        return scores

    return compare
