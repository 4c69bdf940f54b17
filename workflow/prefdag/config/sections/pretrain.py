"""A small base model from scratch."""

from prefdag.config.sections.training import Training
from prefdag.schema import Count, Positive


class Pretrain(Training):
    """Next-token prediction on whole documents, each between its BOS and EOS."""

    learning_rate: Positive = 1e-3
    max_tokens: Count = 128
