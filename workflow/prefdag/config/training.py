"""Settings of the training loop, shared by the four stages that train."""

from typing import Literal

from pydantic import Field

from prefdag.config.section import Compute, Count, NonNegative, Positive


class Training(Compute):
    """One training: what is optimised, for how long, in which batches."""

    batch_size: Count = Field(description="comparisons per optimizer step, over all devices")
    epochs: Positive = Field(1.0, description="passes over the training split; a part of one is allowed")
    max_steps: Count | None = Field(None, description="stop after this many optimizer steps")
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    learning_rate: Positive
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    weight_decay: NonNegative = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: Positive = 1.0
    tokens_per_batch: Count = Field(4096, description="padded tokens of one forward; decides speed and memory only")
    activation_gb: Positive | None = Field(
        None,
        description="for kept activations; blocks beyond it are recomputed, to the same bits; none: all are kept",
    )
