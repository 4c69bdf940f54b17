"""Adapters of rows that hold two responses, one better than the other."""

from dataclasses import replace
from typing import Any

from prefdag.data.adapters.records import (
    Prompt,
    TextComparison,
    Turn,
    Unusable,
    labelled_pair,
    numbers,
    text,
    turns,
    usable,
)
from prefdag.data.rows import Row

ASSISTANT = "\n\nAssistant:"


def hh(row: Row) -> TextComparison:
    """Anthropic HH: `chosen` and `rejected` are whole dialogues that differ after their last "Assistant:"."""
    chosen, rejected = (text(row, side).rpartition(ASSISTANT) for side in ("chosen", "rejected"))
    if not chosen[1] or not rejected[1]:
        raise Unusable("no assistant turn")
    if chosen[0] != rejected[0]:
        raise Unusable("prompts differ")
    return TextComparison(chosen[0] + ASSISTANT, usable(chosen[2], rejected[2]))


def pairs(row: Row) -> TextComparison:
    """`prompt`, `chosen` and `rejected`, as text or as lists of messages; or `prompt` and `responses`, best first.

    Without `prompt`, it is what `chosen` and `rejected` have in common.
    """
    if "responses" in row:
        return _listed(row)
    sides = [row.get("chosen"), row.get("rejected")]
    if all(isinstance(side, list) for side in sides):
        return _of_dialogues(row.get("prompt"), turns(sides[0], "chosen"), turns(sides[1], "rejected"))
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    if "prompt" in row:
        return TextComparison(_prompt(row), usable(chosen, rejected))
    shared = _shared_text(chosen, rejected)
    return TextComparison(shared, usable(chosen[len(shared) :], rejected[len(shared) :]))


def _listed(row: Row) -> TextComparison:
    responses = row["responses"]
    if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
        raise Unusable("responses are not text")
    scores = tuple(numbers(row["scores"], "scores")) if row.get("scores") is not None else None
    if scores is not None and len(scores) != len(responses):
        raise Unusable("not one score for each response")
    return TextComparison(_prompt(row), usable(*responses), scores)


def _prompt(row: Row) -> Prompt:
    return turns(row["prompt"], "prompt") if isinstance(row.get("prompt"), list) else text(row, "prompt")


def _of_dialogues(prompt: Any, chosen: tuple[Turn, ...], rejected: tuple[Turn, ...]) -> TextComparison:
    """The turns before the last are the prompt; a prompt given as messages may stand before them or be among them."""
    before = turns(prompt, "prompt") if isinstance(prompt, list) else ()
    if chosen[: len(before)] != before or rejected[: len(before)] != before:
        chosen, rejected = before + chosen, before + rejected
    if len(chosen) < 2 and isinstance(prompt, str):
        chosen, rejected = (("user", prompt), *chosen), (("user", prompt), *rejected)
    if not chosen or not rejected or chosen[-1][0] != "assistant" or rejected[-1][0] != "assistant":
        raise Unusable("the last turn is not the assistant's")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("prompts differ")
    if len(chosen) < 2:
        raise Unusable("no prompt")
    return TextComparison(chosen[:-1], usable(chosen[-1][1], rejected[-1][1]))


def _shared_text(chosen: str, rejected: str) -> str:
    """The common beginning of two texts, up to a boundary between words, the space left to the response."""
    end = next((at for at, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    while end and not chosen[end : end + 1].isspace():
        end -= 1
    if not end:
        raise Unusable("no common prompt")
    return chosen[:end]


def tldr(row: Row) -> TextComparison:
    """Reddit TL;DR: a post and two summaries of it, one judged the better; or a post and its one summary.

    Read are OpenAI's comparisons (`info`, `summaries`, `choice`), judged files (`query`, `postprocessed_response`
    against `reference_responses`, `preferred` "ours" or "reference"), and posts with a `summary` or a `completion`.
    """
    post = row["info"] if isinstance(row.get("info"), dict) else row
    prompt = text(row, "query", "prompt") if "query" in row or "prompt" in row else _post(post)
    if "summaries" in row:
        summaries = [text(summary, "text") for summary in row["summaries"]]
        return labelled_pair(prompt, summaries, row.get("choice"), first=0)
    if "postprocessed_response" not in row:
        return TextComparison(prompt, usable(text(row, "summary", "completion")))
    if not row.get("preferred"):
        raise Unusable("not judged")
    label = {"ours": 0, "reference": 1}.get(row["preferred"], row["preferred"])
    return labelled_pair(
        prompt, [text(row, "postprocessed_response"), text(row, "reference_responses")], label, first=0
    )


def _post(row: Row) -> str:
    title, body = text(row, "title"), text(row, "post")
    return f"SUBREDDIT: r/{text(row, 'subreddit').removeprefix('r/')}\n\nTITLE: {title}\n\nPOST: {body}"


def align_anything(row: Row) -> TextComparison:
    """PKU align-anything, text to text: `overall_response` (1 or 2) says which response to `question` is better."""
    responses = [text(row, "response_1"), text(row, "response_2")]
    return labelled_pair(text(row, "question"), responses, row.get("overall_response"), first=1)


def saferlhf_better(row: Row) -> TextComparison:
    """PKU-SafeRLHF by its label of helpfulness: `better_response_id` is 0 or 1."""
    return _saferlhf(row, "better_response_id")


def saferlhf_safer(row: Row) -> TextComparison:
    """PKU-SafeRLHF by its label of harmlessness: `safer_response_id` is 0 or 1."""
    return _saferlhf(row, "safer_response_id")


def _saferlhf(row: Row, label: str) -> TextComparison:
    responses = [text(row, "response_0"), text(row, "response_1")]
    return labelled_pair(text(row, "prompt"), responses, row.get(label), first=0)


def shp(row: Row) -> TextComparison:
    """Stanford Human Preferences: `labels` is 1 where `human_ref_A` is preferred to `human_ref_B`, 0 where B is."""
    responses = [text(row, "human_ref_A"), text(row, "human_ref_B")]
    best = {1: 0, 0: 1}.get(row["labels"]) if type(row.get("labels")) is int else row.get("labels")
    found = labelled_pair(text(row, "history"), responses, best, first=0)
    if "score_A" not in row or "score_B" not in row:
        return found
    votes = numbers([row["score_A"], row["score_B"]], "score_A and score_B")
    return replace(found, scores=tuple(votes if found.position == 0 else votes[::-1]))
