"""The cache of the reference policy's log-probs."""

from prefdag.config.section import Compute, Count


class Reference(Compute):
    """One forward pass of the SFT policy over every comparison."""

    tokens_per_batch: Count = 4096
