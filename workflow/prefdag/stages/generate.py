"""Sample responses of one policy to held-out prompts, with log-probs of their tokens, or copy the chosen responses.

A round of on-policy training samples at the prompts of `train` and `validation` instead.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from prefdag.config.answer_sets import AnswerSet, weights_of
from prefdag.config.prepare import Prepare
from prefdag.config.sections.generation import Generation
from prefdag.data.detokenize import decode_response
from prefdag.data.settled import settle
from prefdag.data.token_store import Comparison, Store
from prefdag.data.tokenization import load_tokenizer, stop_token
from prefdag.errors import UserError
from prefdag.models.generation import Sample, sample
from prefdag.models.loading import load_policy, merged_folder, set_up
from prefdag.models.vllm import sample_vllm
from prefdag.provenance.manifest import read_manifest
from prefdag.runtime.stage import Workspace
from prefdag.schema import Count, Section
from prefdag.seeds import named_seed


class Job(Section):
    generate: Generation
    checkpoint: Count | None = None
    round: Count | None = None
    split: Literal["validation"] | None = Field(None, exclude_if=lambda split: split is None)


def run(
    job: Job, workspace: Workspace, *, comparisons: Path, policy: Path | None = None, tokenizer: Path | None = None
) -> dict[str, Any]:
    """Sample from a policy at the distinct prompts of the test split; every policy draws the same noise.

    Candidates of a search answer the validation split instead. Without a policy the answers are the split's chosen
    responses, of a prompt's first comparison. In a round, the prompts are those of training and validation, and each
    round draws other noise.
    """
    model = policy or tokenizer
    if model is None:
        raise UserError("generate --policy: give a policy's manifest, or --tokenizer one for the chosen responses")
    splits = (job.split or "test",) if job.round is None else ("train", "validation")
    for split in splits:
        workspace.log_dataset("comparisons", split, "evaluation")
    reader = load_tokenizer(model.parent / "model")
    written = read_manifest(comparisons).content["config"]["prepare"]
    end = stop_token(reader, settle(Prepare.parse(written, str(comparisons), "config.prepare"), reader))
    answered = [
        one for split in splits for one in _first_comparisons(comparisons.parent / split, split, job, policy is None)
    ]
    numbers = [number for _, number, _ in answered]
    prompts = [one.prompt.tolist() for _, _, one in answered]
    if policy is None:
        best = [one.responses[0].tolist() for _, _, one in answered]
        answers = [Sample(index, 0, ids, [], end in ids[-1:]) for index, ids in enumerate(best)]
    else:
        # A prompt's number names its noise.
        keys = numbers if job.round is None else [named_seed(0, "round", job.round, number) for number in numbers]
        if job.split:  # other noise than that of the test prompts
            keys = [named_seed(0, job.split, number) for number in numbers]
        answers = _sampled(job, workspace, policy, prompts, keys, end)
    path = workspace.output / "generations.jsonl"
    names = [{} if job.round is None else {"split": split} for split, _, _ in answered]
    _write(path, reader, prompts, numbers, answers, names)
    facts = {"generations": len(answers), "ended": sum(one.ended for one in answers) / len(answers)}
    workspace.results(facts)
    workspace.journal.artifact(path, "generations.jsonl")
    return facts


def _first_comparisons(folder: Path, split: str, job: Job, is_chosen: bool) -> list[tuple[str, int, Comparison]]:
    """Return the first comparison of each prompt that is answered: split, number of the prompt, comparison.

    A round takes as many of the training prompts as it may, those that follow the ones of the round before it. Raises
    `UserError` if the chosen responses are asked for and may not exist.
    """
    store = Store.open(folder)
    if is_chosen and store.num_responses == 1 and store.scores is not None:
        raise UserError(
            f"{folder}: holds single labelled responses, so a prompt may have no good one; leave out generate.chosen "
            "and judge.against"
        )
    numbers, first = np.unique(store.prompts, return_index=True)
    most = min(job.generate.max_prompts or len(numbers), len(numbers))
    start = (job.round - 1) * most if job.round is not None and split == "train" else 0
    places = (start + np.arange(most)) % max(len(numbers), 1)
    return [(split, int(numbers[place]), store[int(first[place])]) for place in places]


def _sampled(
    job: Job, workspace: Workspace, policy: Path, prompts: list[list[int]], keys: list[int], end: int
) -> list[Sample]:
    """The policy's responses in the order of (prompt, sample); a key names a prompt's noise."""
    weights, settings = weights_of(policy, job.checkpoint), job.generate
    device = set_up(settings.threads)
    name = AnswerSet.parse(workspace.name or "policy").policy if job.round is None else policy.parent.name
    workspace.log_model_input("policy", name, str(weights.relative_to(policy.parent)))
    if settings.backend == "vllm":
        with merged_folder(weights) as folder:
            samples: Iterable[Sample] = [*sample_vllm(folder, prompts, keys, settings, end)]
    else:
        title = f"generate: {workspace.name or 'policy'}"
        samples = sample(load_policy(weights, device), prompts, keys, settings, end, title)
    return sorted(samples, key=lambda one: (one.prompt, one.sample))


def _write(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    numbers: list[int],
    samples: Sequence[Sample],
    further: Sequence[dict[str, str]],
) -> None:
    """Write a line per sample; further: what the lines of each prompt state as well."""
    with path.open("w", encoding="utf-8") as stream:
        for one in samples:
            prompt, response = decode_response(tokenizer, prompts[one.prompt], one.ids)
            row = {"prompt_id": numbers[one.prompt], "sample": one.sample, "prompt": prompt, "response": response}
            row |= {"prompt_ids": prompts[one.prompt], "ids": one.ids, "logprobs": one.logprobs, "ended": one.ended}
            row |= further[one.prompt]
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
