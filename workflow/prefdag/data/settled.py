"""Settle what a suite leaves to its tokenizer: `auto` in the section `prepare`."""

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefdag.config.prepare import AUTO, TEMPLATES, Prepare
from prefdag.data.prompt_templates import ChatTemplate, load_template

PLAIN = tuple(name for name in TEMPLATES if name != "chat")
RESPONSE = "\x02"  # a response in no vocabulary, so that what follows it is the template's
logger = logging.getLogger(__name__)


def settle(prepare: Prepare, tokenizer: PreTrainedTokenizerBase) -> Prepare:
    """Return the section with a template, a BOS and an end-of-turn in place of `auto`.

    Raises:
        UserError: as `load_template` does.
    """
    changes: dict[str, Any] = {}
    template = prepare.template
    if template == AUTO:
        changes["template"] = template = "chat" if tokenizer.chat_template else "plain"
        if template == "chat" and prepare.system is None:
            default = ChatTemplate(tokenizer, None, None).default_system()
            changes |= {} if default is None else {"system": default}
    is_text = template in PLAIN
    if prepare.end_of_turn == AUTO:
        eos = "eos" if tokenizer.eos_token_id is not None else "none"
        changes["end_of_turn"] = eos if is_text else _end_written(prepare.model_copy(update=changes), tokenizer) or eos
    if prepare.bos == AUTO:
        # A chat template writes the BOS itself where the model was trained with one.
        first = tokenizer("a")["input_ids"][:1]
        changes["bos"] = is_text and tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    return prepare.model_copy(update=changes)


def changes_of(stated: Prepare, settled: Prepare) -> dict[str, Any]:
    """Return the keys that were settled, with their values."""
    return {key: value for key, value in settled if value != getattr(stated, key)}


def _end_written(prepare: Prepare, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the first special token that the template writes after a response."""
    template = load_template(tokenizer, prepare)
    prompt = (("user", "a"),)
    text = template.response(prompt, template.prompt(prompt), RESPONSE).partition(RESPONSE)[2]
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    places = {token: text.index(token) for token in special if token and token in text}
    return min(places, key=lambda token: (places[token], -len(token)), default=None)
