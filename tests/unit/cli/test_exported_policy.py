"""What is exported is what was evaluated: greedy text token for token, for every template, from real commands."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from chat_templates import CHATML, LLAMA3, ZEPHYR, chat
from prefdag.cli.main import main
from prefdag.config.model import Architectural
from prefdag.data.adapters.dialogues import as_messages, parse_dialogue
from prefdag.models.loading import build, load_policy, save
from prefdag.provenance.manifest import MANIFEST, describe, read_manifest
from preparing import ABSENT, PREPARE, SHARED, byte_tokenizer, write_rows

STORIES, QWEN2 = SHARED / "stories260K", SHARED / "qwen2-tokenizer"
TEXTS = ["Once upon a time", "The cat sat on", "Lily and Tom went to the park. They", "One day, a big dog"]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=ABSENT)


@dataclass(frozen=True)
class Case:
    """A model, how the suite writes prompts, and the prompts of its rows."""

    prepare: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase | Path
    prompts: list[Any]
    end: str
    added: tuple[str, ...] = ()  # tokens that the model was resized for


def turns(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def talk(text: str) -> list[dict[str, str]]:
    return [*turns("Hi"), {"role": "assistant", "content": "Yes?"}, *turns(text)]


def transcript(text: str) -> str:
    return f"\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: {text}\n\nAssistant:"


CHAT = ["<|im_start|>", "<|im_end|>"]
LLAMA = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CASES = {
    "plain text": lambda: Case({"template": "plain", "bos": True}, byte_tokenizer("<|end|>"), TEXTS, "<|end|>"),
    "plain transcripts": lambda: Case(
        {"template": "plain", "bos": True}, byte_tokenizer(), [transcript(one) for one in TEXTS], "<e>"
    ),
    "plain turns": lambda: Case({"template": "plain", "bos": False}, byte_tokenizer(), list(map(talk, TEXTS)), "<e>"),
    "continuation": lambda: Case({"template": "continuation", "bos": True}, byte_tokenizer(), TEXTS, "<e>"),
    "tldr": lambda: Case(
        {"template": "tldr", "bos": False},
        byte_tokenizer("<|end|>"),
        [TEXTS[0], f"{TEXTS[1]}\n\nTL;DR:", *TEXTS[2:]],
        "<|end|>",
    ),
    "chat": lambda: Case({"template": "chat", "bos": False}, chat(CHATML, CHAT), list(map(talk, TEXTS)), "<|im_end|>"),
    "chat, BOS and a system prompt": lambda: Case(
        {"template": "chat", "bos": True, "system": 'Say "yes" \\ \n{{ no }}.'},
        chat(CHATML, CHAT),
        [*map(talk, TEXTS[:3]), [{"role": "system", "content": "No."}, *turns(TEXTS[3])]],
        "<|im_end|>",
    ),
    "chat with its own BOS": lambda: Case(
        {"template": "chat", "bos": False}, chat(LLAMA3, LLAMA), list(map(turns, TEXTS)), "<|eot_id|>"
    ),
    "chat that ends with EOS": lambda: Case(
        {"template": "chat", "bos": True}, chat(ZEPHYR, []), list(map(talk, TEXTS)), "<e>"
    ),
}
REAL = {
    "stories": Case({"template": "continuation", "bos": True}, STORIES, TEXTS, "."),
    "stories, plain": Case({"template": "plain", "bos": True}, STORIES, [transcript(one) for one in TEXTS], ","),
    "stories, tldr": Case({"template": "tldr", "bos": True}, STORIES, TEXTS, "<|end|>", ("<|end|>", "<|user|>")),
    "qwen2": Case({"template": "auto", "bos": "auto"}, QWEN2, list(map(talk, TEXTS[:2])), "<|im_end|>"),
}


def write_model(case: Case, folder: Path) -> PreTrainedTokenizerBase:
    """Write the base: a real model, or a small one whose greedy text ends after some tokens."""
    is_real = isinstance(case.tokenizer, Path)
    tokenizer = AutoTokenizer.from_pretrained(case.tokenizer) if is_real else case.tokenizer
    torch.manual_seed(0)
    if is_real and (case.tokenizer / "model.safetensors").is_file():
        model = AutoModelForCausalLM.from_pretrained(case.tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": list(case.added)})
        if case.added:
            model.resize_token_embeddings(len(tokenizer))
    else:
        shape = Architectural(architecture="llama", hidden_size=16, layers=2, heads=2, tie_embeddings=False)
        model = build(shape, len(tokenizer), tokenizer.bos_token_id or 0, 1, seed=0)
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    end = tokenizer.convert_tokens_to_ids(case.end)
    if case.end not in (".", ","):
        model.set_attn_implementation("eager")
        with torch.no_grad():  # in place of what the model writes as its ninth token
            ids = model.generate(torch.tensor([tokenizer(TEXTS[0])["input_ids"]]), max_new_tokens=9, do_sample=False)
            head = model.get_output_embeddings().weight
            head[end] = 1.2 * head[ids[0, -1]]
    model.generation_config.update(eos_token_id=2)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    # What a base may state: none of it was evaluated.
    stated = {"eos_token_id": [2, 5], "repetition_penalty": 1.3, "max_length": 20, "pad_token_id": 99999}
    (folder / "generation_config.json").write_text(json.dumps({**stated, "do_sample": True, "top_k": 7}))
    return tokenizer


def evaluate(case: Case, root: Path) -> list[dict[str, Any]]:
    """Fetch, prepare and generate by their commands, with the base saved as SFT saves it; return the answers."""
    base, suite = root / "base", root / "results/toy"
    write_model(case, base)
    rows = [{"prompt": one, "chosen": " Yes so it is", "rejected": " No"} for one in case.prompts]
    for split in ("train", "test"):
        write_rows(root / f"rows/{split}.jsonl", rows)

    def command(stage: str, name: str, config: dict[str, Any], *options: str) -> Path:
        output = suite / stage / name / MANIFEST
        assert main([stage, "--config", json.dumps(config), *options, "--output", str(output)]) == 0
        return output

    model = command("fetch", "model", {"model": {"source": str(base)}})
    data = {"source": str(root / "rows"), "train": "train.jsonl", "test": "test.jsonl"}
    rows_of = command("fetch", "data", {"data": data})
    prepare = {**PREPARE, "end_of_turn": case.end, "leakage": "allow", **case.prepare}
    settings = {"prepare": prepare, "dataset": "comparisons"}
    prepared = command("prepare", "comparisons", settings, "--rows", str(rows_of), "--tokenizer", str(model))
    save(load_policy(model.parent / "model", torch.device("cpu")), model.parent / "model", suite / "sft/model")
    inputs = {"base": read_manifest(model).sha256, "demonstrations": read_manifest(prepared).sha256}
    (suite / "sft" / MANIFEST).write_bytes(describe(suite / "sft", "sft", {}, {}, inputs, {}))
    greedy = {"generate": {"temperature": 0, "max_new_tokens": 24}}
    options = ("--policy", str(suite / "sft" / MANIFEST), "--comparisons", str(prepared))
    answers = command("generate", "sft", greedy, *options).parent / "generations.jsonl"
    return [json.loads(line) for line in answers.read_text().split("\n") if line]


def messages_of(prompt: Any) -> list[dict[str, Any]]:
    if not isinstance(prompt, str):
        return prompt
    parsed = parse_dialogue(prompt)
    return as_messages(parsed)[0] if parsed else turns(prompt)


def check(case: Case, root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[dict[str, Any]]]:
    monkeypatch.chdir(root)
    answers = evaluate(case, root)
    assert main(["export", "sft", "--to", "out"]) == 0
    folder = root / "out"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for prompt, answer in zip(case.prompts, answers, strict=True):
        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        inputs = tokenizer.apply_chat_template(messages_of(prompt), **options)
        assert inputs["input_ids"][0].tolist() == answer["prompt_ids"]
        ids = model.generate(**inputs)[0].tolist()
        assert ids == answer["prompt_ids"] + answer["ids"]
    batch = [messages_of(prompt) for prompt in case.prompts]
    inputs = tokenizer.apply_chat_template(batch, padding=True, **options)
    padded = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    for row, answer in zip(padded.tolist(), answers, strict=True):
        assert row[: len(answer["ids"])] == answer["ids"]
    assert case.tokenizer == QWEN2 or any(answer["ended"] for answer in answers), "some greedy text must end"
    return folder, answers


@pytest.mark.parametrize("name", CASES)
def test_an_exported_policy_writes_what_was_evaluated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]()
    folder, answers = check(case, tmp_path, monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(case.end)
    stated = json.loads((folder / "generation_config.json").read_text())
    assert {key: stated.get(key) for key in ("eos_token_id", "do_sample", "max_new_tokens")} == {
        "eos_token_id": end,
        "do_sample": False,
        "max_new_tokens": 24,
    }
    assert not {"repetition_penalty", "max_length", "top_k"} & stated.keys()
    assert tokenizer.eos_token_id == end == json.loads((folder / "config.json").read_text())["eos_token_id"]
    card = (folder / "README.md").read_text()
    assert f"| end of turn | `{case.end}` ({end}) |" in card and f"`{case.prepare['template']}`" in card
    assert ("`<b>` (0), once" in card) == bool(case.prepare["bos"])
    texts = case.prepare["template"] != "chat"
    for answer in answers if texts else ():
        text = tokenizer.decode(answer["prompt_ids"], skip_special_tokens=True)
        assert tokenizer(text)["input_ids"] == answer["prompt_ids"], "text is encoded with the BOS of training"


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_a_real_model_and_tokenizers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, answers = check(REAL[name], tmp_path, monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoTokenizer.from_pretrained(tmp_path / "base")
    for answer in answers:
        assert tokenizer.decode(answer["ids"], skip_special_tokens=True) == base.decode(
            answer["ids"], skip_special_tokens=True
        )
    end = tokenizer.convert_tokens_to_ids(REAL[name].end)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == end


def test_a_broken_twin_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with training fails for a template with one space too many, so no template is exported."""
    from prefdag.cli.exporting import prompt_format

    monkeypatch.setattr(prompt_format, "SUMMARY", prompt_format.SUMMARY.replace("TL;DR:' }}", "TL;DR: ' }}"))
    monkeypatch.chdir(tmp_path)
    evaluate(CASES["tldr"](), tmp_path)
    assert main(["export", "sft", "--to", "out"]) == 0
    assert AutoTokenizer.from_pretrained("out").chat_template is None
    assert "No chat template gives" in Path("out/README.md").read_text()
