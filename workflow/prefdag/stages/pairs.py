"""Comparisons by the DPO paper's controlled protocol: sampled from the SFT policy, labelled by the ground truth.

The same samples are written as rankings too, each prompt's responses in one row, for losses of more than two.
"""

import itertools
import json
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefdag.config.pairs import Pairs
from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import Prompt, as_text
from prefdag.data.adapters.registry import has_prompts, iter_prompts
from prefdag.data.detokenize import decode_response
from prefdag.data.tokenization import encode_prompts, load_tokenizer, stop_token
from prefdag.models.generation import sample
from prefdag.models.loading import load_policy, set_up
from prefdag.models.window import check_window
from prefdag.rewards.ground_truth import GroundTruth, load_ground_truth
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.seeds import named_seed

SPLITS = ("train", "validation", "test")
Scored = tuple[float, str]  # a response after its reward


class Job(Section):
    pairs: Pairs
    prepare: Prepare


def run(job: Job, workspace: Workspace, *, policy: Path, rows: Path, classifier: Path | None = None) -> dict[str, Any]:
    """Sample responses to every prompt and write all pairs of different reward, the better first, and the rankings."""
    device = set_up(job.pairs.threads)
    truth = load_ground_truth(job.pairs.reward, classifier, device)
    workspace.log_model_input("policy", "sft")
    if classifier is not None:
        workspace.log_model_input("classifier", "classifier")
    model = load_policy(policy.parent / "model", device)
    tokenizer = load_tokenizer(policy.parent / "model")
    reach = job.prepare.max_prompt_tokens + job.pairs.max_new_tokens
    check_window(policy.parent / "model", reach, "prepare.max_prompt_tokens and pairs.max_new_tokens")
    facts = {}
    (workspace.output / "rankings").mkdir()
    # A split without prompts of its own is held out of train by `prepare`.
    for split in [name for name in SPLITS if name == "train" or has_prompts(rows.parent, name)]:
        texts = list(itertools.islice(iter_prompts(rows.parent, job.prepare.adapter, split), job.pairs.max_prompts))
        answers, unfinished = _answers(job, model, tokenizer, split, texts)
        facts[split] = {"prompts": len(texts), "unfinished": unfinished}
        scored = [_scored(truth, prompt, responses) for prompt, responses in zip(texts, answers, strict=True)]
        facts[split] |= write_pairs(workspace.output / f"{split}.jsonl", texts, scored)
        facts[split] |= write_rankings(
            workspace.output / f"rankings/{split}.jsonl", texts, scored, job.pairs.num_samples
        )
        print(f"pairs: {split}: {facts[split]}", flush=True)
    (workspace.output / "summary.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    workspace.journal.artifact(workspace.output / "summary.json", "summary.json")
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
    for drawn in sample(model, encoded, keys, job.pairs, stop_token(tokenizer, job.prepare), f"pairs: {split}"):
        if not drawn.ended:
            unfinished += 1
            continue
        _, answers[drawn.prompt][drawn.sample] = decode_response(tokenizer, encoded[drawn.prompt], drawn.ids)
    return [[found[number] for number in sorted(found)] for found in answers], unfinished


def _scored(truth: GroundTruth, prompt: Prompt, responses: list[str]) -> list[Scored]:
    values = truth([as_text(prompt) + response for response in responses])
    return list(zip(values.tolist(), responses, strict=True))


def write_pairs(path: Path, texts: Sequence[Prompt], answers: list[list[Scored]]) -> dict[str, int]:
    """One row per pair of responses to one prompt; ties state no preference and are counted, not written."""
    pairs = ties = 0
    with path.open("w", encoding="utf-8") as stream:
        for prompt, scored in zip(texts, answers, strict=True):
            for first, second in itertools.combinations(scored, 2):
                if first[0] == second[0]:
                    ties += 1
                    continue
                stream.write(_row(prompt, sorted([first, second], key=itemgetter(0), reverse=True)))
                pairs += 1
    return {"pairs": pairs, "ties": ties}


def write_rankings(path: Path, texts: Sequence[Prompt], answers: list[list[Scored]], size: int) -> dict[str, int]:
    """One row per prompt, its `size` responses best first.

    Counted, not written: prompts with fewer finished responses, and those of which two tie, as these have no order.
    """
    counts = {"rankings": 0, "rankings_short": 0, "rankings_tied": 0}
    with path.open("w", encoding="utf-8") as stream:
        for prompt, scored in zip(texts, answers, strict=True):
            if len(scored) < size:
                counts["rankings_short"] += 1
            elif len({score for score, _ in scored}) < size:
                counts["rankings_tied"] += 1
            else:
                stream.write(_row(prompt, sorted(scored, reverse=True)))
                counts["rankings"] += 1
    return counts


def _row(prompt: Prompt, scored: list[Scored]) -> str:
    scores, responses = zip(*scored, strict=True)
    asked = prompt if isinstance(prompt, str) else [{"role": role, "content": content} for role, content in prompt]
    return json.dumps({"prompt": asked, "responses": responses, "scores": scores}, ensure_ascii=False) + "\n"
