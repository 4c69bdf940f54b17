"""Check before any job runs that a suite's adapters fit its model and this machine."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from prefdag.config.adapter_folder import base_of_model
from prefdag.config.sections.adapter import Adapter
from prefdag.config.suite import ExactSuite, Suite
from prefdag.distributed.gpu_lease import devices
from prefdag.planning.machine import asks_for_slurm

LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
LAYERS = {  # linear layers in the blocks of the models that are built here
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
}
OUTSIDE = {"embed_tokens", "embed_in", "wte", "wpe", "lm_head", "embed_out", "score"}  # matrices that are in no block


def adapter_mistakes(suite: Suite) -> Iterator[str]:
    """Yield a sentence for each adapter with layers that the model has not, or weights that this machine cannot hold.

    The layers of a model that is not on this machine yet are checked when it is loaded.
    """
    adapters = _adapters(suite)
    if not adapters:
        return
    layers, reason = layers_of(suite), _no_nf4()
    for key, adapter in adapters.items():
        if adapter.base == "nf4" and reason:
            yield f"{key}.base: nf4 needs {reason}; take bfloat16 or float32"
        for name in adapter.target if layers and adapter.target != "all-linear" else ():
            if name not in layers:
                known = ", ".join(sorted(layers))
                yield f"{key}.target: the model has no linear layer {name}; name some of {known}, or all-linear"


def adapter_doubts(suite: Suite | ExactSuite) -> list[str]:
    """Return a sentence for each adapter of a rank that is above the width of a matrix that it adapts."""
    adapters = _adapters(suite) if isinstance(suite, Suite) else {}
    widths = _widths(suite) if adapters and isinstance(suite, Suite) else {}
    doubts = []
    for key, adapter in adapters.items():
        names = widths if adapter.target == "all-linear" else [name for name in adapter.target if name in widths]
        narrow = {name: widths[name] for name in names if widths[name] < adapter.rank}
        if narrow:
            layers = ", ".join(f"{name} ({width})" for name, width in sorted(narrow.items()))
            doubts.append(
                f"{key}.rank: {adapter.rank} is above the width of {layers}: an adapter of that rank has more "
                f"parameters than the matrix and can express no more; lower it to {min(narrow.values())} or less"
            )
    return doubts


def _adapters(suite: Suite) -> dict[str, Adapter]:
    """Return the adapters of a suite by their keys; rows that share one are named by the first of them."""
    trainings = {"sft": suite.sft, "reward": suite.reward}
    adapters = {f"{key}.adapter": one.adapter for key, one in trainings.items() if one is not None and one.adapter}
    for run in suite.trained:
        adapter = run.preference.adapter
        if adapter is not None and adapter not in adapters.values():
            adapters[f"runs.{run.name}.adapter"] = adapter
    return adapters


def _no_nf4() -> str | None:
    """Return what weights of 4 bits lack on this machine; None if nothing, or if jobs run on others."""
    if asks_for_slurm(sys.argv[1:], os.environ):
        return None
    if not devices(os.environ):
        return "a CUDA device, and there is none"
    return None if importlib.util.find_spec("bitsandbytes") else "bitsandbytes, which is not installed"


def layers_of(suite: Suite) -> set[str]:
    """Return the last names of the linear layers of a suite's model; empty if they are not known yet."""
    return set(_widths(suite))


def _widths(suite: Suite) -> dict[str, int]:
    """Return the smaller side of each linear layer by its last name; empty if the layers are not known yet."""
    if (shape := suite.model.scratch) is not None:
        shared = shape.hidden_size * (shape.key_value_heads or shape.heads) // shape.heads
        layers = LAYERS[shape.architecture]
        return {name: shared if name in ("k_proj", "v_proj") else shape.hidden_size for name in layers}
    folder = Path(base_of_model(suite.model) or suite.model.source)
    widths: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(path, framework="numpy") as weights:
                for key in weights.keys():  # noqa: SIM118
                    layer, _, kind = key.rpartition(".")
                    shape_of_weight = weights.get_slice(key).get_shape() if kind == "weight" else []
                    name = layer.rpartition(".")[2]
                    if len(shape_of_weight) == 2 and name not in OUTSIDE:
                        widths[name] = min(widths.get(name, shape_of_weight[0]), *shape_of_weight)
        except (OSError, SafetensorError):
            return {}  # `fetch` says that the weights cannot be read
    return widths
