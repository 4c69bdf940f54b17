"""The embedded text world: short film reviews with a latent sentiment and a latent genre.

It stands in for IMDb in the controlled sentiment experiment (Rafailov et al. 2023, section 6.1) where nothing can be
downloaded. Openings say what a film is about and little of its worth, so that the continuation decides the sentiment;
roles, places and things belong to a genre, so that a policy that gives up content for reward shows it.
"""

import itertools
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from prefdag.data.synthetic.grammar import Draw, write
from prefdag.errors import UserError
from prefdag.seeds import named_seed

MIN_WORDS, MAX_WORDS = 12, 34
MIN_PROMPT_WORDS, MAX_PROMPT_WORDS = 2, 8
# So many reviews in a row without a new prompt mean that the world has next to none left.
PATIENCE = 2000


@dataclass(frozen=True)
class Review:
    """`text` is `prompt + continuation`; the continuation begins with its space."""

    text: str
    prompt: str
    continuation: str


def _review(seed: int, index: int) -> Review:
    draw = Draw(named_seed(seed, "review", index))  # its own stream: no review moves another
    text = write(draw)
    while not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
        text = write(draw)
    prompt = " ".join(text.split()[: draw.integer(MIN_PROMPT_WORDS, MAX_PROMPT_WORDS)])
    return Review(text, prompt, text[len(prompt) :])


def reviews(seed: int, num: int) -> Iterator[Review]:
    """The first `num` reviews of the world with this seed."""
    return (_review(seed, index) for index in range(num))


def prompts(seed: int, num: int, exclude: AbstractSet[str]) -> list[str]:
    """The first `num` distinct prompts of this seed's reviews that are not in `exclude`.

    Raises UserError where PATIENCE reviews in a row bring no new one.
    """
    found: dict[str, None] = {}  # a set that keeps its order
    num_stale = 0
    for index in itertools.count():
        if len(found) == num:
            break
        prompt = _review(seed, index).prompt
        if prompt in found or prompt in exclude:
            num_stale += 1
        else:
            num_stale = 0
            found[prompt] = None
        if num_stale == PATIENCE:
            raise UserError(
                f"data.world: the text world with seed {seed} has {len(found)} new prompts to give and {num} are asked "
                "for; ask for fewer prompts"
            )
    return list(found)
