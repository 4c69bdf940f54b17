"""How a model is computed: packed by its own attention function, packed under a mask, or padded.

`prefdag.models.proof` chooses the fastest route whose log-probs and gradients equal those of single rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.schema import Section

ATTRIBUTE = "prefdag_route"


class Route(Section):
    """One way to compute hidden states and log-probs.

    Attributes:
        kind: `segments`: packed rows, attention by `prefdag.models.attention.interface`. `mask`: packed rows under a
            four-dimensional mask, attention by transformers. `padded`: a padded row for each response.
        last_layer: whether the last layer's MLP runs only at positions that are read.
        head: `linear`: log-probs from hidden states and the output embeddings. `model`: from the model's own logits
            at every position, a very large tensor.
        reason: why a faster route was not taken; empty for the fastest.
    """

    kind: Literal["segments", "mask", "padded"] = "segments"
    last_layer: bool = True
    head: Literal["linear", "model"] = "linear"
    reason: str = ""

    def __str__(self) -> str:
        whole = "" if self.last_layer or self.kind == "padded" else ", last layer whole"
        return f"{'padded' if self.kind == 'padded' else f'packed ({self.kind})'}{whole}"


FASTEST = Route()
CANDIDATES = (
    FASTEST,
    Route(last_layer=False),
    Route(kind="mask", last_layer=False),
    Route(kind="padded", last_layer=False),
    Route(kind="padded", last_layer=False, head="model"),
)


def route_of(model: PreTrainedModel) -> Route:
    """Return the route chosen when the model was loaded; models built from nothing take the fastest."""
    route: Route = getattr(model, ATTRIBUTE, FASTEST)
    return route


def route_facts(model: PreTrainedModel) -> dict[str, str]:
    """Return what a manifest states of a route; nothing of the fastest."""
    route = route_of(model)
    return {"route": str(route), "route_reason": route.reason} if route.reason else {}


def set_route(model: PreTrainedModel, route: Route) -> None:
    object.__setattr__(model, ATTRIBUTE, route)


@contextmanager
def implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """While active, the model uses this attention implementation."""
    before = model.config._attn_implementation
    if before == name:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def scaled_logits(config: Any, logits: Tensor) -> Tensor:
    """Apply what some architectures do to the head's output: a factor (Cohere, Granite), soft-capping (Gemma 2).

    Args:
        config: of the model.
        logits: [..., V].

    Returns:
        [..., V].
    """
    scale, cap = logit_scale(config), soft_cap(config)
    if scale != 1:
        logits = logits * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


def logit_scale(config: Any) -> float:
    text = config.get_text_config()
    return float(getattr(text, "logit_scale", None) or 1 / (getattr(text, "logits_scaling", None) or 1))


def soft_cap(config: Any) -> float | None:
    cap: float | None = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return cap
