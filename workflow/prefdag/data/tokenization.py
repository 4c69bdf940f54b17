"""Tokenize prompts and responses separately, so that the boundary between them is exact.

The loss counts the tokens of the response and one end-of-turn after it. What a template writes between prompt and
response (the header) belongs to the prompt; what it writes after the end-of-turn is removed.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from prefdag.config.model_folder import without_row
from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import Prompt, Unusable
from prefdag.data.prompt_templates import load_template
from prefdag.errors import UserError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder, offline. Raises `UserError` if there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer can be loaded from it ({str(error).splitlines()[0]})") from None


def check_rows(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise `UserError` if a token has no row in the embeddings of the model in the folder, if there is one."""
    config = folder / "config.json"
    if config.is_file() and (mistake := without_row(tokenizer.get_vocab(), json.loads(config.read_text()))):
        raise UserError(f"{folder}: {mistake}")


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], prepare: Prepare) -> list[list[int]]:
    """Return the token ids of prompts in the suite's template, the same for generation as for training."""
    template = load_template(tokenizer, prepare)
    try:
        return encode_rendered(tokenizer, [template.prompt(prompt) for prompt in prompts], prepare)
    except Unusable as reason:
        raise UserError(f"prepare.template: a prompt cannot be written: {reason}; remove it from the rows") from None


def encode_rendered(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prepare: Prepare, names: Sequence[str] = ()
) -> list[list[int]]:
    """Return the token ids of prompts that a template wrote, after one BOS if the suite sets `prepare.bos`.

    Raises `UserError` if the tokenizer has no BOS, if a text already starts with one, or if a prompt has no token:
    the first token of its response would have nothing to be predicted from. names: what that error calls each text.
    """
    ids = encode_texts(tokenizer, texts)
    bos = tokenizer.bos_token_id
    if prepare.bos:
        if bos is None:
            raise UserError("prepare.bos: the tokenizer states no beginning-of-sequence token; set it to false")
        for text, tokens in zip(texts, ids, strict=True):
            if tokens[:1] == [bos]:
                raise UserError(f"prepare.bos: two BOS, since the text {text[:40]!r} begins with one; set it to false")
        ids = [[bos, *tokens] for tokens in ids]
    for number, (text, tokens) in enumerate(zip(texts, ids, strict=True)):
        if bos is not None and tokens[:2] == [bos, bos]:
            raise UserError(f"prepare.template: two BOS at the beginning of {text[:40]!r}; let it write one")
        if not tokens:
            where = f"{names[number]}: " if names else ""
            remedy = "remove the row" if bos is None else "set prepare.bos to true, or remove the row"
            raise UserError(f"{where}the prompt {text[:40]!r} comes to no token; {remedy}")
    return ids


def end_of_turn(tokenizer: PreTrainedTokenizerBase, prepare: Prepare) -> list[int]:
    """Return the token that ends a response and is counted with it, or an empty list for `end_of_turn: none`."""
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
    """Return the token that stops generation: the end-of-turn, or the tokenizer's EOS with `end_of_turn: none`.

    Raises `UserError` if there is neither.
    """
    token = [*end_of_turn(tokenizer, prepare), tokenizer.eos_token_id][0]
    if token is None:
        raise UserError(
            "the tokenizer states no end-of-sequence token, so generation could not end; name an end-of-turn"
        )
    return int(token)


def end_response(ids: list[int], end: list[int], writes_end_of_turn: bool) -> list[int]:
    """Return the ids of a response with exactly one end-of-turn, at the end.

    Args:
        ids: tokens of the response's text.
        end: the end-of-turn token, or an empty list.
        writes_end_of_turn: whether the text includes the token; what follows it is removed.

    Raises:
        Unusable: if the text of the response contains the token.
        UserError: if the template should write the token and does not.
    """
    if not writes_end_of_turn:
        if end and end[0] in ids:
            raise Unusable("an end-of-turn in the text")
        return ids + end
    if end[0] not in ids:
        raise UserError(
            "prepare.end_of_turn: the template ends no response with this token; name the one that it writes"
        )
    return ids[: ids.index(end[0]) + 1]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens around them."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
