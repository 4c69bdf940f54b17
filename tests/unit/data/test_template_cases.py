"""Inputs that users bring, where their folder is present: what templates write of them, or why they are refused."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from prefdag.config.prepare import Prepare
from prefdag.data.preprocess import ChunkEncoder, iter_chunks
from prefdag.errors import UserError
from preparing import SHARED

CASES = SHARED.parent / "cases/data"
QWEN2 = SHARED / "qwen2-tokenizer"
# The texts of the first row that is used, None where none is; the reasons of the rows that are dropped.
EXPECTED: dict[str, tuple[list[str] | None, list[str]]] = {
    "16-prefill": (
        [
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a colour.<|im_end|>\n"
            "<|im_start|>assistant\nSure, it is",
            " teal.<|im_end|>",
            " dog.<|im_end|>",
        ],
        [],
    ),
    "21-template-ignores-system": (None, ["the template leaves out the system turn"]),
    "22-template-trims": (
        ["<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n", "Teal.<|im_end|>", "Dog.<|im_end|>"],
        ["equal responses as tokens"],
    ),
    "23-template-strips-thinking": (
        None,
        ["the template leaves out the response's reasoning; a Jinja file that writes the last turn whole keeps it"] * 2,
    ),
    "26-system-refused": (
        ["<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n", "Teal.<|im_end|>", "Dog.<|im_end|>"],
        ["the template refuses it (System role not supported)"],
    ),
    "28-special-literals-plain": (None, ["a special token in the text"] * 2),
    "30-cut-prompt-start-chat": (None, ["prompt over 14 tokens"]),
}
REFUSED = {
    "20-template-no-generation-prompt": "does not heed add_generation_prompt",
    "24-gen-prompt-opens-think": "the template opens a response with",
    "27-double-bos": "prepare.bos: two BOS",
}


def encoded(name: str, monkeypatch: pytest.MonkeyPatch):
    """The rows of a case as `prepare` encodes them, and their tokenizer."""
    folder = CASES / name
    if not folder.is_dir():
        pytest.skip("../shared/cases does not exist")
    monkeypatch.chdir(folder)
    config = json.loads(Path("config.json").read_text())
    at = CASES / "byte-tokenizer" if config["tokenizer"] == "tok/bytes" else QWEN2
    tokenizer = AutoTokenizer.from_pretrained(at, local_files_only=True)
    held_out = {"validation": 0.0, "test": 0.0}
    prepare = Prepare(**config["prepare"])
    encoder = ChunkEncoder(prepare, prepare.adapter, 2, tokenizer, held_out)
    (chunk,) = iter_chunks(Path("rows.jsonl"), "train", 500)
    return encoder(chunk), tokenizer


@pytest.mark.parametrize("name", EXPECTED)
def test_a_case_is_written_or_counted(name: str, monkeypatch: pytest.MonkeyPatch):
    result, tokenizer = encoded(name, monkeypatch)
    texts = [[tokenizer.decode(ids) for ids in (row.prompt, *row.responses)] for row in result.rows]
    assert (texts[0] if texts else None, [reason for _, reason, _ in result.dropped]) == EXPECTED[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=REFUSED[name]):
        encoded(name, monkeypatch)


def test_calls_of_tools_that_the_template_ignores_are_counted(monkeypatch: pytest.MonkeyPatch):
    result, _ = encoded("06-tool-calls-history", monkeypatch)
    assert not result.rows and len(result.dropped) == 3
