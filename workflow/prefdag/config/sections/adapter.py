"""Low-rank adapters: what is trained in place of every weight."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from prefdag.schema import Count, Fraction, Positive, Section


class Adapter(Section):
    """Low-rank updates of linear layers, trained while every other weight is frozen (Hu et al. 2021)."""

    kind: Literal["lora"] = "lora"
    rank: Count = Field(16, description="of each update B A of a layer's weights")
    alpha: Positive = Field(32.0, description="an update is scaled by alpha / rank")
    target: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="every linear layer but the output head, or a list of names such as [q_proj, v_proj]"
    )
    dropout: Fraction = Field(0.0, description="share of an adapter's inputs that are dropped in training")
    dora: bool = Field(False, description="train the size of each output's weights as well (Liu et al. 2024)")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) (Kalajdzievski 2023)")
    base: Literal["float32", "bfloat16", "nf4"] = Field(
        "float32", description="how the frozen weights are held in training; nf4, 4 bits, needs CUDA and bitsandbytes"
    )

    @field_validator("target", mode="before")
    @classmethod
    def _is_named(cls, target: Any) -> Any:
        is_list = isinstance(target, (list, tuple)) and all(isinstance(name, str) for name in target)
        if target == "all-linear" or (is_list and 0 < len(set(target)) == len(target)):
            return target
        raise ValueError(f"expected all-linear, or different names of layers such as [q_proj, v_proj], got {target!r}")


def over_section(section: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with a row's keys in place of its own; the keys of `adapter` are replaced one by one."""
    values = {**section, **row}
    under, over = section.get("adapter"), row.get("adapter")
    return values | {"adapter": {**under, **over}} if isinstance(under, dict) and isinstance(over, dict) else values
