"""Choose how a model is computed by proving it: every candidate route against single rows, before it is used.

The truth is transformers' own forward pass of one prompt and response at a time, without padding, mask or cache. A
route is accepted if the log-probs of two comparisons and the gradient of a weighted sum of them are equal to it, first
on a shrunken copy of the model (few layers, a small vocabulary, short windows) and then on the real weights.

Results are stored by configuration, code of this package's models, versions and attention, so only the first load of
an architecture pays for the proof.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from prefdag.config.sections.adapter import Adapter
from prefdag.data.token_store import Comparison
from prefdag.errors import UserError
from prefdag.models.adapters import attach
from prefdag.models.attention.interface import NAME, lowering
from prefdag.models.logprobs import logprobs
from prefdag.models.packing import pack
from prefdag.models.route import CANDIDATES, Route, implementation, set_route
from prefdag.models.shrinking import VOCABULARY, build_shrunken, first_line, probes, single_logprobs

TOLERANCE = 2e-4  # relative; rounding in float32 reaches 1e-5, a mistake in mask or position more than 1e-2
LOGPROBS = "log-probs"
Values = dict[str, Tensor]


def chosen_route(config: PretrainedConfig, where: str, adapter: Adapter | None = None) -> Route:
    """Return the fastest route that equals single rows on a shrunken copy of a model.

    Args:
        config: the model's configuration.
        where: the folder or file that an error names.
        adapter: settings of the adapter that is attached to the model.

    Raises:
        UserError: if no route is equal, or the architecture is not a causal language model that can be built.
    """
    path = proof_path(config, "logprobs", adapter)
    if path.is_file():
        return Route.parse_json(path.read_text(), str(path))
    route = prove(config, where, adapter)
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
    pairs = probes(len(weight))
    with torch.no_grad():
        with implementation(model, "eager"):
            truth = torch.cat([single_logprobs(model, one) for one in pairs])
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


def proof_path(config: PretrainedConfig, kind: str, adapter: Adapter | None = None) -> Path:
    """Return the file of a proof; its name states configuration, code, versions and attention."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "dtype")}
    code = [path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))]
    versions = [torch.__version__, version("transformers"), lowering(torch.device("cpu"), torch.float32)]
    if adapter is not None:
        versions += [version("peft"), adapter.canonical()]
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


def prove(config: PretrainedConfig, where: str, adapter: Adapter | None = None) -> Route:
    try:
        built = build_shrunken(config, where)
        if adapter is not None:
            _attach_lively(built, adapter)
    except UserError as error:  # the slowest route is then checked on the real weights alone
        return CANDIDATES[-1].model_copy(update={"reason": error.args[0]})
    pairs, failures = probes(VOCABULARY), list[str]()
    try:
        truth = _measure(built, lambda model: torch.cat([single_logprobs(model, one) for one in pairs]))
    except Exception as error:
        raise UserError(f"{where}: {config.model_type!r} has no plain forward pass ({first_line(error)})") from None
    if not _is_causal(built):
        raise UserError(
            f"{where}: {config.model_type!r} is no causal language model: tokens read the tokens after them; "
            "take a decoder (of BERT's relatives, one whose config.json has is_decoder: true)"
        )
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


def _is_causal(model: PreTrainedModel) -> bool:
    """Return whether the log-prob of a token stays as it is when tokens are appended."""
    prompt, (response, _) = probes(VOCABULARY)[0].prompt, probes(VOCABULARY)[0].responses
    with torch.no_grad():
        short, long = (single_logprobs(model, Comparison(prompt, (part,))) for part in (response[:1], response))
    return relative_error(long[:1], short) <= TOLERANCE


def _attach_lively(model: PreTrainedModel, adapter: Adapter) -> None:
    """Attach an adapter that changes every layer, over weights in float32."""
    attach(model, adapter.model_copy(update={"base": "float32", "dropout": 0.0}), seed=0)
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)


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
