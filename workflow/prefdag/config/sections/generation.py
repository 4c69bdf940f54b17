"""The settings of one set of answers, which is one job of `generate`."""

from typing import Literal

from pydantic import Field, model_validator

from prefdag.config.sections.sampling import Sampling
from prefdag.schema import Count


class Generation(Sampling):
    """Which prompts, how many responses to each, and how they are sampled."""

    max_prompts: Count | None = Field(None, description="only this many of the test split's prompts")
    backend: Literal["torch", "vllm"] = Field(
        "torch", description="`vllm`, if installed: faster on a GPU; its random numbers, and so the texts, differ"
    )

    @model_validator(mode="after")
    def _vllm_takes_it(self) -> "Generation":
        if self.backend == "vllm" and 0 < self.temperature < 0.01:
            raise ValueError(f"temperature: vllm would take 0.01 for {self.temperature:g}; state 0 or at least 0.01")
        return self
