"""What a suite leaves open is settled by the tokenizer."""

import pytest

from chat_templates import CHATML, LLAMA3, MISTRAL, QWEN2, ZEPHYR, chat
from prefdag.config.prepare import Prepare
from prefdag.data.settled import changes_of, settle
from preparing import byte_tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.mark.parametrize(
    ("source", "end"),
    [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (ZEPHYR, None), (MISTRAL, None), (QWEN2, "<|im_end|>")],
)
def test_a_chat_template_says_the_end_of_turn_and_writes_its_own_bos(source: str, end: str | None):
    tokenizer = chat(source, SPECIAL)
    settled = settle(Prepare(), tokenizer)
    assert (settled.template, settled.bos) == ("chat", False)
    assert settled.end_of_turn == (end or tokenizer.eos_token)
    assert settled.system == ("You are a helpful assistant." if source == QWEN2 else None)


def test_without_a_chat_template_the_text_is_plain_and_ends_with_eos():
    settled = settle(Prepare(), byte_tokenizer())
    assert (settled.template, settled.end_of_turn) == ("plain", "eos")


def test_bos_is_added_as_the_tokenizer_adds_one(monkeypatch: pytest.MonkeyPatch):
    tokenizer = byte_tokenizer()
    adds = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert settle(Prepare(), tokenizer).bos is adds
    kind = type(tokenizer)
    monkeypatch.setattr(kind, "__call__", lambda self, text: {"input_ids": [tokenizer.bos_token_id, 5]})
    assert settle(Prepare(), tokenizer).bos is True


def test_what_is_stated_stays():
    stated = Prepare(template="plain", bos=True, end_of_turn="none", system=None)
    assert settle(stated, chat(CHATML, SPECIAL)) == stated
    assert changes_of(stated, stated) == {}
