"""A small base model from scratch."""

from prefdag.config.section import Count
from prefdag.config.training import Training


class Pretrain(Training):
    """Next-token prediction on whole documents, each between its BOS and EOS."""

    max_tokens: Count = 128
