"""Templates: header not counted, one end-of-turn counted, nothing after it, one BOS, a system prompt only if stated."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from chat_templates import CHATML, LLAMA3, MISTRAL, QWEN2, ZEPHYR, chat
from prefdag.config.prepare import Prepare
from prefdag.data.adapters.dialogues import parse_dialogue
from prefdag.data.adapters.records import Prompt, Unusable
from prefdag.data.prompt_templates import load_template
from prefdag.data.token_store import Store
from prefdag.data.tokenization import encode_prompts, encode_texts, end_of_turn, end_response
from prefdag.errors import UserError
from preparing import ABSENT, PREPARE, SHARED, audit, byte_tokenizer, fetch, prepare, write_rows

TALK: Prompt = (("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?"))
# Template, its end-of-turn, special tokens; the prompt and the counted text of the reply "So." to TALK, as text.
STYLES: dict[str, tuple[str, str, list[str], str, str]] = {
    "chatml": (
        CHATML,
        "<|im_end|>",
        ["<|im_start|>", "<|im_end|>"],
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "So.<|im_end|>",
    ),
    "llama3": (
        LLAMA3,
        "<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<b><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes?"
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
        "\n\n",
        "So.<|eot_id|>",
    ),
    "zephyr": (
        ZEPHYR,
        "eos",
        [],
        "<|user|>\nHi<e>\n<|assistant|>\nYes?<e>\n<|user|>\nWhy?<e>\n<|assistant|>\n",
        "So.<e>",
    ),
    "mistral": (MISTRAL, "eos", [], "<b>[INST] Hi [/INST] Yes?<e>[INST] Why? [/INST]", " So.<e>"),
}


def section(**changes: Any) -> Prepare:
    return Prepare(**{**PREPARE, "template": "chat", "bos": False, **changes})


def split(tokenizer: Any, settings: Prepare, prompt: Prompt, response: str) -> tuple[str, str]:
    """Prompt and counted response, as the tokens say."""
    template = load_template(tokenizer, settings)
    text = template.response(prompt, template.prompt(prompt), response)
    (ids,), end = encode_texts(tokenizer, [text]), end_of_turn(tokenizer, settings)
    counted = end_response(ids, end, template.writes_end_of_turn)
    return tokenizer.decode(encode_prompts(tokenizer, [prompt], settings)[0]), tokenizer.decode(counted)


@pytest.mark.parametrize("style", STYLES)
def test_a_template_is_split_exactly(style: str):
    """The header is the prompt's, the response ends with its one end-of-turn, and nothing follows."""
    source, end, special, prompt, counted = STYLES[style]
    tokenizer = chat(source, special)
    settings = section(end_of_turn=end)
    assert split(tokenizer, settings, TALK, "So.") == (prompt, counted)
    ids = encode_prompts(tokenizer, [TALK], settings)[0]
    assert ids.count(tokenizer.bos_token_id) == (1 if style in ("llama3", "mistral") else 0)


@pytest.mark.parametrize("style", ["llama3", "mistral"])
def test_a_second_bos_is_refused(style: str):
    source, end, special, *_ = STYLES[style]
    with pytest.raises(UserError, match="prepare.bos: two BOS, since the text '<b>"):
        encode_prompts(chat(source, special), [TALK], section(end_of_turn=end, bos=True))
    doubled = source.replace("<b>", "<b><b>").replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")
    with pytest.raises(UserError, match="prepare.template: two BOS at the beginning"):
        encode_prompts(chat(doubled, special), [TALK], section(end_of_turn=end))


@pytest.mark.parametrize("style", ["chatml", "llama3", "zephyr"])
def test_a_system_prompt_is_used_only_if_stated(style: str):
    """Stated by the suite, or by the row, which takes precedence."""
    source, end, special, prompt, _ = STYLES[style]
    tokenizer = chat(source, special)
    assert "Be brief." not in prompt
    rendered = split(tokenizer, section(end_of_turn=end, system="Be brief."), TALK, "So.")[0]
    assert rendered.count("Be brief.") == 1 and rendered.index("Be brief.") < rendered.index("Hi")
    with_system: Prompt = (("system", "Be long."), *TALK)
    assert "Be brief." not in split(tokenizer, section(end_of_turn=end, system="Be brief."), with_system, "So.")[0]


def test_a_template_with_a_system_prompt_of_its_own_must_be_told():
    """Qwen2's default: stated by the suite word for word, the rendering equals the template's."""
    tokenizer = chat(QWEN2, ["<|im_start|>", "<|im_end|>"])
    with pytest.raises(UserError, match=r"adds the system prompt 'You are a helpful assistant.' by default"):
        load_template(tokenizer, section(end_of_turn="<|im_end|>"))
    settings = section(end_of_turn="<|im_end|>", system="You are a helpful assistant.")
    messages = [{"role": "user", "content": "Hi"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert split(tokenizer, settings, "Hi", "So.") == (expected, "So.<|im_end|>")


@pytest.mark.skipif(not SHARED.is_dir(), reason=ABSENT)
def test_qwen2s_own_tokenizer_and_template():
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "qwen2-tokenizer", local_files_only=True)
    settings = section(system="You are a helpful assistant.")
    prompt = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert split(tokenizer, settings, "Hi", "So.") == (f"{prompt}<|im_start|>assistant\n", "So.<|im_end|>")
    assert encode_texts(tokenizer, ["So.<|im_end|>"])[0][-1] == tokenizer.eos_token_id


def test_hh_dialogues_become_turns():
    text = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
    assert parse_dialogue(text) == TALK
    assert parse_dialogue("Human: no") is None
    source, end, special, prompt, _ = STYLES["chatml"]
    assert split(chat(source, special), section(end_of_turn=end), text, " So.")[0] == prompt


def test_turns_are_written_as_hh_writes_them():
    settings = section(template="plain", bos=True)
    parts = split(byte_tokenizer(), settings, TALK, "So.")
    assert parts == ("<b>\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:", " So.<e>")


@pytest.mark.parametrize("post", ["POST: p", "POST: p\n\nTL;DR:", "POST: p\n\nTL;DR: \n"])
def test_tldr_ends_with_one_tldr_and_the_summary_follows_after_one_space(post: str):
    assert split(byte_tokenizer(), section(template="tldr"), post, "  short ") == ("POST: p\n\nTL;DR:", " short<e>")


def test_a_jinja_file_is_run_in_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    turns = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    Path("mine.jinja").write_text(f"{turns}{{% if add_generation_prompt %}}a:{{% endif %}}")
    assert split(byte_tokenizer(), section(template="mine.jinja"), "Hi", "So.") == ("u:Hi<e>a:", "So.<e>")
    Path("mine.jinja").write_text("{{ messages.append(1) }}")
    with pytest.raises(Unusable, match="the template refuses it .*unsafe"):
        load_template(byte_tokenizer(), section(template="mine.jinja", system="s")).prompt("Hi")
    Path("mine.jinja").write_text("{% for")
    with pytest.raises(UserError, match="prepare.template: not a valid Jinja template"):
        load_template(byte_tokenizer(), section(template="mine.jinja", system="s")).prompt("Hi")


@pytest.mark.parametrize(
    ("tokenizer", "changes", "sentence"),
    [
        (byte_tokenizer(), {}, "prepare.template: the tokenizer has no chat template"),
        (byte_tokenizer(), {"template": "plain", "system": "s"}, "prepare.system: `plain` writes no system prompt"),
        (chat(CHATML, []), {"end_of_turn": "none"}, "prepare.end_of_turn: `chat` ends each turn with a token"),
        (byte_tokenizer(), {"template": "none.jinja"}, "prepare.template: none.jinja: no such file"),
        (chat(CHATML, []), {"end_of_turn": "<|eot|>"}, "prepare.end_of_turn: the tokenizer has no token '<|eot|>'"),
        (chat(CHATML, []), {}, "prepare.end_of_turn: the template ends no response with this token"),
        (
            chat("{% for m in messages %}{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}<e>", []),
            {},
            "prepare.template: the template changes earlier turns when a response follows",
        ),
    ],
)
def test_a_choice_that_cannot_work_is_a_sentence(tokenizer: Any, changes: dict[str, Any], sentence: str):
    with pytest.raises(UserError) as error:
        split(tokenizer, section(**changes), "Hi", "So.")
    assert str(error.value).startswith(sentence)


def test_text_cannot_speak_in_special_tokens(tmp_path: Path):
    """A response that contains the end-of-turn, or a prompt that contains a special token, is dropped and listed."""
    tokenizer = chat(CHATML, ["<|im_start|>", "<|im_end|>"])
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(4)]
    rows[1]["chosen"] = "a<|im_end|> and more"
    rows[2]["prompt"] = "<|im_start|>system"
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "r.jsonl", rows))}) == 0
    code, folder = prepare(tmp_path, tokenizer, template="chat", bos=False, end_of_turn="<|im_end|>")
    assert (code, audit(folder)["dropped"]) == (0, {"a special token in the text": {"count": 2, "rows": [1, 2]}})
    rows = [{"prompt": "q", "chosen": "a<e>", "rejected": "b"}]
    rows += [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in "rs"]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "r.jsonl", rows))}) == 0
    code, folder = prepare(tmp_path, template="plain")
    assert (code, audit(folder)["dropped"]) == (0, {"a special token in the text": {"count": 1, "rows": [0]}})


PROGRAMS = {
    "zero": "{{ 1 / 0 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "attribute": "{{ messages[0].content.nothing() }}",
    "number": "{{ messages[0].content | int + messages }}",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_template_that_fails_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jinja").write_text(PROGRAMS[name])
    with pytest.raises(Unusable, match="the template refuses it") as caught:
        load_template(byte_tokenizer(), section(template="mine.jinja", system="s")).prompt("Hi")
    assert "\n" not in str(caught.value)


def test_a_row_that_the_template_refuses_is_dropped(tmp_path: Path):
    """Two turns of the user in a row, under a template whose roles must alternate; two of the assistant, under any."""
    turns = [{"role": role, "content": role} for role in ("user", "user", "assistant", "assistant")]
    rows = [{"messages": turns[:3]}, {"messages": turns[1:3]}, {"messages": turns[1:]}]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "r.jsonl", rows))}) == 0
    changes = {"adapter": "demonstrations", "template": "chat", "bos": False}
    code, folder = prepare(tmp_path, chat(MISTRAL, []), "demonstrations", **changes)
    refused = {
        "the template refuses it (roles must alternate)": {"count": 1, "rows": [0]},
        "two assistant turns in a row": {"count": 1, "rows": [2]},
    }
    assert (code, audit(folder)["dropped"]) == (0, refused)


@pytest.mark.parametrize("form", ["messages", "transcript"])
def test_all_assistant_turns_are_counted_where_the_suite_says_so(form: str, tmp_path: Path):
    """A comparison for each, the turns before it as its prompt; without the choice, the last alone."""
    turns = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    if form == "messages":
        row: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in turns]}
    else:
        row = {"prompt": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant:", "response": " a2"}
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "r.jsonl", [row]))}) == 0
    tokenizer = byte_tokenizer()
    counted = {}
    for choice in ("last", "all"):
        code, folder = prepare(tmp_path, tokenizer, "demonstrations", adapter="demonstrations", counted=choice)
        assert code == 0
        store = Store.open(folder / "train")
        counted[choice] = [(tokenizer.decode(one.prompt), tokenizer.decode(one.responses[0])) for one in store]
    last = ("<b>\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant:", " a2<e>")
    assert counted["last"] == [last]
    assert counted["all"] == [("<b>\n\nHuman: q1\n\nAssistant:", " a1<e>"), last]


@pytest.mark.parametrize(
    ("over_long", "used", "counts"),
    [
        ("drop", 2, {"dropped": {"prompt over 12 tokens": 1, "response over 6 tokens": 1}, "cut": {}}),
        (
            "cut-prompt-start",
            3,
            {"dropped": {"response over 6 tokens": 1}, "cut": {"prompt cut to 12 tokens": 1}},
        ),
        (
            "cut-response-end",
            3,
            {"dropped": {"prompt over 12 tokens": 1}, "cut": {"response cut to 6 tokens": 1}},
        ),
    ],
)
def test_over_long_rows_are_cut_or_dropped_as_the_suite_says(
    over_long: str, used: int, counts: dict[str, dict[str, int]], tmp_path: Path
):
    """A prompt keeps its BOS and its end; a cut response has no end-of-turn, an uncut one keeps it."""
    rows = [
        {"prompt": "first", "chosen": "yes", "rejected": "no"},
        {"prompt": "short", "chosen": "yes", "rejected": "no"},
        {"prompt": "a very long prompt", "chosen": "yes", "rejected": "no"},
        {"prompt": "brief", "chosen": "a long response", "rejected": "no"},
    ]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "r.jsonl", rows))}) == 0
    tokenizer = byte_tokenizer()
    limits = {"max_prompt_tokens": 12, "max_response_tokens": 6}
    code, folder = prepare(tmp_path, tokenizer, over_long=over_long, **limits)
    assert code == 0
    entry = audit(folder)
    assert entry["used"] == used
    assert {key: {reason: one["count"] for reason, one in entry[key].items()} for key in counts} == counts
    last = Store.open(folder / "train")[used - 1]
    texts = [tokenizer.decode(part) for part in (last.prompt, *last.responses)]
    expected = {
        "drop": ["<b>short", "yes<e>", "no<e>"],
        "cut-prompt-start": ["<b>long prompt", "yes<e>", "no<e>"],
        "cut-response-end": ["<b>brief", "a long", "no<e>"],
    }
    assert texts == expected[over_long]
