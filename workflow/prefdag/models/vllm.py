"""Sample by vLLM, for large policies or many responses: `generate: {backend: vllm}`.

vLLM is not a requirement of prefdag; it is imported on use. It has its own noise: every response has a seed, named as
in `prefdag.models.generation`, but the texts differ from those of the default backend.
"""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from prefdag.config.sections.generation import Generation
from prefdag.errors import UserError
from prefdag.models.generation import Sample
from prefdag.seeds import named_seed


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
    vllm = _vllm()
    draws = settings.num_samples if settings.temperature else 1  # greedy samples of a prompt are equal
    jobs = [(index, number) for index in range(len(prompts)) for number in range(draws)]
    # bf16, as under autocast. generation_config="vllm" ignores the model's file, which would override the suite.
    engine = vllm.LLM(
        model=str(weights),
        dtype="bfloat16",
        seed=settings.seed,
        skip_tokenizer_init=True,
        generation_config="vllm",
        logprobs_mode="raw_logprobs",
    )
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


def _vllm() -> ModuleType:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"generate.backend: vllm cannot be imported ({error}); install it with prefdag, or remove `backend`"
        ) from None
