"""Linear layers in bf16 on a CPU, over float32 weights.

Under autocast every forward pass casts every weight, every layer casts its input, and every micro-batch's gradient of a
weight is built in bf16, cast and added. Here a weight is cast once per optimizer step, an input once for all layers
that read it (queries, keys, values), and a micro-batch's gradient is added to the float32 `.grad` directly.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from prefdag.models.ops.vocabulary import gradient_buffer, half_copy


class HalfLinear(nn.Linear):
    """A linear layer that multiplies in bf16 under autocast on a CPU; elsewhere it is `nn.Linear`."""

    def forward(self, states: Tensor) -> Tensor:
        """Return states weight^T + bias, [..., N], for states [..., D]."""
        if states.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(states)
        out: Tensor = _Linear.apply(states, self.weight, self.bias)
        return out


def use_half_linears(model: nn.Module) -> None:
    """Turn every `nn.Linear` of a model into a `HalfLinear`, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            object.__setattr__(module, "__class__", HalfLinear)


def use_plain_linears(model: nn.Module) -> None:
    """Undo `use_half_linears`: FSDP gathers weights into the same memory, so that a copy cannot know its age."""
    for module in model.modules():
        if type(module) is HalfLinear:
            object.__setattr__(module, "__class__", nn.Linear)


class _LastCast:
    """The last input in bf16, for the next layer that reads it."""

    def __init__(self) -> None:
        self.source: weakref.ref[Tensor] | None = None
        self.version, self.cast = 0, torch.empty(0)

    def __call__(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        if states.dtype == dtype:
            return states
        if self.source is None or self.source() is not states or self.version != states._version:
            self.source, self.version, self.cast = weakref.ref(states), states._version, states.detach().to(dtype)
        return self.cast


_cast = _LastCast()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu")
        inputs = _cast(states, dtype).reshape(-1, states.shape[-1])
        ctx.table = half_copy(weight, dtype)  # not saved for backward: a weight is no activation
        ctx.save_for_backward(inputs, weight, bias)
        ctx.shape = states.shape
        out = torch.mm(inputs, ctx.table.T)
        if bias is not None:
            out = (out + bias).to(dtype)
        return out.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1]).to(inputs.dtype)
        of_states = torch.mm(flat, ctx.table).view(ctx.shape) if ctx.needs_input_grad[0] else None
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            buffer, of_weight = gradient_buffer(weight)
            buffer += torch.mm(flat.T, inputs)
        if bias is not None and ctx.needs_input_grad[2]:
            of_bias = flat.sum(0, dtype=bias.dtype)
        return of_states, of_weight, of_bias
