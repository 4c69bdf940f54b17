"""Check before any job runs that a suite's answers can be sampled: by vLLM if asked for, in the model's context."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from prefdag.config.adapter_folder import base_of_model
from prefdag.config.gguf_header import gguf_context
from prefdag.config.model import GGUF
from prefdag.config.model_folder import positions_of
from prefdag.config.suite import Suite
from prefdag.planning.machine import asks_for_slurm


def sampling_mistakes(suite: Suite) -> Iterator[str]:
    """Yield a sentence for each use of vLLM where it is not installed, and each answer longer than the context.

    The context of a model that is not on this machine yet is not known.
    """
    if not has_vllm() and not asks_for_slurm(sys.argv[1:], os.environ):
        keys = ["generate.backend"] if suite.generate.backend == "vllm" else []
        keys += [f"runs.{run.name}.sampler" for run in suite.trained if run.online and run.online.sampler == "vllm"]
        for key in keys[:1]:
            name = key.rpartition(".")[2]
            yield f"{key}: vllm is not installed on this machine; `pip install vllm`, or remove `{name}`"
    context = _context_of(suite)
    for key, tokens in _limits(suite).items():
        if context is not None and tokens >= context:
            yield (
                f"{key}: answers of {tokens} tokens leave no room for a prompt in the model's context of {context} "
                "tokens; lower it"
            )


def has_vllm() -> bool:
    """Return whether vLLM is installed, without an import of it."""
    return "vllm" in sys.modules or importlib.util.find_spec("vllm") is not None


def _limits(suite: Suite) -> dict[str, int]:
    """Return every limit of sampled answers by its key; rows that share one are named by the first of them."""
    limits = {"generate.max_new_tokens": suite.generate.max_new_tokens}
    if suite.pairs is not None:
        limits["pairs.max_new_tokens"] = suite.pairs.max_new_tokens
    limits |= {
        f"generate.variants.{name}.max_new_tokens": one.max_new_tokens
        for name, one in suite.generate.variants.items()
        if one.max_new_tokens is not None
    }
    of_rows: dict[int, str] = {}
    for run in suite.trained:
        if run.online is not None:
            of_rows.setdefault(run.online.max_new_tokens, f"runs.{run.name}.max_new_tokens")
        if run.rounds is not None and run.rounds.pairs.max_new_tokens is not None:
            of_rows.setdefault(run.rounds.pairs.max_new_tokens, f"runs.{run.name}.pairs.max_new_tokens")
    return limits | {key: tokens for tokens, key in of_rows.items()}


def _context_of(suite: Suite) -> int | None:
    """Return the positions that the suite's model was made for; None if they are not known yet."""
    if suite.model.scratch is not None:
        return suite.model.scratch.context
    if suite.model.source.endswith(GGUF):
        return gguf_context(Path(suite.model.source))
    path = Path(base_of_model(suite.model) or suite.model.source) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # `model_folder` says what is wrong with it
    return positions_of(config) if isinstance(config, dict) else None
