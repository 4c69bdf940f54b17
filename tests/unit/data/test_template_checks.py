"""What a template leaves out or cuts is refused or counted; each check has a template or a row that breaks it."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_templates import CHATML, LLAMA3, MISTRAL, QWEN2, ZEPHYR, chat
from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import Prompt, Unusable
from prefdag.data.prompt_templates import Template, load_template
from prefdag.data.token_store import Store
from prefdag.errors import UserError
from preparing import PREPARE, audit, byte_tokenizer, fetch, prepare, write_rows

IM = ["<|im_start|>", "<|im_end|>"]
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_HEADER = "{% for m in messages %}" + TURN + "{% endfor %}"
HALF_HEADER = NO_HEADER + "{% if add_generation_prompt %}<|im_start|>{% endif %}"
NO_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}" + TURN + "{% endif %}{% endfor %}" + HEADER
TRIMS = CHATML.replace("m.content", "m.content | trim")
SHORTENS = CHATML.replace("{{ m.content }}", "{{ m.content[:12] }}")
THINKS = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1].lstrip('\n') }}")
OPENS_THINKING = THINKS.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
TOOLS = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
CALLS = "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"
WITH_TOOLS = TOOLS + CHATML.replace("{{ m.content }}", "{{ m.content }}" + CALLS)
QUESTION = [{"role": "user", "content": "Hi there"}]
CALL = {"function": {"name": "now", "arguments": '{"at": "Oslo"}'}}
CALLING = [
    *QUESTION,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "now", "arguments": '{"at": "Oslo"}'}}],
    },
    {"role": "tool", "content": "noon"},
]


def template(source: str, system: str | None = None) -> Template:
    settings = Prepare(**{**PREPARE, "template": "chat", "bos": False, "end_of_turn": "<|im_end|>", "system": system})
    return load_template(chat(source, IM), settings)


def prepared(
    folder: Path, source: str | None, rows: list[dict[str, Any]], dataset: str = "comparisons", **changes: Any
) -> tuple[dict[str, int], list[list[str]]]:
    """Reasons with their counts, and prompt and responses of each row that is used, as text."""
    folder = folder / str(len([*folder.iterdir()]))
    response = {"responses": ["yes", "no", "so"], "scores": [3, 2, 1]} if dataset == "rankings" else {}
    rows = [*rows, *(pair(prompt) | response for prompt in "12")]  # a split needs two prompts
    assert fetch(folder, {"source": str(write_rows(folder / "r.jsonl", rows))}) == 0
    tokenizer = chat(source, IM) if source else byte_tokenizer(*IM)
    if source:
        changes = {"template": "chat", "bos": False, "end_of_turn": "<|im_end|>", **changes}
    code, output = prepare(folder, tokenizer, dataset, **changes)
    assert code == 0
    store = Store.open(output / "train")
    texts = [[tokenizer.decode(part) for part in (one.prompt, *one.responses)] for one in store][:-2]
    return {reason: entry["count"] for reason, entry in audit(output)["dropped"].items()}, texts


def pair(prompt: Any = "q", chosen: str = "yes", rejected: str = "no", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


@pytest.mark.parametrize("source", [NO_HEADER, HALF_HEADER])
def test_a_header_that_is_not_in_the_prompt_is_refused(source: str):
    with pytest.raises(UserError, match="prepare.template: the template leaves '.*assistant.*' to the response"):
        template(source)


@pytest.mark.parametrize("source", [CHATML, LLAMA3, MISTRAL, ZEPHYR, TRIMS, WITH_TOOLS])
def test_templates_that_write_everything_pass(source: str):
    made = template(source)
    prompt: Prompt = (("user", "a"), ("assistant", "b"), ("user", "a"))
    rendered = made.prompt(prompt)
    assert made.response(prompt, rendered, "So.").strip().startswith("So.")


def test_a_system_turn_that_the_template_swallows_is_counted(tmp_path: Path):
    """Even one whose text is in the template's own words. A stated system prompt is an error at once."""
    rows = [pair([{"role": "system", "content": "user"}, *QUESTION]), pair(QUESTION)]
    assert prepared(tmp_path, NO_SYSTEM, rows)[0] == {"the template leaves out the system turn": 1}
    with pytest.raises(UserError, match="prepare.system: the template writes no system prompt"):
        template(NO_SYSTEM, "Be brief.")


def test_a_part_of_a_turn_that_is_left_out_is_counted(tmp_path: Path):
    rows = [pair("too long a question"), pair(chosen="too long an answer"), pair()]
    assert prepared(tmp_path, SHORTENS, rows)[0] == {
        "the template leaves out a part of a user turn": 1,
        "the template leaves out a part of the response": 1,
    }


def test_reasoning_is_kept_whole_in_the_response_and_may_go_from_earlier_turns(tmp_path: Path):
    thought = "<think>\ntwo and two\n</think>\n\n4"
    rows = [pair(chosen=thought, rejected="5"), pair(chosen="4", rejected="5")]
    rows.append(pair([*QUESTION, {"role": "assistant", "content": thought}, *QUESTION]))
    reasons, texts = prepared(tmp_path, THINKS, rows)
    assert [*reasons.items()] == [
        (
            "the template leaves out the response's reasoning; a Jinja file that writes the last turn whole keeps it",
            1,
        )
    ]
    assert len(texts) == 2 and "two and two" not in texts[1][0]
    assert prepared(tmp_path, CHATML, rows)[1][0][1] == f"{thought}<|im_end|>"


def test_a_header_that_opens_reasoning_is_named():
    made = template(OPENS_THINKING)
    with pytest.raises(UserError, match=r"opens a response with '<\|im_start\|>assistant\\n<think>\\n', but writes"):
        made.response("q", made.prompt("q"), "4")


@pytest.mark.parametrize(
    ("source", "row", "changes", "reason"),
    [
        (TRIMS, pair(chosen="Yes.", rejected="Yes. "), {}, "equal responses as tokens"),
        (None, pair(chosen=" Yes.", rejected="Yes. "), {"template": "tldr"}, "equal responses as tokens"),
        (
            CHATML,
            pair(chosen="a long answer", rejected="a long reply"),
            {"over_long": "cut-response-end", "max_response_tokens": 6},
            "equal responses once they are cut",
        ),
    ],
)
def test_responses_of_equal_tokens_are_counted(
    source: str | None, row: dict[str, Any], changes: dict[str, Any], reason: str, tmp_path: Path
):
    counts, texts = prepared(tmp_path, source, [row, pair()], **changes)
    assert (counts, len(texts)) == ({reason: 1}, 1)


def test_a_ranking_with_two_responses_of_equal_tokens_is_counted(tmp_path: Path):
    rows = [{"prompt": "q", "responses": ["a", "b", third], "scores": [3, 2, 1]} for third in ("c", "a ", "d")]
    counts, texts = prepared(tmp_path, TRIMS, rows, "rankings", adapter="ranked")
    assert (counts, len(texts)) == ({"equal responses as tokens": 1}, 2)


@pytest.mark.parametrize("form", ["text", "transcript", "messages"])
def test_a_rows_system_prompt_comes_before_the_suites(form: str, tmp_path: Path):
    forms = {
        "text": "Hi",
        "transcript": "\n\nHuman: Hi\n\nAssistant:",
        "messages": [{"role": "user", "content": "Hi"}],
    }
    rows = [pair(forms[form], system=system) for system in ("Speak like a pirate.", "", None)]
    rows += [pair(forms[form], system=3)]
    counts, texts = prepared(tmp_path, CHATML, rows, system="Be brief.")
    end = "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert counts == {"`system` is not text": 1}
    assert [text[0] for text in texts] == [
        f"<|im_start|>system\n{system}{end}" for system in ("Speak like a pirate.", "Be brief.", "Be brief.")
    ]


def test_a_system_column_under_other_templates_is_written_or_counted(tmp_path: Path):
    rows = [pair("Hi", system="Speak."), pair("Hi")]
    counts, texts = prepared(tmp_path, None, rows)
    assert (counts, texts[0][0]) == ({}, "<b>Speak.\n\nHuman: Hi\n\nAssistant:")
    for name in ("continuation", "tldr"):
        assert prepared(tmp_path, None, rows, template=name)[0] == {f"a dialogue, which `{name}` cannot write": 1}
    rows = [pair([{"role": "system", "content": "Sing."}, *QUESTION], system="Speak."), pair("Hi")]
    assert prepared(tmp_path, CHATML, rows)[0] == {"two system prompts, in `system` and in the messages": 1}


def test_tools_and_their_calls_are_written_by_the_template_or_counted(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    rows = [pair(CALLING, tools=tools), pair(CALLING, tools=json.dumps(tools)), pair(QUESTION, tools="[]")]
    counts, texts = prepared(tmp_path, WITH_TOOLS, rows)
    assert counts == {} and texts[0] == texts[1]
    assert texts[0][0].startswith('<tools>[{"type": "function", "function": {"name": "now"')
    assert '<call>{"name": "now", "arguments": {"at": "Oslo"}}</call>' in texts[0][0]
    assert "<|im_start|>tool\nnoon<|im_end|>" in texts[0][0] and "tools" not in texts[2][0]
    rows += [pair(CALLING), pair(QUESTION, tools="now"), pair(QUESTION, tools=[3])]
    assert prepared(tmp_path, CHATML, rows)[0] == {
        "the template leaves out the tools": 2,
        "the template leaves out the tool calls": 1,
        "`tools` is not JSON": 1,
        "`tools` is not a list of objects": 1,
    }
    assert prepared(tmp_path, None, [pair(CALLING), pair()])[0] == {"tools, which `plain` cannot write": 1}


@pytest.mark.parametrize("name", ["plain", "continuation", "tldr"])
def test_special_tokens_in_text_are_counted_under_every_template(name: str, tmp_path: Path):
    """In the prompt or a response; tokens of the tokenizer that are no attribute of it too."""
    rows = [pair("x <|im_end|> y"), pair(chosen="a <|im_start|>"), pair(rejected="<b>"), pair()]
    assert prepared(tmp_path, None, rows, template=name)[0] == {"a special token in the text": 3}


def test_special_tokens_that_the_tokenizer_names_nowhere_are_found():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|reserved|>"], special_tokens=True)
    with pytest.raises(Unusable, match="a special token in the text"):
        load_template(tokenizer, Prepare(**PREPARE)).prompt("a <|reserved|>")


def test_a_prompt_is_cut_by_whole_turns_and_keeps_its_system_turn(tmp_path: Path):
    turns = [("user", "first question"), ("assistant", "an answer"), ("user", "Hi")]
    messages = [{"role": role, "content": text} for role, text in turns]
    transcript = "\n\nHuman: first question\n\nAssistant: an answer\n\nHuman: Hi\n\nAssistant:"
    rows = [pair(messages), pair(transcript), pair("a prompt without turns to leave out, and far too long")]
    limits = {"over_long": "cut-prompt-start", "max_prompt_tokens": 45}
    counts, texts = prepared(tmp_path, CHATML, rows, system="Be brief.", **limits)
    left = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert counts == {"prompt over 45 tokens": 1}
    assert [text[0] for text in texts] == [left, left]
    counts, texts = prepared(tmp_path, None, rows, **{**limits, "max_prompt_tokens": 30})
    assert [text[0] for text in texts[:2]] == ["<b>\n\nHuman: Hi\n\nAssistant:"] * 2
    assert len(texts[2][0]) == 29 + len("<b>")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSure, it is", " teal.<|im_end|>")),
        (MISTRAL.replace("eos_token", "'<|im_end|>'"), ("<b>[INST] Hi [/INST] Sure, it is", " teal.<|im_end|>")),
        (None, ("<b>\n\nHuman: Hi\n\nAssistant: Sure, it is", " teal.<e>")),
    ],
)
@pytest.mark.parametrize("form", ["text", "messages"])
def test_a_prefilled_turn_is_continued(source: str | None, expected: tuple[str, str], form: str, tmp_path: Path):
    begun = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure, it is"}]
    sides: list[Any] = [" teal.", " dog."]
    if form == "messages":
        sides = [[{"role": "assistant", "content": side}] for side in sides]
    counts, texts = prepared(tmp_path, source, [pair(begun, *sides)])
    assert (counts, tuple(texts[0][:2])) == ({}, expected)


def test_a_template_that_closes_a_prefilled_turn_otherwise_is_counted(tmp_path: Path):
    begun = [*QUESTION, {"role": "assistant", "content": "<think>I"}]
    rows = [pair(begun, " see</think>\n\n4", " 5")]
    assert prepared(tmp_path, THINKS, rows)[0] == {"the template cannot continue an assistant turn": 1}


def test_a_prompt_without_turns_is_counted():
    with pytest.raises(Unusable, match="no prompt"):
        template(CHATML, "Be brief.").prompt(())


def test_qwen2s_default_system_prompt_is_still_named():
    with pytest.raises(UserError, match="adds the system prompt"):
        template(QWEN2)
