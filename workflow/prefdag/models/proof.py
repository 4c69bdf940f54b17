"""Choose how a model is computed by proving it: every candidate route against single rows, before it is used.

The truth is transformers' own forward pass of one prompt and response at a time, without padding, mask or cache. A
route is accepted if the log-probs of two comparisons and the gradient of a weighted sum of them are equal to it, first
on a shrunken copy of the model (few layers, a small vocabulary, short windows) and then on the real weights.

Results are stored by configuration, code of this package's models, versions and attention, so only the first load of
an architecture pays for the proof.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from prefdag.data.token_store import Comparison
from prefdag.errors import UserError
from prefdag.models.attention.interface import NAME, lowering
from prefdag.models.logprobs import logprobs
from prefdag.models.packing import pack
from prefdag.models.route import CANDIDATES, Route, implementation, set_route

TOLERANCE = 2e-4  # relative; rounding in float32 reaches 1e-5, a mistake in mask or position more than 1e-2
VOCABULARY = 64
LARGEST = 300_000_000  # parameters
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_heads": 8,  # of Mamba 2: twice hidden_size over head_dim
    "n_mamba_heads": 8,
    "mamba_headdim": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "rotary_dim": 8,
}
NARROW = re.compile(r"window|chunk_size")  # attention windows, which two short comparisons must reach over
LOGPROBS = "log-probs"
Values = dict[str, Tensor]


def chosen_route(config: PretrainedConfig, where: str) -> Route:
    """Return the fastest route that equals single rows on a shrunken copy of a model.

    Args:
        config: the model's configuration.
        where: the folder or file that an error names.

    Raises:
        UserError: if no route is equal, or the architecture is not a causal language model that can be built.
    """
    path = proof_path(config, "logprobs")
    if path.is_file():
        return Route.parse_json(path.read_text(), str(path))
    route = prove(config, where)
    write_proof(path, route.model_dump_json())
    return route


def is_proved(config: PretrainedConfig) -> bool:
    """Return whether a route of this configuration is stored."""
    return proof_path(config, "logprobs").is_file()


def check_weights(model: PreTrainedModel, route: Route, where: str) -> None:
    """Compare the route with single rows on the real weights, without gradients.

    Raises:
        UserError: if the log-probs differ.
    """
    weight: Any = model.get_input_embeddings().weight
    pairs = _comparisons(len(weight))
    with torch.no_grad():
        with implementation(model, "eager"):
            truth = torch.cat([_single(model, one) for one in pairs])
        segments = pack(pairs, [[0, 1], [2]]).to(truth.device)
        error = relative_error(logprobs(model, segments).tokens, truth)
    if not error <= 10 * TOLERANCE:
        raise UserError(
            f"{where}: log-probs on the route `{route}` differ from single rows by {error:.2g}; "
            "report this architecture, or remove its entry in the folder of proofs and try again"
        )


def proof_folder() -> Path:
    """Return the folder that holds proofs: $XDG_CACHE_HOME/prefdag/proofs, by default below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefdag" / "proofs"


def proof_path(config: PretrainedConfig, kind: str) -> Path:
    """Return the file of a proof; its name states configuration, code, versions and attention."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "dtype")}
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))]
    versions = [torch.__version__, version("transformers"), lowering(torch.device("cpu"), torch.float32)]
    text = json.dumps([values, versions], sort_keys=True, default=str).encode()
    digest = hashlib.sha256(b"\0".join([text, *code])).hexdigest()
    return proof_folder() / f"{config.model_type}-{kind}-{digest[:16]}.json"


def write_proof(path: Path, text: str) -> None:
    """Write the result of a proof, at once for jobs that run at the same time."""
    with suppress(OSError):  # without a home directory that can be written, each job proves again
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(path)


def prove(config: PretrainedConfig, where: str) -> Route:
    try:
        built = build_shrunken(config, where)
    except UserError as error:  # the slowest route is then checked on the real weights alone
        return CANDIDATES[-1].model_copy(update={"reason": error.args[0]})
    pairs, failures = _comparisons(VOCABULARY), list[str]()
    try:
        truth = _measure(built, lambda model: torch.cat([_single(model, one) for one in pairs]))
    except Exception as error:
        raise UserError(f"{where}: {config.model_type!r} has no plain forward pass ({first_line(error)})") from None
    for candidate in CANDIDATES:
        try:
            with _attention(built, candidate):
                values = _measure(built, lambda model: logprobs(model, pack(pairs, [[0, 1], [2]])).tokens)
        except Exception as error:  # a candidate may fail in any way: transformers' code and kernels run in it
            failures.append(f"{candidate}: {first_line(error)}")
            continue
        name, distance = _worst(values, truth)
        if distance <= TOLERANCE:
            return candidate.model_copy(update={"reason": "; ".join(failures)})
        failures.append(f"{candidate}: {name} differs by {distance:.2g}")
    raise UserError(f"{where}: no way to compute {config.model_type!r} equals single rows ({'; '.join(failures)})")


def build_shrunken(config: PretrainedConfig, where: str) -> PreTrainedModel:
    """Build a small copy of a model with random weights large enough to show mistakes.

    Raises:
        UserError: if transformers cannot build it as a causal language model.
    """
    failure = ""
    for narrow in (True, False):
        try:
            small = shrunken(config, narrow)
            _check_size(small)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(small, dtype=torch.float32, attn_implementation="eager")
                for parameter in model.parameters():
                    parameter.data += 0.1 * torch.randn_like(parameter)
            model = model.eval()
            with torch.no_grad():
                _single(model, _comparisons(VOCABULARY)[0])
            return model
        except Exception as error:  # each architecture refuses sizes in its own way
            failure = first_line(error)
    raise UserError(f"{where}: cannot build {config.model_type!r} as a causal language model ({failure})")


def _check_size(config: PretrainedConfig) -> None:
    """Raise `ValueError` for a model that is too large to prove on a laptop."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST:
        raise ValueError(f"a copy with {config.get_text_config().num_hidden_layers} layers has {size:,} parameters")


def shrunken(config: PretrainedConfig, narrow: bool) -> PretrainedConfig:
    """Return a small copy of a configuration, with the same kinds of layers.

    Args:
        config: the model's configuration.
        narrow: whether to shrink widths too, and not only depth, vocabulary and windows.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    layers = text.num_hidden_layers
    kinds = list(getattr(text, "layer_types", None) or [])
    depth = min(layers, max([2, *(kinds.index(kind) + 1 for kind in kinds)]))
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, key, value[:depth])
        elif isinstance(value, int) and not isinstance(value, bool) and NARROW.search(key) and "layers" not in key:
            setattr(text, key, min(value, 4))
    if getattr(text, "attention_types", None):  # GPT-Neo: [[kinds, repeats], ...]
        text.attention_types = [[text.attention_types[0][0], 1]]
        depth = len(text.attention_types[0][0])
        text.attention_layers = text.attention_layers[:depth]
    text.num_hidden_layers, text.vocab_size = depth, VOCABULARY
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, key, 0 if getattr(text, key, None) is not None else None)
    if narrow:
        heads = getattr(text, "num_attention_heads", None)
        for key, size in SIZES.items():
            value = getattr(text, key, None)
            if isinstance(value, int) and key not in _computed(text):
                setattr(text, key, min(value, size))
        if getattr(text, "head_dim", 0) is None:
            text.head_dim = SIZES["head_dim"]
        for key in ("num_key_value_heads", "num_kv_heads"):
            groups = getattr(text, key, None)
            if isinstance(groups, int):
                setattr(text, key, text.num_attention_heads if groups == heads else 1 if groups == 1 else 2)
    return small


def _computed(config: PretrainedConfig) -> set[str]:
    """Return the attributes that a configuration computes from others."""
    return {name for name in dir(type(config)) if isinstance(getattr(type(config), name, None), property)}


def _comparisons(vocabulary: int) -> list[Comparison]:
    """Return three comparisons of two responses, of lengths that differ; two of them share a packed row."""
    tokens = torch.randint(3, vocabulary, (60,), generator=torch.Generator().manual_seed(0)).to(torch.int32).numpy()
    sizes, at, result = ((7, 5, 9), (3, 4, 6), (2, 1, 8)), 0, []
    for prompt, first, second in sizes:
        ends = (at + prompt, at + prompt + first, at + prompt + first + second)
        parts = (tokens[at : ends[0]], tokens[ends[0] : ends[1]], tokens[ends[1] : ends[2]])
        result.append(Comparison(parts[0], parts[1:]))
        at = ends[2]
    return result


def _single(model: PreTrainedModel, comparison: Comparison) -> Tensor:
    """Return log-probs of a comparison's response tokens, from one forward pass for each response."""
    device, parts = next(model.parameters()).device, []
    for response in comparison.responses:
        ids = torch.tensor([[*comparison.prompt.tolist(), *response.tolist()]], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(comparison.prompt) - 1 : -1].float()
        target = ids[0, len(comparison.prompt) :]
        parts.append(logits.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1))
    return torch.cat(parts)


def _measure(model: PreTrainedModel, compute: Any) -> Values:
    """Return log-probs, and the gradient of a weighted sum of them by each parameter that it reaches."""
    model.zero_grad()
    with torch.enable_grad():
        values = compute(model)
        (values * torch.linspace(-1, 1, len(values), dtype=values.dtype)).sum().backward()
    parts = {f"the gradient of {name}": part.grad for name, part in model.named_parameters()}
    zeros = torch.zeros(())
    return {LOGPROBS: values.detach()} | {name: zeros if part is None else part.clone() for name, part in parts.items()}


def _worst(values: Values, truth: Values) -> tuple[str, float]:
    """Return the name and size of the largest relative error; a gradient that should vanish has rounding errors."""
    largest = max(value.abs().max().item() for name, value in truth.items() if name != LOGPROBS)
    errors = {name: relative_error(values[name], truth[name], 1e-2 * largest) for name in truth}
    return max(errors.items(), key=lambda pair: pair[1])


def relative_error(values: Tensor, truth: Tensor, least: float = 1e-3) -> float:
    """Return the largest difference relative to the largest value; NaN is infinite.

    Args:
        values, truth: of one shape.
        least: the smallest value to be relative to.
    """
    error = ((values - truth).abs().max() / truth.abs().max().clamp(min=least)).item()
    return error if error == error else float("inf")


@contextmanager
def _attention(model: PreTrainedModel, route: Route) -> Iterator[None]:
    set_route(model, route)
    model.set_attn_implementation(attention_of(route))
    yield


def attention_of(route: Route) -> str:
    """Return the attention implementation that a route loads a model with."""
    return NAME if route.kind == "segments" else "eager"


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
