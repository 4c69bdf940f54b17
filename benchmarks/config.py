"""The benchmark: which cells, which arms, how long."""

from typing import Literal, Self

from pydantic import Field, model_validator

from benchmarks.shapes import PAIRS
from prefdag.schema import Compute, Count

Shape = Literal[
    "small", "pythia-14m", "pythia-70m", "qwen2-style", "imdb", "smollm2-135m", "qwen2.5-0.5b", "pythia-2.8b"
]
Profile = Literal["hh", "ultrafeedback", "tldr", "saferlhf", "samples", "1024"]
Kind = Literal["dpo", "reward", "reference", "sft"]


class Benchmark(Compute):
    """prefdag against TRL and against its own plainer forms, on random weights and ids."""

    threads: Count = 2
    shapes: tuple[Shape, ...] = Field(("small",), min_length=1, description="model shapes")
    profiles: tuple[Profile, ...] = Field(("hh",), min_length=1, description="whose lengths the pairs have")
    tasks: tuple[Kind, ...] = Field(("dpo",), min_length=1, description="what is timed")
    trl: bool = Field(
        True, description="whether TRL runs too: its defaults, tuned, and tuned with a response-only head"
    )
    liger: bool = Field(
        False, description="whether TRL, tuned, runs with Liger's kernels too: on CUDA, where it is installed"
    )
    per_device: tuple[Count, ...] = Field((1,), min_length=1, description="TRL's pairs at a time that tuning tries")
    keeping: tuple[bool, ...] = Field((True,), min_length=1, description="whether glibc keeps freed pages, both tried")
    ladder: bool = Field(True, description="whether the rungs from the plain path to the product are measured as well")
    tokens_per_batch: Count | None = Field(
        None, description="padded tokens of prefdag's forward; null: the device's own"
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="of every arm; null: bfloat16 on a GPU, float32 on a CPU, where bfloat16 is TRL's default"
    )
    clock: Literal["wall", "cpu"] = Field("wall", description="cpu: seconds of the process, for a core that is shared")
    pairs_per_step: Count = 16
    steps: Count = Field(6, description="optimizer steps of one run; two warm up")
    rounds: Count = Field(2, description="runs of every arm, interleaved")

    @model_validator(mode="after")
    def _steps_take_whole_prompts(self) -> Self:
        if "samples" in self.profiles and self.pairs_per_step % len(PAIRS):
            raise ValueError(
                f"pairs_per_step: profile `samples` has {len(PAIRS)} pairs a prompt; take a multiple of that, "
                f"got {self.pairs_per_step}"
            )
        return self

    @model_validator(mode="after")
    def _rungs_are_float32(self) -> Self:
        if self.ladder and self.precision == "bfloat16":
            raise ValueError("ladder: its rungs compute in float32; set it to false, or leave `precision` out")
        return self
