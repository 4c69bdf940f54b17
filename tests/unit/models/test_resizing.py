"""Rows added to the embeddings: the mean of the others, while every other number stays as it was."""

import ast
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import ROOT
from model_folder import write_model_folder
from prefdag.cli.main import main
from prefdag.data.tokenization import check_rows
from prefdag.errors import UserError

LOADERS = [path for path in (ROOT / "workflow/prefdag").rglob("*.py") if ".from_pretrained(" in path.read_text()]


def write_with_new_token(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = True) -> Path:
    write_model_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>", "<|newer|>"]})
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, tie_word_embeddings=tied)
    if not tied:
        model.lm_head.weight.data.normal_()
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1, "max_length": 77}')
    return folder


def fetched(folder: Path, **model: object) -> int:
    config = json.dumps({"model": {"source": str(folder / "base"), **model}})
    return main(["fetch", "--config", config, "--output", str(folder / "out/fetch/model/manifest.json")])


@pytest.mark.parametrize(("dtype", "tied"), [(torch.float32, True), (torch.bfloat16, False)])
def test_added_rows_are_the_mean_and_nothing_else_changes(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    base = write_with_new_token(tmp_path / "base", dtype, tied)
    bytes_before = (base / "model.safetensors").read_bytes()
    assert fetched(tmp_path, resize=True) == 0
    assert (base / "model.safetensors").read_bytes() == bytes_before, "the user's file has a second name in results"
    before, after = (
        AutoModelForCausalLM.from_pretrained(one, dtype="auto") for one in (base, tmp_path / "out/fetch/model/model")
    )
    rows = before.get_input_embeddings().weight.shape[0]
    assert (after.dtype, after.config.tie_word_embeddings, after.config.vocab_size) == (dtype, tied, rows + 2)
    for layer, old in (
        (after.get_input_embeddings(), before.get_input_embeddings()),
        (after.get_output_embeddings(), before.get_output_embeddings()),
    ):
        assert torch.equal(layer.weight[:rows], old.weight)
        assert torch.equal(layer.weight[rows:], old.weight.float().mean(0).to(dtype).expand(2, -1))
    ids = torch.arange(20)[None]
    assert torch.equal(after(ids).logits[..., :rows], before(ids).logits)
    assert torch.isfinite(after(torch.tensor([[rows, rows + 1]])).logits).all()
    facts = json.loads((tmp_path / "out/fetch/model/manifest.json").read_text())["facts"]
    assert facts["embedding_rows"] == {"before": rows, "after": rows + 2}
    assert json.loads((tmp_path / "out/fetch/model/model/generation_config.json").read_text())["max_length"] == 77


def test_without_leave_it_is_refused_and_with_nothing_to_add_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_with_new_token(tmp_path / "base")
    assert fetched(tmp_path) == 2
    error = capsys.readouterr().err
    assert "its tokenizer has the token '<|new|>' of id" in error and "set model.resize to true" in error
    write_model_folder(tmp_path / "base")
    assert fetched(tmp_path, resize=True) == 0
    assert "every token has a row, so none was added" in capsys.readouterr().out


def test_prepare_refuses_a_token_that_only_the_loaded_tokenizer_shows(tmp_path: Path) -> None:
    """A folder of a sentencepiece model states its tokens in no file that is read as text."""
    folder = write_with_new_token(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(UserError, match=r"base: its tokenizer has the token '<\|new\|>' of id"):
        check_rows(tokenizer, folder)
    (folder / "config.json").unlink()
    check_rows(tokenizer, folder)


@pytest.mark.parametrize("path", LOADERS, ids=lambda path: path.stem)
def test_no_code_of_a_model_is_ever_run(path: Path) -> None:
    """Without the argument transformers asks on the terminal."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    loads = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"]
    loads = [call for call in loads if not ast.unparse(call.func).startswith("Peft")]  # which has no code of models
    for call in loads:
        stated = {one.arg: one.value for one in call.keywords}
        value = stated.get("trust_remote_code")
        in_options = None in stated and '"trust_remote_code": False' in path.read_text()
        assert in_options or (isinstance(value, ast.Constant) and value.value is False), f"line {call.lineno}"
