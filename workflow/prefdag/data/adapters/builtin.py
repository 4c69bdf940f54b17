"""The package's adapters: one function for each shape of row.

An adapter takes a row and returns a `TextComparison`, or raises `Unusable` with the reason that the audit counts.
`prefdag.config.adapters` reads their names and decorators from this text.
"""

import hashlib
import re
from dataclasses import replace
from typing import Any

from prefdag.data.adapters.dialogues import split_dialogue
from prefdag.data.adapters.labels import labelled_pair, numbers, ranked_best_first, stated_scores, truth
from prefdag.data.adapters.records import (
    Prompt,
    TextComparison,
    Unusable,
    adapter,
    check_responses,
    prompt_of,
    text,
    texts,
    turns,
    unpacked,
    untrained_turns,
)
from prefdag.data.rows import Row

ASSISTANT = "\n\nAssistant:"


@adapter()
def world(row: Row) -> TextComparison:
    """Read the embedded world's reviews: `prompt`, and `continuation` with its leading space."""
    return TextComparison(text(row, "prompt"), (text(row, "continuation"),))


@adapter()
def hh(row: Row) -> TextComparison:
    """Read Anthropic HH: `chosen` and `rejected` are whole dialogues that differ after their last "Assistant:".

    Blank lines before the first "Human:" are put back where a file has lost them.
    """
    chosen, rejected = (_transcript(text(row, side)).rpartition(ASSISTANT) for side in ("chosen", "rejected"))
    if not chosen[1] or not rejected[1]:
        raise Unusable("no assistant turn")
    if chosen[0] != rejected[0]:
        raise Unusable("prompts differ")
    return TextComparison(chosen[0] + ASSISTANT, check_responses(chosen[2], rejected[2]))


def _transcript(dialogue: str) -> str:
    return f"\n\n{dialogue.lstrip()}" if dialogue.lstrip().startswith("Human:") else dialogue


@adapter(ranked=True)
def pairs(row: Row) -> TextComparison:
    """Read `prompt`, `chosen` and `rejected`, as text or messages; or `prompt` and `responses`, best first.

    Without `prompt`, the prompt is `conversations` or `messages`, or what `chosen` and `rejected` have in common.
    Scores under a usual name (`score_chosen`, `rejected_score`, ...) are read.
    """
    if "responses" in row:
        return _best_first(row)
    dialogue = next((key for key in ("conversations", "messages") if key in row and "prompt" not in row), None)
    row = {**row, "prompt": row[dialogue]} if dialogue else row
    sides = [unpacked(row.get(side), side) for side in ("chosen", "rejected")]
    if all(isinstance(side, list) for side in sides):
        pair = _pair_of_dialogues(unpacked(row.get("prompt"), "prompt"), *sides)
    else:
        pair = _pair_of_texts(row)
    scores = stated_scores(row)
    return replace(pair, scores=scores) if scores else pair


def _pair_of_texts(row: Row) -> TextComparison:
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    if "prompt" in row:
        return TextComparison(prompt_of(row), check_responses(chosen, rejected))
    prompt = _shared_beginning(chosen, rejected)
    return TextComparison(prompt, check_responses(chosen[len(prompt) :], rejected[len(prompt) :]))


def _best_first(row: Row) -> TextComparison:
    responses = texts(row, "responses")
    scores = tuple(numbers(row["scores"], "scores")) if row.get("scores") is not None else None
    if scores is not None and len(scores) != len(responses):
        raise Unusable("not one score for each response")
    return TextComparison(prompt_of(row), check_responses(*responses), scores)


def _pair_of_dialogues(prompt: Any, chosen: list[Any], rejected: list[Any]) -> TextComparison:
    """Take the turns before the last as the prompt. A prompt in messages may precede them or be among them."""
    before, response = split_dialogue(prompt, chosen, "chosen")
    before_rejected, other = split_dialogue(prompt, rejected, "rejected")
    if before != before_rejected:
        raise Unusable("prompts differ")
    return TextComparison(before, check_responses(response, other))


def _shared_beginning(chosen: str, rejected: str) -> str:
    """Return the common beginning of two texts, up to the end of a word; its space belongs to the response."""
    end = next((at for at, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    while end and not chosen[end : end + 1].isspace():
        end -= 1
    if not end:
        raise Unusable("no common prompt")
    return chosen[:end]


@adapter(ranked=True)
def ranked(row: Row) -> TextComparison:
    """Read `prompt` and `responses` in any order, with `scores` (higher is better) or `ranks` (1 is best)."""
    responses = texts(row, "responses")
    if "scores" in row:
        scores = numbers(row["scores"], "scores")
    else:
        scores = [-rank for rank in numbers(row.get("ranks"), "ranks")]
    return ranked_best_first(prompt_of(row), responses, scores)


@adapter(single=True)
def labelled(row: Row) -> TextComparison:
    """Read `prompt`, `response` (or `completion`) and `label`: true, 1 or "good"; or false, 0 or "bad"."""
    return replace(_prompt_and_response(row), scores=(float(truth(row.get("label"))),))


@adapter()
def demonstrations(row: Row) -> TextComparison:
    """Read `messages` that end with the assistant's turn; `prompt` and `response` (or `completion`); or Alpaca's."""
    if "messages" in row or "conversations" in row:
        key = "messages" if "messages" in row else "conversations"
        messages = unpacked(row[key], key)
        parsed = turns(messages if isinstance(messages, list) else (), key)
        if len(parsed) < 2 or parsed[-1][0] != "assistant":
            raise Unusable("the last turn is not the assistant's")
        untrained = untrained_turns(messages, key)
        if untrained and len(parsed) != len(messages):
            raise Unusable("tool calls with turns that are not to be trained on")
        return TextComparison(parsed[:-1], check_responses(parsed[-1][1]), untrained=untrained)
    if "instruction" in row:
        prompt = "\n\n".join(part for part in (text(row, "instruction"), row.get("input")) if part)
        return TextComparison(prompt, check_responses(text(row, "output", "response")))
    return _prompt_and_response(row)


def _prompt_and_response(row: Row) -> TextComparison:
    """Read `prompt` and `response` (or `completion`), each as text or as messages."""
    key = "response" if "response" in row else "completion"
    response, prompt = unpacked(row.get(key), key), unpacked(row.get("prompt"), "prompt")
    untrained = untrained_turns([*prompt, {}], "prompt") if isinstance(prompt, list) else ()
    if untrained and (isinstance(response, list) or len(prompt_of(row)) != len(prompt)):
        raise Unusable("turns that are not to be trained on, in `prompt`; put all turns into `messages`")
    if isinstance(response, list):
        before, last = split_dialogue(prompt, response, key)
        return TextComparison(before, check_responses(last))
    return TextComparison(prompt_of(row), check_responses(text(row, "response", "completion")), untrained=untrained)


@adapter()
def tldr(row: Row) -> TextComparison:
    """Read Reddit TL;DR: a post with two summaries, one judged better; or a post with one summary.

    Supported are OpenAI's comparisons (`info`, `summaries`, `choice`), judged files (`query`, `postprocessed_response`
    against `reference_responses`, `preferred` "ours" or "reference"), and posts with a `summary` or a `completion`.
    """
    post = row["info"] if isinstance(row.get("info"), dict) else row
    prompt = text(row, "query", "prompt") if "query" in row or "prompt" in row else _reddit_post(post)
    if "summaries" in row:
        summaries = [text(summary, "text") for summary in row["summaries"]]
        return labelled_pair(prompt, summaries, row.get("choice"), first=0)
    if "postprocessed_response" not in row:
        return TextComparison(prompt, check_responses(text(row, "summary", "completion")))
    if not row.get("preferred"):
        raise Unusable("not judged")
    label = {"ours": 0, "reference": 1}.get(row["preferred"], row["preferred"])
    responses = [text(row, "postprocessed_response"), text(row, "reference_responses")]
    return labelled_pair(prompt, responses, label, first=0)


def _reddit_post(row: Row) -> str:
    title, body = text(row, "title"), text(row, "post")
    return f"SUBREDDIT: r/{text(row, 'subreddit').removeprefix('r/')}\n\nTITLE: {title}\n\nPOST: {body}"


@adapter()
def imdb(row: Row) -> TextComparison:
    """Read film reviews: the first 2 to 8 words of `text` are the prompt; the rest, with its space, is the response.

    The number of words comes from the review's sha256, so it does not depend on the order of rows.
    """
    review = text(row, "text")
    words = 2 + hashlib.sha256(review.encode("utf-8", "surrogatepass")).digest()[0] % 7
    begin = re.match(rf"\s*(?:\S+\s+){{{words - 1}}}\S+(?=\s)", review)
    if begin is None:
        raise Unusable(f"not more than {words} words")
    return TextComparison(begin[0], check_responses(review[begin.end() :]))


@adapter()
def align_anything(row: Row) -> TextComparison:
    """Read PKU align-anything, text to text: `overall_response` (1 or 2) names the better response."""
    responses = [text(row, "response_1"), text(row, "response_2")]
    return labelled_pair(text(row, "question"), responses, row.get("overall_response"), first=1)


@adapter()
def saferlhf_better(row: Row) -> TextComparison:
    """Read PKU-SafeRLHF by its label of helpfulness: `better_response_id` is 0 or 1."""
    return _saferlhf(row, "better_response_id")


@adapter()
def saferlhf_safer(row: Row) -> TextComparison:
    """Read PKU-SafeRLHF by its label of harmlessness: `safer_response_id` is 0 or 1."""
    return _saferlhf(row, "safer_response_id")


@adapter()
def saferlhf_one_safe(row: Row) -> TextComparison:
    """Read the pairs of PKU-SafeRLHF of which one response is safe, as `is_response_0_safe` and `..._1_safe` say."""
    safe = [row.get(f"is_response_{number}_safe") for number in (0, 1)]
    if not all(isinstance(label, bool) for label in safe):
        raise Unusable("`is_response_0_safe` or `is_response_1_safe` is not true or false")
    if safe[0] == safe[1]:
        raise Unusable("both responses are safe" if safe[0] else "no response is safe")
    return labelled_pair(text(row, "prompt"), [text(row, "response_0"), text(row, "response_1")], safe[1], first=0)


def _saferlhf(row: Row, label: str) -> TextComparison:
    responses = [text(row, "response_0"), text(row, "response_1")]
    return labelled_pair(text(row, "prompt"), responses, row.get(label), first=0)


@adapter(ranked=True)
def ultrafeedback(row: Row) -> TextComparison:
    """Read UltraFeedback: `instruction` and `completions`, each with its `response` and `overall_score`."""
    return _ranked_objects(row, text(row, "instruction", "prompt"), "completions", "response", "overall_score")


@adapter(scored=True)
def shp(row: Row) -> TextComparison:
    """Read Stanford Human Preferences: `labels` is 1 where `human_ref_A` is preferred, 0 where `human_ref_B` is."""
    responses = [text(row, "human_ref_A"), text(row, "human_ref_B")]
    flipped = labelled_pair(text(row, "history"), responses[::-1], row.get("labels"), first=0)
    pair = replace(flipped, position=1 - int(flipped.position or 0))
    if "score_A" not in row or "score_B" not in row:
        return pair
    votes = numbers([row["score_A"], row["score_B"]], "score_A and score_B")
    return replace(pair, scores=tuple(votes if pair.position == 0 else votes[::-1]))


@adapter(ranked=True)
def stack_exchange(row: Row) -> TextComparison:
    """Read Stack Exchange: `question`, `answers` (`text`, `pm_score`); or `response_j`, preferred to `response_k`."""
    question = text(row, "question")
    if "response_j" in row:
        return labelled_pair(question, [text(row, "response_j"), text(row, "response_k")], 0, first=0)
    return _ranked_objects(row, question, "answers", "text", "pm_score")


def _ranked_objects(row: Row, prompt: Prompt, key: str, response: str, score: str) -> TextComparison:
    """Rank the objects in the list `row[key]`, each with its text under `response` and its number under `score`."""
    entries: Any = row.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Unusable(f"`{key}` is not a list of objects")
    scores = numbers([entry.get(score) for entry in entries], score)
    return ranked_best_first(prompt, [text(entry, response) for entry in entries], scores)
