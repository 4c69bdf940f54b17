"""One set of answers: all that a job of `generate` is told."""

from typing import Literal

from pydantic import Field, model_validator

from prefdag.config.sampling import Sampling
from prefdag.schema import Count


class Generation(Sampling):
    """Which prompts, how many responses to each, and how they are drawn."""

    max_prompts: Count | None = Field(None, description="only this many of the test split's prompts")
    backend: Literal["torch", "vllm"] = Field(
        "torch", description="`vllm`, where it is installed: faster on a GPU; its noise, and so the texts, are others"
    )

    @model_validator(mode="after")
    def _vllm_takes_it(self) -> "Generation":
        if self.backend == "vllm" and 0 < self.temperature < 0.01:
            raise ValueError(f"temperature: vllm would take 0.01 for {self.temperature:g}; state 0 or at least 0.01")
        return self
