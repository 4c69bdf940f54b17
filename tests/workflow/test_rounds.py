"""Rounds as jobs of the DAG: a chain that runs to its end, is killed, and reruns what an edit touches."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from test_run import planned

from conftest import Project, environment, with_rows

SUITE = "configs/mini.yaml"
RESULTS = "results/mini"
ROW = "  - {name: it, method: dpo, beta: 0.1, rounds: 2, pairs: {law: max_min, draws: 4, max_new_tokens: 128}}\n"


def trainings(project: Project) -> dict[str, str]:
    """The sha256 of the weights of every round."""
    paths = sorted((project.folder / RESULTS).glob("preference/it@*/manifest.json"))
    files = {path.parent.name: json.loads(path.read_text())["files"] for path in paths}
    return {name: each["model/model.safetensors"]["sha256"] for name, each in files.items()}


def jobs_of_round(number: int) -> set[tuple[str, str]]:
    chain = {("generate", f"it@samples{number}"), ("score", f"it@samples{number}")}
    return chain | {(stage, f"it@round{number}") for stage in ("pairing", "reference", "preference")}


def answers(name: str) -> set[tuple[str, str]]:
    return {(stage, name) for stage in ("generate", "score", "judge")}


@pytest.fixture(scope="module")
def run(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished suite with a run of two rounds. Read only."""
    project = with_rows(finished, tmp_path_factory.mktemp("rounds"), ROW)
    expected = jobs_of_round(1) | jobs_of_round(2) | answers("it") | answers("it@round1") | {("report", "")}
    assert planned(project) == expected
    done = project.snakemake(PREFDAG_TRACK="now")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return project


@pytest.fixture
def edited(run: Project, tmp_path: Path) -> Project:
    subprocess.run(["cp", "-a", str(run.folder), str(tmp_path / "prefdag")], check=True)
    return Project(tmp_path / "prefdag")


def test_every_round_leaves_its_samples_scores_and_pairs(run: Project):
    results = run.folder / RESULTS
    for number in (1, 2):
        samples = [json.loads(line) for line in (results / f"generate/it@samples{number}/generations.jsonl").open()]
        scores = pd.read_csv(results / f"score/it@samples{number}/scores.csv")
        assert len(samples) == len(scores) and {row["split"] for row in samples} == {"train", "validation"}
        ended = scores[scores["ended"] == 1]  # the others were cut, and are left out
        reward = ended.set_index(["prompt_id", "sample"])["reward"]
        pairs = [json.loads(line) for line in (results / f"pairing/it@round{number}/pairs.jsonl").open()]
        assert pairs
        for pair in pairs:
            chosen, rejected = (reward[pair["prompt_id"], sample] for sample in pair["samples"])
            assert chosen == reward[pair["prompt_id"]].max() > rejected
    draws = [(results / f"generate/it@samples{number}/generations.jsonl").read_text() for number in (1, 2)]
    assert draws[0] != draws[1]
    assert len(set(trainings(run).values())) == 2


def test_the_report_shows_the_run_and_its_rounds(run: Project):
    report = run.folder / RESULTS / "report"
    runs = pd.read_csv(report / "runs.csv").set_index("run")
    shown = pd.read_csv(report / "answers.csv").set_index("answers")
    assert runs.loc["it", "method"] == "own-pairs dpo"
    assert shown.loc["it@round1", "step"] == 5 and shown.loc["it", "step"] == 10
    page = (report / "index.html").read_text()
    assert (
        "../pairing/it@round2/pairs.jsonl" in page and (run.folder / RESULTS / "pairing/it@round2/pairs.jsonl").exists()
    )


def test_export_and_compare_take_the_last_round(run: Project, tmp_path: Path):
    inside = {**environment(), "PYTHONPATH": str(run.folder / "workflow")}

    def prefdag(*words: str) -> str:
        command = [sys.executable, "-m", "prefdag", *words]
        done = subprocess.run(command, cwd=run.folder, env=inside, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name, training in (("it", "it@round2"), ("it@round1", "it@round1")):
        prefdag("export", name, "--results", RESULTS, "--to", str(tmp_path / name))
        exported = (tmp_path / name / "model.safetensors").read_bytes()
        assert exported == (run.folder / RESULTS / f"preference/{training}/model/model.safetensors").read_bytes()
    assert "win rate of A over B" in prefdag("compare", "it", "it@round1", "--results", RESULTS)


def test_more_rounds_run_only_the_new_ones(edited: Project):
    """The answers of round 2 are those that the run had when it had two rounds."""
    before = trainings(edited)
    edited.edit(SUITE, "rounds: 2,", "rounds: 3,")
    assert planned(edited) == jobs_of_round(3) | answers("it") | answers("it@round2") | {("report", "")}
    done = edited.snakemake()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "generate/it@round2: takes over the result of generate/it" in done.stderr
    after = trainings(edited)
    assert before.items() <= after.items() and len(after) == 3
    edited.edit(SUITE, "rounds: 3,", "rounds: 2,")
    done = edited.snakemake("-n")
    assert "it: results of round 3 are left over in results/mini" in done.stderr
    assert not {job for job in planned(edited) if job[0] in ("preference", "pairing", "reference")}
    assert trainings(edited) == after


def test_an_edit_of_the_law_samples_nothing_again_before_it_matters(edited: Project):
    """Round 1 keeps its samples and scores; its pairs and all that follows run again."""
    edited.edit(SUITE, "law: max_min,", "law: margin, threshold: 0.1,")
    expected = jobs_of_round(1) | jobs_of_round(2) | answers("it") | answers("it@round1") | {("report", "")}
    assert planned(edited) == expected - {("generate", "it@samples1"), ("score", "it@samples1")}


def test_a_damaged_round_reruns_it_and_those_that_follow(edited: Project):
    (edited.folder / RESULTS / "pairing/it@round2/pairs.jsonl").write_text("")
    expected = {(stage, "it@round2") for stage in ("pairing", "reference", "preference")}
    assert planned(edited) == expected | answers("it") | {("report", "")}


def test_a_killed_chain_continues_to_the_same_bits(edited: Project):
    """Everything is killed while round 2 is at work; what is done stays, and the end is that of the whole run."""
    before = trainings(edited)
    for path in (edited.folder / RESULTS).glob("*/it*"):
        subprocess.run(["rm", "-r", str(path)], check=True)
    command = [sys.executable, "-m", "snakemake", "--configfile", SUITE]
    variables = {**environment(), "PREFDAG_TRACK": "later"}
    marker = edited.folder / RESULTS / "generate/it@samples2/log.txt"  # Snakemake knows that round 1 has ended
    with subprocess.Popen(
        command,
        cwd=edited.folder,
        env=variables,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    ) as process:
        deadline = time.monotonic() + 300
        while not marker.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert marker.exists() and set(trainings(edited)) == {"it@round1"}
    assert edited.snakemake("--unlock").returncode == 0
    left = planned(edited)
    assert ("preference", "it@round1") not in left and ("preference", "it@round2") in left
    done = edited.snakemake()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert trainings(edited) == before


def test_samples_that_all_score_alike_stop_the_round_in_one_sentence(edited: Project):
    """Nothing else is lost: the samples and the scores stay, and an edit continues from them."""
    edited.edit(SUITE, "law: max_min,", "law: margin, threshold: 100,")
    done = edited.snakemake("-k")
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert re.search(r"pairing it@round1: no pairs: of \d+ training prompts", output) and "Traceback" not in output
    edited.edit(SUITE, "law: margin, threshold: 100,", "law: max_min,")
    assert not {job for job in planned(edited) if job[1].endswith("samples1")}


def test_an_edit_of_a_users_reward_scores_the_samples_again(edited: Project):
    """From round 1's scores on; nothing samples round 1 again, and no other run's scores rerun."""
    reward = edited.folder / "configs/mine.py"
    reward.write_text("def short(prompts, responses):\n    return [-len(text) for text in responses]\n")
    edited.edit(SUITE, "law: max_min,", "law: max_min, reward: mine.py:short,")
    done = edited.snakemake(f"{RESULTS}/score/it@samples1/manifest.json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    samples = [json.loads(line) for line in (edited.folder / RESULTS / "generate/it@samples1/generations.jsonl").open()]
    scores = pd.read_csv(edited.folder / RESULTS / "score/it@samples1/scores.csv")["reward"]
    assert scores.tolist() == [-len(row["response"]) for row in samples]
    expected = jobs_of_round(1) | jobs_of_round(2) | answers("it") | answers("it@round1") | {("report", "")}
    left = expected - {("generate", "it@samples1"), ("score", "it@samples1")}
    assert planned(edited) == left
    reward.write_text(reward.read_text().replace("-len", "-2 * len"))
    assert planned(edited) == left | {("score", "it@samples1")}
