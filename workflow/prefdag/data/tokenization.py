"""Tokens of prompts and responses: tokenised apart, so that the split is exact.

Counted are the tokens of the response and the one end-of-turn after it, nothing else: what a template writes between
the prompt and the response (the header) belongs to the prompt, what it writes after the end-of-turn is left out.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import Prompt, Unusable
from prefdag.data.prompt_templates import load_template
from prefdag.errors import UserError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, offline. Raises `UserError` when there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer can be loaded from it ({str(error).splitlines()[0]})") from None


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], prepare: Prepare) -> list[list[int]]:
    """Token ids of prompts as the suite's template writes them: what generation sees is what training saw."""
    template = load_template(tokenizer, prepare)
    try:
        return encode_rendered(tokenizer, [template.prompt(prompt) for prompt in prompts], prepare)
    except Unusable as reason:
        raise UserError(f"prepare.template: a prompt cannot be written: {reason}; remove it from the rows") from None


def encode_rendered(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prepare: Prepare) -> list[list[int]]:
    """Token ids of prompts that a template wrote, after one BOS where the suite asks for it.

    Raises `UserError` when there is no BOS token to give, when a text begins with one of its own, or when a prompt
    comes to no token at all (its response's first token would have nothing to be predicted from).
    """
    ids = encode_texts(tokenizer, texts)
    bos = tokenizer.bos_token_id
    if prepare.bos:
        if bos is None:
            raise UserError("prepare.bos: the tokenizer states no beginning-of-sequence token; set it to false")
        for text, found in zip(texts, ids, strict=True):
            if found[:1] == [bos]:
                raise UserError(f"prepare.bos: two BOS, since the text {text[:40]!r} begins with one; set it to false")
        ids = [[bos, *found] for found in ids]
    for text, found in zip(texts, ids, strict=True):
        if bos is not None and found[:2] == [bos, bos]:
            raise UserError(f"prepare.template: two BOS at the beginning of {text[:40]!r}; let it write one")
        if not found:
            raise UserError(f"a prompt comes to no token: {text[:40]!r}; set prepare.bos to true or remove it")
    return ids


def end_of_turn(tokenizer: PreTrainedTokenizerBase, prepare: Prepare) -> list[int]:
    """The tokens that end a response and are counted with it: one, or none."""
    if prepare.end_of_turn == "none":
        return []
    if prepare.end_of_turn != "eos":
        if prepare.end_of_turn not in tokenizer.get_vocab():
            raise UserError(f"prepare.end_of_turn: the tokenizer has no token {prepare.end_of_turn!r}; name one it has")
        return [tokenizer.get_vocab()[prepare.end_of_turn]]
    if tokenizer.eos_token_id is None:
        raise UserError("prepare.end_of_turn: the tokenizer states no end-of-sequence token; set it to `none`")
    return [tokenizer.eos_token_id]


def stop_token(tokenizer: PreTrainedTokenizerBase, prepare: Prepare) -> int:
    """The token at which a sampled response has ended: its end-of-turn, or the tokenizer's own end where it has none.

    Raises `UserError` where the tokenizer has neither.
    """
    found = [*end_of_turn(tokenizer, prepare), tokenizer.eos_token_id][0]
    if found is None:
        raise UserError(
            "the tokenizer states no end-of-sequence token, so generation could not end; name an end-of-turn"
        )
    return int(found)


def end_response(ids: list[int], end: list[int], closes: bool) -> list[int]:
    """A response's ids with exactly one end-of-turn, the last of them.

    closes: the template wrote it, and perhaps more behind it, which is left out. Raises `Unusable` where the response's
    own text holds the token, `UserError` where the template writes none.
    """
    if not closes:
        if end and end[0] in ids:
            raise Unusable("an end-of-turn in the text")
        return ids + end
    if end[0] not in ids:
        raise UserError(
            "prepare.end_of_turn: the template ends no response with this token; name the one that it writes"
        )
    return ids[: ids.index(end[0]) + 1]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text and nothing of the tokenizer's own around them."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
