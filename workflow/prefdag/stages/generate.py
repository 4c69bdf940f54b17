"""Sample responses of one policy to held-out prompts, with log-probs of their tokens, or copy the chosen responses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from prefdag.config.answer_sets import AnswerSet, weights_of
from prefdag.config.generation import Generation
from prefdag.config.prepare import Prepare
from prefdag.data.detokenize import decode_response
from prefdag.data.settled import settle
from prefdag.data.token_store import Store
from prefdag.data.tokenization import load_tokenizer, stop_token
from prefdag.errors import UserError
from prefdag.models.generation import Sample, sample
from prefdag.models.loading import load_policy, set_up
from prefdag.models.vllm import sample_vllm
from prefdag.models.window import check_window
from prefdag.provenance.manifest import read_manifest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Count, Section


class Job(Section):
    generate: Generation
    checkpoint: Count | None = None


def run(
    job: Job, workspace: Workspace, *, comparisons: Path, policy: Path | None = None, tokenizer: Path | None = None
) -> dict[str, Any]:
    """Sample from a policy at the distinct prompts of the test split; every policy draws the same noise.

    Without a policy the answers are the test split's chosen responses, of a prompt's first comparison.
    """
    model = policy or tokenizer
    if model is None:
        raise UserError("generate --policy: give a policy's manifest, or --tokenizer one for the chosen responses")
    workspace.log_dataset("comparisons", "test", "evaluation")
    reader = load_tokenizer(model.parent / "model")
    written = read_manifest(comparisons).content["config"]["prepare"]
    end = stop_token(reader, settle(Prepare.parse(written, str(comparisons), "config.prepare"), reader))
    store = Store.open(comparisons.parent / "test")
    numbers, first = np.unique(store.prompts, return_index=True)
    numbers, first = numbers[: job.generate.max_prompts], first[: job.generate.max_prompts]
    prompts = [store[int(index)].prompt.tolist() for index in first]
    if policy is None:
        best = [store[int(index)].responses[0].tolist() for index in first]
        answers = [Sample(index, 0, ids, [], end in ids[-1:]) for index, ids in enumerate(best)]
    else:
        answers = _sampled(job, workspace, policy, prompts, numbers.tolist(), end)
    path = workspace.output / "generations.jsonl"
    _write(path, reader, prompts, numbers.tolist(), answers)
    facts = {"generations": len(answers), "ended": sum(one.ended for one in answers) / len(answers)}
    workspace.results(facts)
    workspace.journal.artifact(path, "generations.jsonl")
    return facts


def _sampled(
    job: Job, workspace: Workspace, policy: Path, prompts: list[list[int]], numbers: list[int], end: int
) -> list[Sample]:
    """The policy's responses in the order of (prompt, sample); a prompt's number names its noise."""
    weights, settings = weights_of(policy, job.checkpoint), job.generate
    device = set_up(settings.threads)
    workspace.log_model_input(
        "policy", AnswerSet.parse(workspace.name or "policy").policy, str(weights.relative_to(policy.parent))
    )
    reach = max(map(len, prompts), default=0) + settings.max_new_tokens
    check_window(weights, reach, "prompts and generate.max_new_tokens")
    if settings.backend == "vllm":
        samples = sample_vllm(weights, prompts, numbers, settings, end)
    else:
        title = f"generate: {workspace.name or 'policy'}"
        samples = sample(load_policy(weights, device), prompts, numbers, settings, end, title)
    return sorted(samples, key=lambda one: (one.prompt, one.sample))


def _write(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    numbers: list[int],
    samples: Sequence[Sample],
) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for one in samples:
            prompt, response = decode_response(tokenizer, prompts[one.prompt], one.ids)
            row = {"prompt_id": numbers[one.prompt], "sample": one.sample, "prompt": prompt, "response": response}
            row |= {"prompt_ids": prompts[one.prompt], "ids": one.ids, "logprobs": one.logprobs, "ended": one.ended}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
