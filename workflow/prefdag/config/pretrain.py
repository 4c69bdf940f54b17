"""A small base model from scratch."""

from prefdag.config.training import Training
from prefdag.schema import Count


class Pretrain(Training):
    """Next-token prediction on whole documents, each between its BOS and EOS."""

    max_tokens: Count = 128
