"""Sampling by vLLM, for policies and numbers of responses that are slow otherwise: `generate: {backend: vllm}`.

vLLM is none of prefdag's requirements and is imported when it is asked for. Its noise is its own: every response has a
seed, named as in `prefdag.models.generation`, but the texts are not those of the other backend.
"""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from prefdag.config.generation import Generation
from prefdag.errors import UserError
from prefdag.models.generation import Sample
from prefdag.seeds import named_seed


def sample_vllm(
    weights: Path, prompts: Sequence[Sequence[int]], keys: Sequence[int], settings: Generation, eos: int
) -> Iterator[Sample]:
    """Draw `num_samples` responses to each prompt (token ids) from the policy in the folder `weights`.

    Log-probs are of the policy itself, as `prefdag.models.generation` gives them. Raises `UserError` without vLLM.
    """
    vllm = _vllm()
    draws = settings.num_samples if settings.temperature else 1  # greedy samples of a prompt are all alike
    wanted = [(index, number) for index in range(len(prompts)) for number in range(draws)]
    # float32 weights are run in bf16, as autocast does; generation_config.json may not change what the suite says.
    engine = vllm.LLM(
        model=str(weights),
        dtype="bfloat16",
        seed=settings.seed,
        skip_tokenizer_init=True,
        generation_config="vllm",
        logprobs_mode="raw_logprobs",
    )
    drawn = engine.generate(
        [{"prompt_token_ids": list(prompts[index])} for index, _ in wanted],
        [
            vllm.SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_new_tokens,
                seed=named_seed(settings.seed, "sampling", keys[index], number),
                stop_token_ids=[eos],
                ignore_eos=True,  # the suite's end-of-turn is what ends a response, and nothing else
                logprobs=0,  # of the token that was drawn
                detokenize=False,
            )
            for index, number in wanted
        ],
        use_tqdm=False,
    )
    for (index, number), request in zip(wanted, drawn, strict=True):
        ids = [int(token) for token in request.outputs[0].token_ids]
        values = [float(found[token].logprob) for token, found in zip(ids, request.outputs[0].logprobs, strict=True)]
        for copy in range(number, settings.num_samples, draws):
            yield Sample(index, copy, ids, values, ids[-1] == eos)


def _vllm() -> ModuleType:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise UserError(
            f"generate.backend: vllm cannot be imported ({error}); install it beside prefdag, or leave `backend` out"
        ) from None
