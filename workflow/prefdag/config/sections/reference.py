"""The cache of the reference policy's log-probs."""

from prefdag.schema import Compute, Count


class Reference(Compute):
    """One forward pass of the SFT policy over every comparison."""

    tokens_per_batch: Count = 4096
