"""Comparisons by the DPO paper's controlled protocol: sampled from the SFT policy, labelled by the ground truth."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefdag.adapters import as_text, prompts
from prefdag.adapters.text import Prompt
from prefdag.config.pairs import Pairs
from prefdag.config.prepare import Prepare
from prefdag.config.section import Section
from prefdag.detokenize import prompt_and_response
from prefdag.models import load_policy, set_up
from prefdag.sampling import sample
from prefdag.seeds import named_seed
from prefdag.sentiment import sentiment
from prefdag.stage import Workspace
from prefdag.tokens import encode_prompts, load_tokenizer

SPLITS = ("train", "validation", "test")


class Job(Section):
    pairs: Pairs
    prepare: Prepare


def run(job: Job, here: Workspace, *, policy: Path, rows: Path) -> dict[str, Any]:
    """Sample responses to every prompt and write all pairs of different reward, the better response first."""
    device = set_up(job.pairs.threads)
    here.reads_model("policy", "sft")
    model = load_policy(policy.parent / "model", device)
    tokenizer = load_tokenizer(policy.parent / "model")
    facts = {}
    for split in SPLITS:
        texts = list(prompts(rows.parent, job.prepare.adapter, split))
        answers, unfinished = _answers(job, model, tokenizer, split, texts)
        facts[split] = {"prompts": len(texts), "unfinished": unfinished}
        facts[split] |= write_pairs(here.output / f"{split}.jsonl", texts, answers)
        print(f"pairs: {split}: {facts[split]}", flush=True)
    (here.output / "summary.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    here.journal.artifact(here.output / "summary.json", "summary.json")
    return facts


def _answers(
    job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, texts: list[Prompt]
) -> tuple[list[list[str]], int]:
    """The finished responses to each prompt, and how many never reached their end-of-turn.

    Those are left out: an end-of-turn appended to a sentence cut in half would be preferred or rejected for our cut.
    """
    encoded = encode_prompts(tokenizer, texts, job.prepare)
    keys = [named_seed(0, split, text) for text in texts]
    answers: list[dict[int, str]] = [{} for _ in texts]
    unfinished = 0
    for drawn in sample(model, encoded, keys, job.pairs, tokenizer.eos_token_id):
        if not drawn.ended:
            unfinished += 1
            continue
        _, answers[drawn.prompt][drawn.sample] = prompt_and_response(tokenizer, encoded[drawn.prompt], drawn.ids)
    return [[found[number] for number in sorted(found)] for found in answers], unfinished


def write_pairs(path: Path, texts: Sequence[Prompt], answers: list[list[str]]) -> dict[str, int]:
    """One row per pair of responses to one prompt; ties state no preference and are counted, not written."""
    pairs = ties = 0
    with path.open("w", encoding="utf-8") as stream:
        for prompt, responses in zip(texts, answers, strict=True):
            scored = list(
                zip(sentiment(as_text(prompt) + response for response in responses).tolist(), responses, strict=True)
            )
            for first, second in itertools.combinations(scored, 2):
                if first[0] == second[0]:
                    ties += 1
                    continue
                (high, better), (low, worse) = (first, second) if first[0] > second[0] else (second, first)
                asked = prompt if isinstance(prompt, str) else [{"role": r, "content": c} for r, c in prompt]
                row = {"prompt": asked, "responses": [better, worse], "scores": [high, low]}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                pairs += 1
    return {"pairs": pairs, "ties": ties}
