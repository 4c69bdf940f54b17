"""How the ranks of a training hold its model: each the whole of it, or its share of every layer (FSDP2).

A sharded layer's weights are gathered for its forward and its backward pass, and its gradient is summed and shared out
again. What lies outside the layers (embeddings, last norm, head) every rank holds whole, as the head is used outside
the model's own forward pass. What is saved is always whole: any number of ranks can go on from it.
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
    """Leave this rank its share of every layer of a model that all ranks hold whole."""
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


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, at the same place in memory; a tensor that is not shared is its own part."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def full_tensor(values: Any) -> Any:
    """Values and tensors in dicts and lists, with every shared tensor gathered, on the CPU. All ranks must ask."""
    if isinstance(values, dict):
        return type(values)((key, full_tensor(value)) for key, value in values.items())
    if isinstance(values, list):
        return [full_tensor(value) for value in values]
    return values.full_tensor().cpu() if isinstance(values, DTensor) else values


def reduce_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum over the ranks the gradients of what every rank holds whole; those of shared layers are summed already."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            all_reduce_sum(parameter.grad)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Scale the gradient of the whole model down to the norm `most`, if it is longer; returns its own norm."""
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return nn.utils.clip_grad_norm_(parameters, most).item()
    squared = torch.zeros(2, dtype=torch.float64)  # of what every rank holds whole, of shared layers
    parts = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for part in parts:
        squared[int(isinstance(part, DTensor))] += own_part(part).norm().double().cpu() ** 2
    all_reduce_sum(squared[1:])
    norm = squared.sum().sqrt().item()
    for part in parts:
        own_part(part).mul_(min(1.0, most / (norm + 1e-6)))
    return norm


class ShardedOptimizer:
    """An optimizer of a model whose layers may be shared: each rank updates its own parts.

    The optimizers here work element by element, so a part's update is the whole's. The state that is saved is that of
    an optimizer of the whole model.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], make: Callable[[list[Tensor]], torch.optim.Optimizer]):
        self.parameters = parameters
        self.parts = [own_part(parameter) for parameter in parameters]
        self.inner = make(self.parts)

    def step(self, learning_rate: float) -> None:
        """Take the step that the parameters' gradients ask for, and forget them."""
        for group in self.inner.param_groups:
            group["lr"] = learning_rate
        for parameter, part in zip(self.parameters, self.parts, strict=True):
            if part is not parameter:
                part.grad = None if parameter.grad is None else own_part(parameter.grad)
        self.inner.step()
        for tensor in (*self.parameters, *self.parts):
            tensor.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state for the whole model, gathered where layers are shared; all ranks must ask."""
        return self._changed(self.inner.state_dict(), _gathered)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's part of a whole model's state."""
        self.inner.load_state_dict(self._changed(state, _shared_out))

    def _changed(self, state: dict[str, Any], change: Callable[[Tensor, DTensor], Tensor]) -> dict[str, Any]:
        of_parameters = {
            number: {
                name: change(value, self.parameters[number]) if _is_shared(value, self.parameters[number]) else value
                for name, value in values.items()
            }
            for number, values in state["state"].items()
        }
        return state | {"state": of_parameters}


def _is_shared(value: Any, parameter: nn.Parameter) -> bool:
    """Whether an optimizer's value has a number for each of a shared parameter; a count of steps has not."""
    return isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.dim() > 0


def _gathered(value: Tensor, parameter: DTensor) -> Tensor:
    mesh, placements = parameter.device_mesh, parameter.placements
    like = DTensor.from_local(value, mesh, placements, shape=parameter.shape, stride=parameter.stride())
    gathered: Tensor = full_tensor(like)
    return gathered


def _shared_out(value: Tensor, parameter: DTensor) -> Tensor:
    on_device = value.to(parameter.device)
    return own_part(distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None))
