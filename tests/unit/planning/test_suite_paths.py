"""Local files of a suite are checked before any job runs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gguf_model import write_gguf
from prefdag.config.hub_lock import repositories
from prefdag.config.suite import resolve
from prefdag.errors import UserError
from prefdag.planning import machine
from prefdag.planning.local_files import files_of
from prefdag.planning.machine import absent_gpus, asks_for_slurm, check_machine
from prefdag.planning.suite_paths import check_paths
from prefdag.provenance.digests import Digests
from prefdag.provenance.manifest import sha256_of

RUNS = [{"name": "a", "method": "dpo"}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rows and a model, as a suite names them."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "model", "packed"):
        (tmp_path / name).mkdir()
    for name in ("cut.gguf", "packed/a.gguf"):
        (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0")
    (tmp_path / "data/mine.jsonl").write_text("{}\n")
    (tmp_path / "questions.py").write_text("def f(prompts, responses): ...\nG = f\n")
    (tmp_path / "unfinished_metric.py").write_text("def g(:\n")
    (tmp_path / "model/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model/model.safetensors").write_text("")
    return tmp_path


def mistakes(**sections: Any) -> list[str]:
    values = {"name": "x", "model": {"source": "model"}, "data": {"source": "data/mine.jsonl"}, "runs": RUNS}
    try:
        check_paths(resolve(values | sections, "x.yaml"), "x.yaml")
    except UserError as error:
        return [line.removeprefix("x.yaml: ") for line in str(error).split("\n")]
    return []


PATHS = "paths are relative to the folder in which Snakemake runs"
MISTAKES = [
    ({"data": {"source": "data/mien.jsonl"}}, "data.source: data/mien.jsonl does not exist (did you mean data/mine.js"),
    ({"data": {"source": "/none"}}, f"data.source: /none does not exist; {PATHS}"),
    ({"data": {"source": "data"}}, "data.train: missing; name the file (or glob) of training rows inside data"),
    ({"data": {"source": "data", "train": "a*.csv"}}, "data.train: no file matches 'a*.csv' in data"),
    ({"data": {"source": "data/mine.jsonl", "train": "a", "test": "b"}}, "data.test: data/mine.jsonl is one file and"),
    ({"sft": {"data": {"source": "none.jsonl"}}}, f"sft.data.source: none.jsonl does not exist; {PATHS}"),
    ({"sft": {"data": {"source": "data", "train": "a*"}}}, "sft.data.train: no file matches 'a*' in data"),
    (
        {"sft": {"data": {"source": "data/mine.jsonl", "template": "t.jinja"}}},
        "sft.data.template: t.jinja does not exist; its path is relative to the suite's file",
    ),
    ({"model": {"source": "ow/ner"}}, "model.source: ow/ner does not exist; for a repository of the Hub write `hub:ow"),
    ({"model": {"source": "data"}}, "model.source: data holds no config.json; name a model folder"),
    ({"model": {"source": "none.gguf"}}, f"model.source: none.gguf does not exist; {PATHS}"),
    ({"model": {"source": "cut.gguf"}}, "model.source: cut.gguf is no GGUF file, or is cut short; download"),
    ({"model": {"source": "data/mine.jsonl"}}, "model.source: data/mine.jsonl is a file; name the folder of a transf"),
    ({"data": {"source": "pypi:rows==1"}}, "data.source: pypi:rows==1 does not exist"),
    ({"model": {"source": "packed"}}, "model.source: packed is a folder; name the .gguf file in it"),
    ({"prepare": {"template": "t.jinja"}}, "prepare.template: t.jinja does not exist; its path is relative to the sui"),
    ({"runs": [{"name": "p", "method": "ppo", "reward": "r.py:f"}]}, "runs.p.reward: r.py does not exist; its path is"),
    (
        {"runs": [{"name": "p", "method": "dpo", "pairs": {"law": "max_min", "reward": "r.py:f"}}]},
        "runs.p.pairs.reward: r.py does not exist; its path is",
    ),
    ({"score": {"metrics": ["a.py:f"]}}, "score.metrics: a.py does not exist; its path is relative to the suite's fil"),
    ({"score": {"metrics": ["questions.py:g"]}}, "score.metrics: questions.py has no function g; write `def g(p"),
    ({"score": {"metrics": ["unfinished_metric.py:g"]}}, "score.metrics: unfinished_metric.py is not valid"),
    ({"score": {"metrics": ["questions.py:G"]}}, "score.metrics: questions.py has no function G; write `def G(p"),
    (
        {"score": {"metrics": ["questions.py"]}},
        "score.metrics: expected <file>.py:<function> with the file's path relati",
    ),
    (
        {"score": {"metrics": ["questions.py:kl"]}},
        "score.metrics: a column called kl exists; give the function of quest",
    ),
    (
        {"score": {"metrics": ["questions.py:f", "b.py:f"]}},
        "score.metrics: two functions are called f; give one another n",
    ),
    ({"prepare": {"adapter": "a.py:f"}}, "prepare.adapter: a.py does not exist; its path is relative to the suite's f"),
]


@pytest.mark.parametrize(("sections", "sentence"), MISTAKES)
def test_a_wrong_path_is_a_sentence(folder: Path, sections: dict[str, Any], sentence: str):
    (line,) = mistakes(**sections)
    assert line.startswith(sentence)


def test_all_wrong_paths_are_said_at_once_and_right_ones_pass(folder: Path):
    assert not mistakes()
    assert not mistakes(model={"source": "pypi:a==1.0"})
    assert not mistakes(model={"source": "hub:a/b"}, data={"source": "hub:c/d", "train": "x"})
    assert len(mistakes(model={"source": "none"}, data={"source": "none"})) == 2


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "llama"}, None),
        ({"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "m.M"}, "quantization_config": None}, None),
        (
            {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "m.M"}},
            "model.source: model: its model_type 'mine' needs Python code of its own (auto_map), which is never run",
        ),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}},
            "model.source: model: its weights are quantised (bitsandbytes), which cannot be trained; name the model in",
        ),
        (
            {"model_type": "gemma3", "text_config": {"quantization_config": {"load_in_4bit": True}}},
            "model.source: model: its weights are quantised (no method stated)",
        ),
        (
            {"model_type": "mixtral", "output_router_logits": True},
            "model.source: model: its config adds a router loss (output_router_logits), which no loss here has; set",
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "dynamic"}},
            "model.source: model: its dynamic rotary scaling depends on what shares a batch",
        ),
        (
            {"model_type": "vit"},
            "model.source: model: its model_type 'vit' is no causal language model of ",
        ),
        ({}, "model.source: model: its config.json states no model_type"),
        ([], "model.source: model: its config.json is not valid"),
    ],
)
def test_a_model_that_cannot_answer_is_refused_before_anything_is_fetched(folder: Path, config: Any, sentence: str):
    (folder / "model/config.json").write_text(json.dumps(config))
    lines = mistakes()
    assert len(lines) == (sentence is not None)
    assert not lines or lines[0].startswith(sentence)


def test_a_gguf_file_is_read_when_the_run_is_planned(folder: Path):
    """Its content is part of the job's config: another file of the same name is fetched again."""
    write_gguf(folder / "small.gguf")
    short = {"max_new_tokens": 64}
    assert not mistakes(model={"source": "small.gguf"}, generate=short)
    values = {"name": "x", "data": {"source": "data/mine.jsonl"}, "runs": RUNS}
    suite = resolve({**values, "model": {"source": "small.gguf"}}, "x.yaml")
    digests = Digests(folder / "digests.json")
    assert files_of(suite, "fetch", "model", digests) == {"small.gguf": sha256_of(folder / "small.gguf")}
    (folder / "small.gguf").write_bytes((folder / "small.gguf").read_bytes()[:-100])
    (line,) = mistakes(model={"source": "small.gguf"}, generate=short)
    assert line.startswith("model.source: small.gguf is cut short: it has ")
    packaged = resolve({**values, "model": {"source": "pypi:a==1.0"}}, "x.yaml")
    assert [one.key for one in repositories(packaged.data, packaged.model)] == ["wheel a==1.0"]


def test_adapters_and_models_are_not_mixed_up(folder: Path):
    (folder / "model/adapter_config.json").write_text("{}")
    (line,) = mistakes()
    assert line.startswith(
        "model.source: model holds a whole model and an adapter (adapter_config.json); name a folder"
    )
    (folder / "model/config.json").unlink()
    (line,) = mistakes()
    assert line.startswith("model.source: model is an adapter, and its base is not here; state it as `model.base`: a")


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<|end|>"}]}},
        {"tokenizer.json": {"model": {"vocab": [["a", 0.0], ["b", -1.0], ["<|end|>", 0.0]]}}},
        {"vocab.json": {"a": 0, "b": 1}, "added_tokens.json": {"<|end|>": 2}},
        {"vocab.json": {"a": 0}, "tokenizer_config.json": {"added_tokens_decoder": {"2": {"content": "<|end|>"}}}},
    ],
)
def test_a_token_without_a_row_of_the_embeddings(folder: Path, files: dict[str, Any]):
    for name, content in files.items():
        (folder / "model" / name).write_text(json.dumps(content))
    config = folder / "model/config.json"
    config.write_text('{"model_type": "llama", "vocab_size": 2}')
    (line,) = mistakes()
    assert line.startswith(
        "model.source: model: its tokenizer has the token '<|end|>' of id 2, its embeddings have 2 rows; set model.resi"
    )
    assert not mistakes(model={"source": "model", "resize": True})
    config.write_text('{"model_type": "llama", "vocab_size": 3}')
    assert not mistakes()


def test_a_model_without_weights(folder: Path):
    (folder / "model/model.safetensors").unlink()
    assert mistakes() == ["model.source: model holds no weights (*.safetensors); convert or download them"]


def test_slurm_is_looked_for_if_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text("jobs: 3\nexecutor: slurm\n")
    for words in (["--executor", "slurm"], ["-e", "slurm"], ["--profile", str(tmp_path / "mine")]):
        assert asks_for_slurm(words, {})
    assert asks_for_slurm([], {"SNAKEMAKE_PROFILE": str(tmp_path / "mine")})
    assert not asks_for_slurm(["--executor", "local", "--profile", str(tmp_path / "mine")], {})
    assert not asks_for_slurm(["--cores", "2"], {})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="executor slurm: there is no sbatch on this machine"):
        check_machine(["-e", "slurm"], {})
    check_machine(["-e", "slurm", "-n"], {})
    for name, body in (("sbatch", "exit 0"), ("sinfo", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(UserError, match="Slurm's controller does not answer"):
        check_machine(["-e", "slurm"], {})
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit 0\n")
    check_machine(["-e", "slurm"], {})


def test_gpus_that_the_machine_has_not_are_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(machine, "listed_devices", list)
    assert absent_gpus({}) is None and absent_gpus({"PREFDAG_GPUS": ""}) is None
    check_machine([], {"PREFDAG_GPUS": "0,1"})
    assert capsys.readouterr().err == (
        "prefdag: PREFDAG_GPUS names 0,1, but nvidia-smi lists no GPU on this machine: models run on its CPUs\n"
    )
    monkeypatch.setattr(machine, "listed_devices", lambda: ["0", "1"])
    assert absent_gpus({"PREFDAG_GPUS": "0,1"}) is None


@pytest.mark.parametrize(
    ("signature", "is_right"),
    [
        ("prompts, responses", True),
        ("p, r, scale=1.0", True),
        ("*texts", True),
        ("prompts, responses, *, scale=1.0, **kwargs", True),
        ("prompts", False),
        ("completions, **kwargs", False),
        ("completions, prompts", False),
        ("prompts, responses, answers", False),
        ("prompts, responses, *, scale", False),
    ],
)
def test_a_users_reward_takes_prompts_and_responses(folder: Path, signature: str, is_right: bool) -> None:
    (folder / "r.py").write_text(f"def f({signature}): ...\n")
    runs = [
        {"name": "p", "method": "ppo", "reward": "r.py:f"},
        {"name": "d", "method": "dpo", "pairs": {"law": "max_min", "reward": "r.py:f"}},
    ]
    lines = mistakes(runs=runs, score={"metrics": ["r.py:f"]})
    assert len(lines) == (0 if is_right else 3)
    assert all("is called with prompts and responses; write `def f(prompts, responses)`" in line for line in lines)


def test_vllm_is_looked_for_before_any_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"name": "p", "method": "rloo", "sampler": "vllm"}
    monkeypatch.setattr("prefdag.planning.sampling_limits.has_vllm", lambda: False)
    (line,) = mistakes(runs=[run, {**run, "name": "q"}])
    assert line == "runs.p.sampler: vllm is not installed on this machine; `pip install vllm`, or remove `sampler`"
    (line,) = mistakes(generate={"backend": "vllm"})
    assert line.startswith("generate.backend: vllm is not installed")
    monkeypatch.setattr(sys, "argv", ["snakemake", "--executor", "slurm"])
    assert not mistakes(runs=[run]), "its jobs run on other machines"


def test_answers_fit_the_context_that_a_gguf_file_states(folder: Path) -> None:
    """The file's header says 128; a broken file is reported as such, once."""
    write_gguf(folder / "small.gguf")
    model = {"source": "small.gguf"}
    (line,) = mistakes(model=model, generate={"max_new_tokens": 128})
    assert line.startswith("generate.max_new_tokens: answers of 128 tokens leave no room") and "of 128 tokens;" in line
    assert not mistakes(model=model, generate={"max_new_tokens": 127})
    (line,) = mistakes(model={"source": "cut.gguf"}, generate={"max_new_tokens": 128})
    assert line.startswith("model.source: cut.gguf is no GGUF file")


def test_answers_leave_room_for_a_prompt_in_the_context(folder: Path) -> None:
    (folder / "model/config.json").write_text('{"model_type": "llama", "max_position_embeddings": 256}')
    runs = [{"name": "p", "method": "rloo", "max_new_tokens": 5000}]
    (line,) = mistakes(runs=runs)
    assert line.startswith(
        "runs.p.max_new_tokens: answers of 5000 tokens leave no room for a prompt in the model's con"
    )
    (line,) = mistakes(generate={"max_new_tokens": 256})
    assert line.startswith("generate.max_new_tokens: answers of 256 tokens")
    assert not mistakes(generate={"max_new_tokens": 255})
    scratch = {"source": "scratch", "scratch": {"architecture": "gpt2", "context": 100}}
    (line,) = mistakes(
        model=scratch,
        pretrain={"learning_rate": 1e-3},
        generate={"max_new_tokens": 99, "variants": {"long": {"max_new_tokens": 100}}},
    )
    assert line.startswith("generate.variants.long.max_new_tokens: answers of 100 tokens")
