"""Settings of the training loop, shared by the four stages that train."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from prefdag.schema import Compute, Count, NonNegative, Positive


class Training(Compute):
    """One training: what is optimised, for how long, in which batches."""

    changeable: ClassVar[frozenset[str]] = frozenset({"processes", "nodes", "sharding"})

    batch_size: Count = Field(description="comparisons per optimizer step, over all devices")
    epochs: Positive = Field(
        1.0, description="passes over the training split, or a part of one, unless `max_steps` is stated"
    )
    max_steps: Count | None = Field(
        None,
        description="optimizer steps, whatever `epochs` states; beyond one epoch the data is repeated, in a new order",
    )
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
        description="memory for saved activations; blocks beyond it are recomputed, bit for bit; default: no limit",
    )
    processes: Count = Field(1, description="processes that share every step, with a GPU each if there are GPUs")
    nodes: Count = Field(1, description="machines that they are spread over evenly; several only under Slurm")
    sharding: Literal["replicated", "sharded"] = Field(
        "replicated", description="each process holds the whole model, or its share of every layer (FSDP2)"
    )

    @model_validator(mode="after")
    def _processes_agree(self) -> "Training":
        if self.processes % self.nodes:
            raise ValueError(f"processes: {self.processes} cannot be spread evenly over {self.nodes} nodes")
        if self.sharding == "sharded" and self.processes == 1:
            raise ValueError("sharding: one process has nothing to shard over; state processes: 2 or more")
        return self
