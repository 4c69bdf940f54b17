"""Supervised fine-tuning on demonstrations."""

from prefdag.config.training import Training


class SFT(Training):
    """Next-token prediction on the counted tokens of the first response."""
