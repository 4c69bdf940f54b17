"""Tokens of prompts and responses: tokenised apart, so that the split is exact.

Templates: `continuation` and `plain` write prompt and response verbatim (`plain` dialogues are their own transcript,
up to and including "Assistant:"). Counted are the tokens of the response and the end-of-turn after it, nothing else.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefdag.config.prepare import Prepare
from prefdag.errors import UserError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, offline. Raises `UserError` when there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer can be loaded from it ({str(error).splitlines()[0]})") from None


def encode_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prepare: Prepare) -> list[list[int]]:
    """Token ids of prompts, after one BOS where the suite asks for it.

    Raises `UserError` when there is no BOS token to give, when a text begins with one of its own, or when a prompt
    comes to no token at all (its response's first token would have nothing to be predicted from).
    """
    ids = _encoded(tokenizer, texts)
    if prepare.bos:
        if tokenizer.bos_token_id is None:
            raise UserError("prepare.bos: the tokenizer states no beginning-of-sequence token; set it to false")
        for text, found in zip(texts, ids, strict=True):
            if found[:1] == [tokenizer.bos_token_id]:
                raise UserError(f"prepare.bos: two BOS, since the text {text[:40]!r} begins with one; set it to false")
        ids = [[tokenizer.bos_token_id, *found] for found in ids]
    for text, found in zip(texts, ids, strict=True):
        if not found:
            raise UserError(f"a prompt comes to no token: {text[:40]!r}; set prepare.bos to true or remove it")
    return ids


def encode_responses(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prepare: Prepare) -> list[list[int]]:
    """Token ids of responses without the end-of-turn; an empty list where a text comes to nothing."""
    end_of_turn(tokenizer, prepare)
    return _encoded(tokenizer, texts)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, prepare: Prepare) -> list[int]:
    """The tokens that end a response and are counted with it: one, or none."""
    if prepare.end_of_turn == "none":
        return []
    if tokenizer.eos_token_id is None:
        raise UserError("prepare.end_of_turn: the tokenizer states no end-of-sequence token; set it to `none`")
    return [tokenizer.eos_token_id]


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
