"""What an adapter asks of the model and the machine is checked when a run is planned."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from model_folder import write_model_folder
from prefdag.config.model import Architectural, Architecture
from prefdag.config.suite import Suite, resolve
from prefdag.errors import UserError
from prefdag.models.loading import build
from prefdag.planning.adapter_layers import LAYERS, adapter_doubts, layers_of
from prefdag.planning.suite_paths import check_paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_model_folder(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    return tmp_path


def suite(run: dict[str, Any], **sections: Any) -> Suite:
    runs = [{"name": name, "method": "dpo", "adapter": run} for name in "ab"]
    values = {"name": "x", "model": {"source": "model"}, "data": {"source": "rows.jsonl"}, "runs": runs}
    made = resolve(values | sections, "x.yaml")
    assert isinstance(made, Suite)
    return made


def mistakes(run: dict[str, Any], **sections: Any) -> list[str]:
    try:
        check_paths(suite(run, **sections), "x.yaml")
    except UserError as error:
        return str(error).split("\n")
    return []


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_layers_of_models_built_here(architecture: Any) -> None:
    model = build(Architectural(architecture=architecture, hidden_size=16, layers=1, heads=2), 32, 0, 1, seed=0)
    modules = model.base_model.named_modules()
    assert LAYERS[architecture] == {
        name.rpartition(".")[2] for name, one in modules if isinstance(one, (nn.Linear, Conv1D))
    }


def test_layers_of_a_model_folder(folder: Path) -> None:
    assert layers_of(suite({})) == LAYERS["llama"]


def test_a_layer_that_the_model_has_not_is_named(folder: Path) -> None:
    assert not mistakes({"target": ["q_proj", "down_proj"]})
    (line,) = mistakes({"target": ["q_proj", "c_attn"]})
    assert line.startswith(
        "x.yaml: runs.a.adapter.target: the model has no linear layer c_attn; name some of down_proj"
    )
    scratch = {"source": "scratch", "scratch": {"architecture": "gpt2"}}
    assert not mistakes({"target": ["c_attn"]}, model=scratch, pretrain={"learning_rate": 1e-3})
    (line,) = mistakes({"target": ["q_proj"]}, model=scratch, pretrain={"learning_rate": 1e-3})
    assert "no linear layer q_proj; name some of c_attn, c_fc, c_proj" in line
    (line,) = mistakes({}, sft={"adapter": {"target": ["lm_head"]}, "learning_rate": 1e-4})
    assert line.startswith("x.yaml: sft.adapter.target: the model has no linear layer lm_head")


def test_four_bits_need_a_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = mistakes({"base": "nf4"})
    assert line == ("x.yaml: runs.a.adapter.base: nf4 needs a CUDA device, and there is none; take bfloat16 or float32")
    monkeypatch.setattr("sys.argv", ["snakemake", "--executor", "slurm"])
    assert not mistakes({"base": "nf4"}), "its jobs run on other machines"


def test_a_rank_above_a_matrix_is_doubted(folder: Path) -> None:
    """The llama of the folder is 16 wide; built here with 4 heads and one for keys, its k_proj is 16 x 4."""
    config = json.loads((folder / "model/config.json").read_text())
    width = config["hidden_size"]
    assert not adapter_doubts(suite({"rank": width, "target": ["q_proj", "o_proj"]}))
    (line,) = adapter_doubts(suite({"rank": width + 1, "target": ["q_proj", "o_proj"]}))
    assert line == (
        f"runs.a.adapter.rank: {width + 1} is above the width of o_proj ({width}), q_proj ({width}): an adapter of "
        f"that rank has more parameters than the matrix and can express no more; lower it to {width} or less"
    )
    shape = {"architecture": "llama", "hidden_size": 16, "heads": 4, "key_value_heads": 1}
    scratch = {"model": {"source": "scratch", "scratch": shape}, "pretrain": {"learning_rate": 1e-3}}
    (line,) = adapter_doubts(suite({"rank": 8}, **scratch))
    assert "of k_proj (4), v_proj (4):" in line and line.endswith("lower it to 4 or less")
    assert not adapter_doubts(suite({"rank": 4}, **scratch))
    assert not adapter_doubts(suite({"rank": 4000}, model={"source": "hub:owner/name"})), "not known yet"
