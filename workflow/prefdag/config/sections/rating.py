"""How a model judge rates a round's samples."""

from prefdag.config.sections.judge import LLM
from prefdag.schema import Section


class Rating(Section):
    """The judge that compares the samples of each prompt with one another."""

    judge: LLM
