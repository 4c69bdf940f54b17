"""Ask a model judge about pairs of a round's samples."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefdag.config.sections.judge import LLM, name_of
from prefdag.errors import UserError
from prefdag.evaluation.judge.lost import count_lost, lost_answers
from prefdag.evaluation.judge.run import Pair, Questions, Verdict
from prefdag.evaluation.scores import Key

logger = logging.getLogger(__name__)


def judge_pairs(
    judge: LLM, pairs: Sequence[Pair], keys: Sequence[Key], folder: Path, job: str
) -> tuple[NDArray[np.float64], list[Verdict], dict[str, int]]:
    """Return how far a judge prefers the first answer of each pair.

    Every answer is cached as it arrives, so a job that fails asks only what is left when it runs again.

    Args:
        judge: the model.
        pairs: two answers to one prompt each.
        keys: the prompt and the first sample of each pair, which messages name.
        folder: of the answers of every job of the suite.
        job: the name of this job's file in it.

    Returns:
        [N] in [0, 1], NaN where an answer of either order cannot be read; the verdicts; counts of lost answers.

    Raises:
        UserError: too many questions, an endpoint that fails for good, or no verdict that can be read.
    """
    questions = Questions(judge, pairs, folder)
    if (endpoint := questions.endpoint()) is not None:
        questions.ask(endpoint, job)
    verdicts = questions.verdicts()
    values = np.array([(one.shown_first + one.shown_second) / 2 for one in verdicts], dtype=np.float64)
    for line in lost_answers(name_of(judge), keys, verdicts):
        logger.warning(line)
    if len(values) and np.isnan(values).all():
        raise UserError(
            f"judge {name_of(judge)}: no pair has a verdict in both orders; correct the judge's prompt or `reader` "
            "(an edit of `reader` asks nothing again)"
        )
    return values, verdicts, count_lost(verdicts)
