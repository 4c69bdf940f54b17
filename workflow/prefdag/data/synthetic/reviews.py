"""The embedded text world: short film reviews with a latent sentiment and a latent genre.

It replaces IMDb in the controlled sentiment experiment (Rafailov et al. 2023, section 6.1) without a download.
Openings describe a film and hardly judge it, so the continuation decides the sentiment. Roles, places and things belong
to a genre, so a policy that trades content for reward shows it.
"""

import itertools
from collections.abc import Container, Iterator
from dataclasses import dataclass

from prefdag.data.synthetic.grammar import Draw, write
from prefdag.errors import UserError
from prefdag.seeds import named_seed

MIN_WORDS, MAX_WORDS = 12, 34
MIN_PROMPT_WORDS, MAX_PROMPT_WORDS = 2, 8
PATIENCE = 2000  # reviews in a row without a new prompt, after which the world counts as exhausted


@dataclass(frozen=True)
class Review:
    """`text` is `prompt + continuation`; the continuation begins with its space."""

    text: str
    prompt: str
    continuation: str


def _review(seed: int, index: int) -> Review:
    draw = Draw(named_seed(seed, "review", index))  # a separate stream: no review changes another
    text = write(draw)
    while not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
        text = write(draw)
    prompt = " ".join(text.split()[: draw.integer(MIN_PROMPT_WORDS, MAX_PROMPT_WORDS)])
    return Review(text, prompt, text[len(prompt) :])


def reviews(seed: int, num: int) -> Iterator[Review]:
    """Iterate over the first `num` reviews of the world with this seed."""
    return (_review(seed, index) for index in range(num))


def prompts(seed: int, num: int, exclude: Container[str]) -> list[str]:
    """Return the first `num` distinct prompts of this seed's reviews that are not in `exclude`.

    Raises `UserError` if `PATIENCE` reviews in a row have no new one.
    """
    distinct: dict[str, None] = {}  # a set in insertion order
    num_stale = 0
    for index in itertools.count():
        if len(distinct) == num:
            break
        prompt = _review(seed, index).prompt
        if prompt in distinct or prompt in exclude:
            num_stale += 1
        else:
            num_stale = 0
            distinct[prompt] = None
        if num_stale == PATIENCE:
            raise UserError(
                f"data.world: the text world with seed {seed} has {len(distinct)} new prompts, not the {num} that "
                "the suite needs; lower the numbers of prompts"
            )
    return list(distinct)
