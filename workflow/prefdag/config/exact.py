"""The world small enough to enumerate, and how far a loss is minimised in it."""

from pydantic import Field

from prefdag.config.section import Compute


class Exact(Compute):
    """Losses minimised to convergence over every response there is, against the exact optimum."""

    prompts: int = Field(3, ge=2, le=8, description="2 to 8 prompts")
    words: int = Field(2, ge=1, le=4, description="1 to 4 words beside the end token")
    length: int = Field(3, ge=1, le=4, description="1 to 4 tokens in the longest response")
    ranked: int = Field(3, ge=2, le=4, description="2 to 4 responses in a ranking, for losses of many responses")
