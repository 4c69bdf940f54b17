"""Responses of one policy to the held-out prompts, with the log-probs of their tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from prefdag.config.generate import Generate
from prefdag.config.prepare import Prepare
from prefdag.config.section import Section
from prefdag.detokenize import prompt_and_response
from prefdag.manifest import read_manifest
from prefdag.models import load_policy, set_up
from prefdag.sampling import sample
from prefdag.stage import Workspace
from prefdag.store import Store
from prefdag.tokens import ending, load_tokenizer
from prefdag.window import check_window


class Job(Section):
    generate: Generate


def run(job: Job, here: Workspace, *, policy: Path, comparisons: Path) -> dict[str, Any]:
    """Sample from a policy at the distinct prompts of the test split; every policy draws the same noise."""
    settings = job.generate
    device = set_up(settings.threads)
    here.reads_model("policy", here.name or "policy")
    here.reads_dataset("comparisons", "test", "evaluation")
    model = load_policy(policy.parent / "model", device)
    tokenizer = load_tokenizer(policy.parent / "model")
    written = read_manifest(comparisons).content["config"]["prepare"]
    end = ending(tokenizer, Prepare.parse(written, str(comparisons), "config.prepare"))
    store = Store.open(comparisons.parent / "test")
    numbers, first = np.unique(store.prompts, return_index=True)
    numbers, first = numbers[: settings.max_prompts], first[: settings.max_prompts]
    prompts = [store[int(index)].prompt.tolist() for index in first]
    reach = max(map(len, prompts), default=0) + settings.max_new_tokens
    check_window(policy.parent / "model", reach, "prompts and generate.max_new_tokens")
    drawn = sorted(
        sample(model, prompts, [int(number) for number in numbers], settings, end),
        key=lambda one: (one.prompt, one.sample),
    )
    path = here.output / "generations.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for one in drawn:
            prompt, response = prompt_and_response(tokenizer, prompts[one.prompt], one.ids)
            row = {"prompt_id": int(numbers[one.prompt]), "sample": one.sample, "prompt": prompt, "response": response}
            row |= {"prompt_ids": prompts[one.prompt], "ids": one.ids, "logprobs": one.logprobs, "ended": one.ended}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    facts = {"generations": len(drawn), "ended": sum(one.ended for one in drawn) / len(drawn)}
    here.results(facts)
    here.journal.artifact(path, "generations.jsonl")
    return facts
