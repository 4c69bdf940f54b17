"""Replicated and sharded (FSDP2) models: gradients, clipping, optimizer state.

A sharded layer's weights are gathered for its forward and backward pass, and its gradient is reduced and scattered.
Parameters outside the layers (embeddings, last norm, head) stay replicated, since the head is used outside the model's
forward pass. Saved states are unsharded, so that any number of ranks can resume from them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from prefdag.distributed.collectives import all_reduce_sum
from prefdag.distributed.ranks import num_ranks


def shard(model: PreTrainedModel) -> None:
    """Shard every layer of a replicated model in place; the rest stays replicated."""
    base: Any = model.base_model
    layers = base.h if hasattr(base, "h") else base.layers
    mesh = init_device_mesh(next(model.parameters()).device.type, (num_ranks(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    replicated = {parameter for parameter in base.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(base, mesh=mesh, ignored_params=replicated)
    for module in (base, *layers):
        assert isinstance(module, FSDPModule)
        # Gradients are summed, not averaged: the loss is a sum over all ranks' comparisons already.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def local_shard(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor of any shape, sharing its memory; a replicated tensor itself."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def full_tensor(values: Any) -> Any:
    """Gather every sharded tensor in nested dicts and lists to the CPU. All ranks must call this."""
    if isinstance(values, dict):
        return type(values)((key, full_tensor(value)) for key, value in values.items())
    if isinstance(values, list):
        return [full_tensor(value) for value in values]
    return values.full_tensor().cpu() if isinstance(values, DTensor) else values


def reduce_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of replicated parameters over ranks; FSDP has already summed those of sharded layers."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            all_reduce_sum(parameter.grad)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale the gradient of the whole model to a norm of at most `max_norm`; return its norm before that."""
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return nn.utils.clip_grad_norm_(parameters, max_norm).item()
    squared = torch.zeros(2, dtype=torch.float64)  # of replicated parameters, of sharded ones
    parts = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for part in parts:
        squared[int(isinstance(part, DTensor))] += local_shard(part).norm().double().cpu() ** 2
    all_reduce_sum(squared[1:])
    norm = squared.sum().sqrt().item()
    for part in parts:
        local_shard(part).mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm


class ShardedOptimizer:
    """An optimizer of a model whose layers may be sharded: each rank updates its shards.

    Valid for optimizers that work element by element, as AdamW and RMSprop do. Its saved state is unsharded.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], make: Callable[[list[Tensor]], torch.optim.Optimizer]):
        self.parameters = parameters
        self.shards = [local_shard(parameter) for parameter in parameters]
        self.inner = make(self.shards)

    def step(self, learning_rate: float) -> None:
        """Update the parameters from their gradients, and clear the gradients."""
        for group in self.inner.param_groups:
            group["lr"] = learning_rate
        for parameter, local in zip(self.parameters, self.shards, strict=True):
            if local is not parameter:
                local.grad = None if parameter.grad is None else local_shard(parameter.grad)
        self.inner.step()
        for tensor in (*self.parameters, *self.shards):
            tensor.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the unsharded state. All ranks must call this."""
        return self._map(self.inner.state_dict(), _gather_state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load an unsharded state."""
        self.inner.load_state_dict(self._map(state, _scatter_state))

    def _map(self, state: dict[str, Any], change: Callable[[Tensor, DTensor], Tensor]) -> dict[str, Any]:
        of_parameters = {
            number: {
                name: change(value, self.parameters[number]) if _is_sharded(value, self.parameters[number]) else value
                for name, value in values.items()
            }
            for number, values in state["state"].items()
        }
        return state | {"state": of_parameters}


def _is_sharded(value: Any, parameter: nn.Parameter) -> bool:
    """Return whether an optimizer's value has an entry per entry of a sharded parameter; a step count has not."""
    return isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.dim() > 0


def _gather_state(value: Tensor, parameter: DTensor) -> Tensor:
    mesh, placements = parameter.device_mesh, parameter.placements
    like = DTensor.from_local(value, mesh, placements, shape=parameter.shape, stride=parameter.stride())
    gathered: Tensor = full_tensor(like)
    return gathered


def _scatter_state(value: Tensor, parameter: DTensor) -> Tensor:
    on_device = value.to(parameter.device)
    return local_shard(distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None))
