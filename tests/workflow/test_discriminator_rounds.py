"""Rounds whose reward model is trained again on gold labels, and rounds that a judge labels, through the DAG."""

import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from test_run import planned

from conftest import Project
from judge_server import judging

SUITE, RESULTS = "configs/mini.yaml", "results/mini"
D2PO = (
    "  - {name: d2po, method: dpo, beta: 0.1, rounds: 2, pairs: {law: max_min, draws: 4, max_new_tokens: 96, "
    "max_prompts: 12}, discriminator: {gold_pairs: 10, start: previous}}\n"
)
OAIF = (
    "  - {name: oaif, method: dpo, beta: 0.1, pairs: {law: max_min, draws: 2, max_new_tokens: 96, max_prompts: 12, "
    "reward: judge:m}}\n"
)
JUDGES = "judge: {bootstrap: 100, judges: [reward, {model: m, prompt: dialogue-helpfulness, attempts: 1}]}\n"


def copied(project: Project, folder: Path) -> Project:
    subprocess.run(["cp", "-a", str(project.folder), str(folder)], check=True)
    return Project(folder)


def jobs_of_round(number: int) -> set[tuple[str, str]]:
    samples = {(stage, f"d2po@samples{number}") for stage in ("generate", "score")}
    stages = ("gold", "discriminator", "pairing", "reference", "preference")
    return samples | {(stage, f"d2po@round{number}") for stage in stages}


def answers(name: str) -> set[tuple[str, str]]:
    return {(stage, name) for stage in ("generate", "score", "judge")}


@pytest.fixture(scope="module")
def run(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished suite with a run of D2PO. Read only."""
    project = copied(finished, tmp_path_factory.mktemp("discriminator") / "prefdag")
    with (project.folder / SUITE).open("a") as stream:
        stream.write(D2PO)
    expected = jobs_of_round(1) | jobs_of_round(2) | answers("d2po") | answers("d2po@round1") | {("report", "")}
    assert planned(project) == expected
    done = project.snakemake(PREFDAG_TRACK="now")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return project


def manifest_of(project: Project, folder: str) -> dict:
    return json.loads((project.folder / RESULTS / folder / "manifest.json").read_text())


def test_each_round_trains_its_reward_model_on_all_gold_labels_so_far(run: Project):
    results = run.folder / RESULTS
    labels = [manifest_of(run, f"gold/d2po@round{number}")["facts"] for number in (1, 2)]
    assert [facts["labelled"] for facts in labels] == [10, 10] and all(facts["pairs"] for facts in labels)
    models = [manifest_of(run, f"discriminator/d2po@round{number}") for number in (1, 2)]
    assert [len(model["inputs"]["gold"]) for model in models] == [1, 2]
    assert models[1]["inputs"]["gold"][0] == models[0]["inputs"]["gold"][0]
    assert models[1]["facts"]["gold_pairs"] == labels[0]["pairs"] + labels[1]["pairs"]
    assert models[1]["facts"]["before"] == models[0]["facts"]["after"], "round 2 starts from round 1's reward model"
    weights = [model["files"]["model/model.safetensors"]["sha256"] for model in models]
    assert len({*weights, manifest_of(run, "reward")["files"]["model/model.safetensors"]["sha256"]}) == 3
    scores = pd.read_csv(results / "score/d2po@samples2/scores.csv")
    assert (scores["reward"] == scores["trained"]).all(), "the round's reward model forms the pairs"
    page = (results / "report/index.html").read_text()
    for link in ("gold/d2po@round2/pairs.jsonl", "discriminator/d2po@round2/evaluation.json"):
        assert f"../{link}" in page and (results / link).exists()


def test_an_edit_reruns_its_round_and_those_that_follow(run: Project, tmp_path: Path):
    assert planned(run) == set()
    edited = copied(run, tmp_path / "prefdag")
    edited.edit(SUITE, "rounds: 2,", "rounds: 3,")
    assert planned(edited) == jobs_of_round(3) | answers("d2po") | answers("d2po@round2") | {("report", "")}
    edited.edit(SUITE, "rounds: 3,", "rounds: 1,")
    done = edited.snakemake("-n")
    assert "d2po: results of round 2 are left over in results/mini" in done.stderr
    stages = ("gold", "discriminator", "pairing", "reference", "preference")
    assert not {job for job in planned(edited) if job[0] in stages}
    edited.edit(SUITE, "rounds: 1,", "rounds: 2,")
    (edited.folder / RESULTS / "gold/d2po@round2/pairs.jsonl").write_text("")
    after = jobs_of_round(2) - {("generate", "d2po@samples2")} | answers("d2po") | {("report", "")}
    assert planned(edited) == after


def test_a_judge_that_fails_in_a_round_is_asked_only_what_is_left(finished: Project, tmp_path: Path):
    project = copied(finished, tmp_path / "prefdag")
    project.edit(SUITE, "judge: {bootstrap: 100}\n", JUDGES)
    with (project.folder / SUITE).open("a") as stream:
        stream.write(OAIF)
    target = f"{RESULTS}/preference/oaif@round1/manifest.json"
    with judging() as server:
        variables = {"OPENAI_BASE_URL": server.address, "OPENAI_API_KEY": "k"}
        server.faults = [*([None] * 5), 401]  # type: ignore[list-item]
        done = project.snakemake(target, **variables)
        output = done.stdout + done.stderr
        assert done.returncode != 0 and "Traceback" not in output
        assert re.search(r"judge m: the endpoint \S+ refuses the key \(HTTP 401\)", output)
        answered = server.answered
        assert answered >= 5
        saved = (project.folder / RESULTS / ".judge/rating-oaif@samples1.jsonl").read_text().splitlines()
        assert len(saved) == answered
        done = project.snakemake(target, **variables)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        questions = 2 * manifest_of(project, "rating/oaif@samples1")["facts"]["pairs"]
        assert server.answered == questions
    lines = (project.folder / RESULTS / "pairing/oaif@round1/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    assert pairs and all(pair["scores"] == [1.0, 0.0] for pair in pairs)
    assert all(len(pair["responses"][0]) > len(pair["responses"][1]) for pair in pairs), "the judge prefers the longer"
    assert not {job for job in planned(project) if job[1].startswith("oaif@samples") or job[0] in ("pairing", "rating")}
