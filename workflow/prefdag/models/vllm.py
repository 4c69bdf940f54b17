"""Sample by vLLM, for large policies or many responses: `generate: {backend: vllm}`, `online: {sampler: vllm}`.

vLLM is not a requirement of prefdag; it is imported on use. It has its own noise: every response has a seed, named as
in `prefdag.models.generation`, but the texts differ from those of the default backend.
"""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from prefdag.config.sections.generation import Generation
from prefdag.config.sections.sampling import Sampling
from prefdag.errors import UserError
from prefdag.models.generation import Sample
from prefdag.seeds import named_seed

GPU_SHARE = 0.4  # of the GPU's memory that a training's engine may take while it is awake


def sample_vllm(
    weights: Path, prompts: Sequence[Sequence[int]], keys: Sequence[int], settings: Generation, eos: int
) -> Iterator[Sample]:
    """Sample `num_samples` responses to each prompt.

    Args:
        weights: the policy's folder.
        prompts: token ids of each prompt.
        keys: names of each prompt's noise stream.
        settings: temperature, top_p, lengths and seed.
        eos: the end-of-turn's id.

    Yields:
        Samples, as `prefdag.models.generation.sample` does, with log-probs of the policy itself.

    Raises:
        UserError: if vLLM cannot be imported.
    """
    vllm = import_vllm("generate.backend")
    yield from _answers(vllm, _engine(vllm, weights, settings.seed, "raw_logprobs"), prompts, keys, settings, eos)


class Engine:
    """An engine whose weights are those of a folder as they are when it samples.

    Between two calls it sleeps: its weights and cached keys leave the GPU to the training. Each call loads the folder's
    weights (safetensors) again.

    Args:
        weights: the folder, with a complete model.
        seed: of the engine; each response has its own.
    """

    def __init__(self, weights: Path, seed: int) -> None:
        self.vllm = import_vllm("online.sampler")
        self.engine = _engine(
            self.vllm, weights, seed, "processed_logprobs", enable_sleep_mode=True, gpu_memory_utilization=GPU_SHARE
        )
        self.sleeps = False

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[object],
        settings: Sampling,
        eos: int,
        top_k: int | None = None,
    ) -> list[Sample]:
        """Sample `num_samples` responses to each prompt, with log-probs under the sampling distribution."""
        if self.sleeps:
            self.engine.wake_up(tags=["weights"])
            self.engine.collective_rpc("reload_weights")
            self.engine.wake_up(tags=["kv_cache"])
        options = {} if top_k is None else {"top_k": top_k}
        samples = list(_answers(self.vllm, self.engine, prompts, keys, settings, eos, **options))
        self.engine.sleep(level=2)  # level 1 would copy the weights to the CPU, only to be replaced
        self.sleeps = True
        return samples


def _engine(vllm: ModuleType, weights: Path, seed: int, logprobs_mode: str, **options: Any) -> Any:
    # bf16, as under autocast. generation_config="vllm" ignores the model's file, which would override the suite.
    return vllm.LLM(
        model=str(weights),
        dtype="bfloat16",
        seed=seed,
        skip_tokenizer_init=True,
        generation_config="vllm",
        logprobs_mode=logprobs_mode,
        **options,
    )


def _answers(
    vllm: ModuleType,
    engine: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[object],
    settings: Sampling,
    eos: int,
    **options: Any,
) -> Iterator[Sample]:
    draws = settings.num_samples if settings.temperature else 1  # greedy samples of a prompt are equal
    jobs = [(index, number) for index in range(len(prompts)) for number in range(draws)]
    requests = engine.generate(
        [{"prompt_token_ids": list(prompts[index])} for index, _ in jobs],
        [
            vllm.SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_new_tokens,
                seed=named_seed(settings.seed, "sampling", keys[index], number),
                stop_token_ids=[eos],
                ignore_eos=True,  # only the suite's end-of-turn ends a response
                logprobs=0,  # of the sampled token alone
                detokenize=False,
                **options,
            )
            for index, number in jobs
        ],
        use_tqdm=False,
    )
    for (index, number), request in zip(jobs, requests, strict=True):
        ids = [int(token) for token in request.outputs[0].token_ids]
        values = [float(entry[token].logprob) for token, entry in zip(ids, request.outputs[0].logprobs, strict=True)]
        for copy in range(number, settings.num_samples, draws):
            yield Sample(index, copy, ids, values, ids[-1] == eos)


def import_vllm(key: str) -> ModuleType:
    """Import vLLM. Raises `UserError`, which names the suite's key that asks for it, if that fails."""
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"{key}: vllm cannot be imported ({error}); `pip install vllm`, or remove `{key.rpartition('.')[2]}`"
        ) from None
