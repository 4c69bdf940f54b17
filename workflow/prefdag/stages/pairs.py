"""Make comparisons by the DPO paper's controlled protocol: sample from the SFT policy, label by the ground truth.

The same samples are also written as rankings, one row per prompt, for losses of more than two responses.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefdag.config.prepare import Prepare
from prefdag.config.sections.pairs import Pairs
from prefdag.data.adapters.dialogues import as_messages
from prefdag.data.adapters.records import Prompt, as_text
from prefdag.data.adapters.registry import has_prompts, iter_prompts
from prefdag.data.detokenize import decode_response
from prefdag.data.settled import settle
from prefdag.data.splits import SPLITS
from prefdag.data.tokenization import encode_prompts, load_tokenizer, stop_token
from prefdag.data.unseen import UnseenPrompts
from prefdag.errors import UserError
from prefdag.models.generation import sample
from prefdag.models.loading import load_policy, set_up
from prefdag.rewards.adoption import load_labeller
from prefdag.rewards.ground_truth import GroundTruth, load_ground_truth
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section
from prefdag.seeds import named_seed

Scored = tuple[float, str]  # reward, response
Label = Callable[[Prompt, Sequence[str]], NDArray[np.float64]]  # a prompt and N responses -> [N]


class Job(Section):
    pairs: Pairs
    prepare: Prepare


def run(
    job: Job,
    workspace: Workspace,
    *,
    policy: Path,
    rows: Path,
    classifier: Path | None = None,
    reward: Path | None = None,
) -> dict[str, Any]:
    """Sample responses to every prompt; write all pairs of different reward, the better first, and the rankings.

    Args:
        job: the sections `pairs` and `prepare`.
        workspace: output folder and journal of the job.
        policy: manifest of SFT.
        rows: manifest of `fetch`, whose rows hold the prompts.
        classifier: manifest of the classifier, if it is the ground truth.
        reward: manifest of the fetched reward model, if it labels.

    Returns:
        Counts of prompts, pairs and rankings, by split.
    """
    device = set_up(job.pairs.threads)
    workspace.log_model_input("policy", "sft")
    if classifier is not None:
        workspace.log_model_input("classifier", "classifier")
    model = load_policy(policy.parent / "model", device)
    tokenizer = load_tokenizer(policy.parent / "model")
    job = job.model_copy(update={"prepare": settle(job.prepare, tokenizer)})
    if reward is not None:
        workspace.log_model_input("reward", "fetched reward")
        label: Label = load_labeller(reward, policy.parent / "model", job.prepare, device)
    else:
        label = _by_text(load_ground_truth(job.pairs.reward, classifier, device))
    facts = {}
    held_out = job.prepare.unseen
    unseen = UnseenPrompts(job.prepare.adapter, rows.parent, held_out) if held_out else None
    (workspace.output / "rankings").mkdir()
    # `prepare` holds a split without a prompts file out of train.
    for split in [name for name in SPLITS if name == "train" or has_prompts(rows.parent, name)]:
        every = iter_prompts(rows.parent, job.prepare.adapter, split)
        texts = list(itertools.islice(unseen.select(every, split) if unseen else every, job.pairs.max_prompts))
        answers, unfinished = _answers(job, model, tokenizer, split, texts)
        facts[split] = {"prompts": len(texts), "unfinished": unfinished}
        if unseen:
            facts[split]["begin_a_seen_text"] = unseen.num_skipped
            if not texts:
                raise UserError(
                    f"{split}: each of its {unseen.num_skipped} prompts begins a text of pre-training or SFT; add "
                    "rows, or set prepare.leakage to allow"
                )
        scored = [_scored(label, prompt, responses) for prompt, responses in zip(texts, answers, strict=True)]
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
    """Return the finished responses to each prompt, and the number of those that did not reach their end-of-turn.

    Unfinished ones are left out: the ground truth would judge where they were cut.
    """
    encoded = encode_prompts(tokenizer, texts, job.prepare)
    keys = [named_seed(0, split, text) for text in texts]
    answers: list[dict[int, str]] = [{} for _ in texts]
    unfinished = 0
    end = stop_token(tokenizer, job.prepare)
    for response in sample(model, encoded, keys, job.pairs, end, f"pairs: {split}"):
        if not response.ended:
            unfinished += 1
            continue
        _, text = decode_response(tokenizer, encoded[response.prompt], response.ids)
        answers[response.prompt][response.sample] = text
    return [[by_sample[number] for number in sorted(by_sample)] for by_sample in answers], unfinished


def _by_text(truth: GroundTruth) -> Label:
    return lambda prompt, responses: truth([as_text(prompt) + response for response in responses])


def _scored(label: Label, prompt: Prompt, responses: list[str]) -> list[Scored]:
    values = label(prompt, responses)
    return list(zip(values.tolist(), responses, strict=True))


def write_pairs(path: Path, texts: Sequence[Prompt], answers: list[list[Scored]]) -> dict[str, int]:
    """Write one row per pair of responses to a prompt, and return counts; ties are counted, not written."""
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
    """Write one row per prompt with its `size` responses, best first, and return counts.

    Prompts with fewer finished responses or with two equal rewards have no ranking; they are counted, not written.
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
    plain, tools = (prompt, None) if isinstance(prompt, str) else as_messages(prompt)
    row = {"prompt": plain, "responses": responses, "scores": scores, **({"tools": tools} if tools else {})}
    return json.dumps(row, ensure_ascii=False) + "\n"
