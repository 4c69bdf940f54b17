"""Settings of the training loop, shared by the four stages that train."""

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from prefdag.config.sections.adapter import Adapter
from prefdag.schema import Compute, Count, Fraction, NonNegative, Positive


class Training(Compute):
    """One training: what is optimised, for how long, in which batches. Dropout is always off."""

    changeable: ClassVar[frozenset[str]] = frozenset({"processes", "nodes", "sharding"})

    batch_size: Count = Field(
        16, description="most comparisons of an optimizer step, over all devices; a remainder is dealt over the steps"
    )
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
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="of the learning rate after the warm-up: down to zero, or constant"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    warmup_ratio: Fraction | None = Field(
        None, description="the warm-up as a share of all steps, instead of `warmup_steps`; rounded up"
    )
    max_grad_norm: Positive | None = Field(1.0, description="clip the gradient to this norm; null: never")
    tokens_per_batch: Count = Field(4096, description="padded tokens of one forward; decides speed and memory only")
    activation_gb: Positive | None = Field(
        None,
        description="memory for saved activations; blocks beyond it are recomputed, bit for bit; default: no limit",
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="of products, over float32 weights, sums and optimizer; default: bfloat16 on a GPU, float32 on a "
        "CPU; its reference is computed in the same",
    )
    processes: Count = Field(1, description="processes that share every step, with a GPU each if there are GPUs")
    nodes: Count = Field(1, description="machines that they are spread over evenly; several only under Slurm")
    group: Literal["prompt"] | None = Field(
        None,
        exclude_if=lambda group: group is None,  # the config of a job without it is what it was before the key existed
        description="`prompt`: a step takes all comparisons of its prompts, so that shared responses are computed "
        "once; its size is then near `batch_size`, not at most",
    )
    sharding: Literal["replicated", "sharded"] = Field(
        "replicated", description="each process holds the whole model, or its share of every layer (FSDP2)"
    )

    @model_serializer(mode="wrap")
    def _without_default_precision(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave an unstated precision out, so that such a job's config is what it was before the key existed."""
        values: dict[str, Any] = handler(self)
        if values.get("precision") is None:
            values.pop("precision", None)
        return values

    @model_validator(mode="after")
    def _one_warm_up(self) -> "Training":
        if self.warmup_ratio is not None and self.warmup_steps:
            raise ValueError("warmup_ratio: warmup_steps is stated as well; remove it, or set it to 0")
        return self

    @model_validator(mode="after")
    def _processes_agree(self) -> "Training":
        if self.processes % self.nodes:
            raise ValueError(f"processes: {self.processes} cannot be spread evenly over {self.nodes} nodes")
        if self.sharding == "sharded" and self.processes == 1:
            raise ValueError("sharding: one process has nothing to shard over; state processes: 2 or more")
        return self


class AdaptableTraining(Training):
    """A training of weights that exist: of all of them, or of low-rank updates."""

    adapter: Adapter | None = Field(
        None,
        exclude_if=lambda adapter: adapter is None,  # the config of a job without one does not state it
        description="train low-rank updates in place of every weight; see [adapter](#adapter)",
    )
