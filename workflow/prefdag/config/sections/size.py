"""Counts of parameters and tokens, for estimates."""

from pydantic import Field

from prefdag.schema import Count, Positive, Section


class Size(Section):
    """Counts of parameters and tokens for `prefdag plan`. No job reads them."""

    parameters: Positive = Field(description="of the model, such as 2.8e9")
    layers: Count
    hidden_size: Count
    comparisons: Count = Field(description="pairs that are trained on")
    prompt_tokens: Count = Field(description="mean tokens of a prompt")
    response_tokens: Count = Field(description="mean tokens of one response")
    demonstrations: Count | None = Field(None, description="rows of `sft.data` that SFT trains on")
    demonstration_tokens: Count | None = Field(None, description="mean tokens of one of them")
