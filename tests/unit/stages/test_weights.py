"""Weights that a stage only passes on have one copy on disk."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from model_folder import write_model_folder
from prefdag.cli.main import main
from prefdag.provenance.links import link_or_copy
from prefdag.provenance.manifest import read_manifest
from preparing import fetch, write_rows

WEIGHTS = "model.safetensors"
PREPARE = {"adapter": "pairs", "template": "chat", "bos": False, "end_of_turn": "<|im_end|>", "over_long": "drop"}
PREPARE |= {"max_prompt_tokens": 200, "max_response_tokens": 200, "validation_fraction": 0.3}


def run(folder: Path, output: str, config: dict[str, Any], **inputs: str) -> Path:
    options = [text for name, path in inputs.items() for text in (f"--{name}", str(folder / path / "manifest.json"))]
    target = folder / output / "manifest.json"
    assert main([output.split("/")[0], "--config", json.dumps(config), *options, "--output", str(target)]) == 0
    return target


def sft_of(folder: Path, steps: int) -> Path:
    """The manifest of an SFT policy of `steps` steps, from a model in the folder `mine`."""
    rows = [{"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(20)]
    assert fetch(folder, {"source": str(write_rows(folder / "rows.jsonl", rows))}) == 0
    out = folder / "out"
    run(out, "fetch/model", {"model": {"source": str(folder / "mine")}})
    config = {"prepare": PREPARE, "dataset": "demonstrations"}
    run(out, "prepare/demonstrations", config, rows="fetch/data", tokenizer="fetch/model")
    config = {"sft": {"max_steps": steps, "batch_size": 4, "learning_rate": 1e-3}}
    return run(out, "sft", config, base="fetch/model", demonstrations="prepare/demonstrations")


def test_an_untrained_policy_is_the_users_file(tmp_path: Path):
    """One inode for the user's folder, `fetch` and `sft`; a trained policy has weights of its own."""
    mine = write_model_folder(tmp_path / "mine") / WEIGHTS
    untrained = sft_of(tmp_path, steps=0).parent / "model" / WEIGHTS
    assert os.path.samefile(mine, untrained) and os.path.samefile(mine, tmp_path / "out/fetch/model/model" / WEIGHTS)
    trained = sft_of(tmp_path, steps=1).parent / "model" / WEIGHTS
    assert not os.path.samefile(mine, trained) and trained.read_bytes() != mine.read_bytes()


def test_the_others_outlive_one_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Without the user's folder the results are whole; replacing the file there changes none of them."""
    mine = write_model_folder(tmp_path / "mine")
    manifest = sft_of(tmp_path, steps=0)
    shutil.rmtree(mine)
    read_manifest(manifest).check(lambda name: True)
    write_model_folder(tmp_path / "mine", context=256)
    read_manifest(manifest).check(lambda name: True)
    shutil.rmtree(tmp_path / "out/fetch/model")
    read_manifest(manifest).check(lambda name: True)


def test_where_no_link_can_be_made_it_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("weights")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "weights" and not os.path.samefile(tmp_path / "a", tmp_path / "b")


def test_a_symbolic_link_is_followed(tmp_path: Path):
    """The Hub's cache holds links to blobs; a link to such a link would dangle in another folder."""
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "snapshot").symlink_to("blob")
    (tmp_path / "out").mkdir()
    link_or_copy(tmp_path / "snapshot", tmp_path / "out/model")
    assert not (tmp_path / "out/model").is_symlink() and (tmp_path / "out/model").read_text() == "weights"
