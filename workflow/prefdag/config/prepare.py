"""From raw rows to comparisons of token ids. Nothing about tokens has a hidden default."""

from typing import Literal

from pydantic import Field

from prefdag.config.section import Count, Fraction, Section, Seed


class Prepare(Section):
    """How rows become comparisons, and comparisons tokens."""

    seed: Seed = 0
    adapter: Literal["world", "hh", "pairs"] = Field(description="how rows are read as comparisons")
    template: Literal["continuation", "plain"] = Field(description="how a prompt and a response are written as text")
    bos: bool = Field(description="one beginning-of-sequence token before the prompt")
    end_of_turn: Literal["eos", "none"] = Field(description="the token that ends, and is counted with, each response")
    over_long: Literal["drop", "error"] = Field(description="what happens to a row over the limits below")
    max_prompt_tokens: Count
    max_response_tokens: Count
    validation_fraction: Fraction = Field(0.0, description="share of prompts held out of train, where no file is")
    test_fraction: Fraction = Field(0.0, description="share of prompts held out of train for test, where no file is")
