"""A new user's first suite: `prefdag init`, `prefdag check` and `snakemake` on a model folder and 60 rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conftest import Project, checkout, environment
from model_folder import write_model_folder


@pytest.fixture
def project(tmp_path: Path) -> Project:
    copy = checkout(tmp_path)
    write_model_folder(tmp_path / "models/mine")
    return copy


def prefdag(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {**environment(), "PYTHONPATH": str(project.folder / "workflow")}
    command = [sys.executable, "-m", "prefdag", *words]
    return subprocess.run(command, cwd=project.folder, env=variables, capture_output=True, text=True)


def write_pairs(path: Path, num: int, **last: str) -> None:
    rows = [
        {"prompt": f"What is {n} and {n}?", "chosen": f"It is {2 * n}.", "rejected": "Who knows?"} for n in range(num)
    ]
    rows[-1] |= last
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_ten_minutes(project: Project):
    """The suite that `init` writes runs to its report; 59 of 60 rows are used, and it says so."""
    write_pairs(project.folder / "mine.jsonl", 60, rejected="It is 118.")
    written = prefdag(project, "init", "--model", "models/mine", "--data", "mine.jsonl")
    assert written.returncode == 0, written.stderr
    checked = prefdag(project, "check", "configs/mine.yaml")
    assert checked.returncode == 0, checked.stderr
    assert "1 dropped, equal responses: rows 60" in checked.stdout
    run = project.snakemake("--cores", "2", suite="configs/mine.yaml")
    assert run.returncode == 0, run.stderr
    results = project.folder / "results/mine"
    runs = pd.read_csv(results / "report/runs.csv").set_index("run")
    assert list(runs.index) == ["base", "sft", "dpo"] and runs["reward"].notna().all()
    assert list(runs.columns[-3:]) == ["rows_used", "rows_dropped", "ended"] and runs["rows_used"]["dpo"] >= 50
    page = (results / "report/index.html").read_text()
    assert "59 of 60 comparisons are used" in page and 'href="../prepare/comparisons/audit.html"' in page
    assert "dropped: 1 equal responses" in run.stdout + run.stderr
    weights = [results / f"{name}/model/model.safetensors" for name in ("fetch/model", "sft")]
    assert all(os.path.samefile(project.folder / "models/mine/model.safetensors", path) for path in weights)
    again = project.snakemake("-n", suite="configs/mine.yaml")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_single_responses(project: Project):
    """`init` writes KTO for labelled rows; 15 desirable and 45 undesirable ones run to the report, with SFT and BCO."""
    rows = [
        {"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}." if n % 4 == 0 else "Who knows?"}
        for n in range(60)
    ]
    rows = [{**row, "label": n % 4 == 0} for n, row in enumerate(rows)]
    (project.folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = prefdag(project, "init", "--model", "models/mine", "--data", "mine.jsonl")
    assert written.returncode == 0, written.stderr
    project.edit("configs/mine.yaml", "max_steps: 0", "max_steps: 2")
    with (project.folder / "configs/mine.yaml").open("a") as suite:
        suite.write("  - {name: bco, method: bco, beta: 0.1}\n")
    run = project.snakemake("--cores", "2", suite="configs/mine.yaml")
    assert run.returncode == 0, run.stderr
    results, console = project.folder / "results/mine", run.stdout + run.stderr
    runs = pd.read_csv(results / "report/runs.csv").set_index("run")
    assert list(runs.index) == ["base", "sft", "kto", "bco"] and runs["reward"].notna().all()
    splits = json.loads((results / "prepare/comparisons/audit.json").read_text())["splits"]
    labels = splits["train"]["labels"]
    assert sum(split["labels"]["desirable"] for split in splits.values()) == 15
    assert f"train: {labels['desirable']} desirable, {labels['undesirable']} undesirable (KTO: lambda_d from" in console
    trained = json.loads((results / "prepare/demonstrations/manifest.json").read_text())["facts"]["train"]["used"]
    assert trained == labels["desirable"] and "dropped:" in console and "labelled bad" in console
    facts = json.loads((results / "preference/kto/manifest.json").read_text())["facts"]
    curve = pd.read_csv(results / "preference/kto/curves.csv")
    assert "validation_loss" in facts and {"desirable_logratio", "undesirable_logratio"} <= set(curve)
    assert f"Of the training responses {labels['desirable']} are" in (results / "report/index.html").read_text()
    again = project.snakemake("-n", suite="configs/mine.yaml")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_too_few_rows_train_nothing(project: Project):
    """`prepare` refuses 6 rows of which one is dropped; SFT, which does not read comparisons, has not run by then."""
    write_pairs(project.folder / "mine.jsonl", 6, rejected="It is 10.")
    (project.folder / "configs/few.yaml").write_text(
        "name: few\nmodel: {source: models/mine}\ndata: {source: mine.jsonl}\n"
        "prepare: {adapter: pairs, template: chat, bos: false, end_of_turn: '<|im_end|>', over_long: drop, "
        "max_prompt_tokens: 99, max_response_tokens: 99}\n"
        "sft: {batch_size: 2, learning_rate: 1e-3}\nreward: {batch_size: 2, learning_rate: 1e-3}\nreference: {}\n"
        "preference: {batch_size: 2, learning_rate: 1e-3}\ngenerate: {max_new_tokens: 8}\nscore: {reward: trained}\n"
        "runs:\n  - {name: dpo, method: dpo, beta: 0.1}\n"
    )
    run = project.snakemake("--cores", "2", suite="configs/few.yaml")
    assert run.returncode != 0
    assert "5 different prompts, but at least 6 are needed" in run.stdout + run.stderr
    assert not (project.folder / "results/few/sft/model").exists()
