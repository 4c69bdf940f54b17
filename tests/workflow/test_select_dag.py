"""A search as jobs of the DAG: it runs to its end, and an edit of the grid reruns what it touches.

A search of an on-policy row by its win rate and over its length, killed twice, chooses as one that ran through.
"""

import json
import os
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
ROW = "  - {name: rows, method: dpo, beta: 0.1, seeds: [0, 1]}\n"
SELECT = "select: {grid: {learning_rate: [1e-3, 5e-3], epochs: [1]}, kl: 2, rows: [rows], budget: 4}\n"
CANDIDATES = [f"rows-learning_rate{rate}-epochs1-seed{seed}" for rate in ("1e-3", "5e-3") for seed in (0, 1)]


def jobs_of_candidate(name: str) -> set[tuple[str, str]]:
    return {("preference", name), ("generate", f"{name}@validation"), ("score", f"{name}@validation")}


def on_test_prompts() -> set[tuple[str, str]]:
    return {(stage, f"rows-seed{seed}") for stage in ("selected", "generate", "score", "judge") for seed in (0, 1)}


@pytest.fixture(scope="module")
def run(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished suite with a row of two seeds, whose learning rate is chosen. Read only."""
    project = with_rows(finished, tmp_path_factory.mktemp("select"), ROW + SELECT)
    expected = on_test_prompts() | {("choose", "rows"), ("report", "")}
    expected |= {("generate", "sft@validation"), ("score", "sft@validation")}
    assert planned(project) == expected.union(*map(jobs_of_candidate, CANDIDATES))
    done = project.snakemake(PREFDAG_TRACK="now")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return project


def manifest(project: Project, folder: str) -> dict:
    return json.loads((project.folder / RESULTS / folder / "manifest.json").read_text())


def test_the_best_candidate_on_validation_prompts_answers_the_test_prompts(run: Project) -> None:
    table = pd.read_csv(run.folder / RESULTS / "choose/rows/candidates.csv")
    assert table["chosen"].tolist() == (table["reward_at_kl"] == table["reward_at_kl"].max()).tolist()
    best = ("1e-3", "5e-3")[int(table["chosen"].to_numpy().argmax())]
    for seed in (0, 1):
        trained = manifest(run, f"preference/rows-learning_rate{best}-epochs1-seed{seed}")["files"]
        files = manifest(run, f"selected/rows-seed{seed}")["files"]
        assert {name: files[name] for name in trained} == trained and "training.json" in files
    splits = {
        name: pd.read_csv(run.folder / RESULTS / f"score/{name}/scores.csv") for name in ("sft", "sft@validation")
    }
    assert 0 < splits["sft@validation"]["prompt_id"].nunique() <= 8 < splits["sft"]["prompt_id"].nunique() <= 16


def test_the_report_shows_the_candidates_and_the_protocol(run: Project) -> None:
    report = run.folder / RESULTS / "report"
    table = pd.read_csv(report / "candidates.csv")
    assert table["row"].tolist() == ["rows"] * 2 and table["chosen"].sum() == 1
    page = (report / "index.html").read_text()
    assert "2 settings were trained with 2 seeds each" in page and (report / "figures/candidates.png").is_file()
    runs = pd.read_csv(report / "runs.csv").set_index("run")
    assert {"rows-seed0", "rows-seed1"} <= set(runs.index) and runs.loc["rows-seed1", "seed"] == 1
    assert runs.loc["rows-seed0", "rows_used"] > 0


def test_nothing_changed_nothing_runs(run: Project) -> None:
    assert planned(run) == set()


def test_a_further_value_that_is_not_chosen_reruns_no_answers(run: Project, tmp_path: Path) -> None:
    """As `max_steps` is stated, `epochs` changes nothing: the candidates are equal, and the first of them is chosen.

    Readers of the selected trainings start, and keep their results.
    """
    subprocess.run(["cp", "-a", str(run.folder), str(tmp_path / "prefdag")], check=True)
    copy = Project(tmp_path / "prefdag")
    before = {
        folder: manifest(copy, folder) for folder in ("selected/rows-seed0", "generate/rows-seed0", "choose/rows")
    }
    chosen = json.loads((copy.folder / RESULTS / "choose/rows/choice.json").read_text())["setting"]
    copy.edit(SUITE, "epochs: [1]", "epochs: [1, 2]")
    new = [name.replace("epochs1", "epochs2") for name in CANDIDATES]
    expected = on_test_prompts() | {("choose", "rows"), ("report", "")}
    assert planned(copy) == expected.union(*map(jobs_of_candidate, new))
    written = (copy.folder / RESULTS / "generate/rows-seed0/generations.jsonl").stat().st_mtime_ns
    done = copy.snakemake()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads((copy.folder / RESULTS / "choose/rows/choice.json").read_text())["setting"] == chosen
    assert manifest(copy, "choose/rows") != before["choose/rows"]
    assert manifest(copy, "selected/rows-seed0") != before["selected/rows-seed0"]
    assert manifest(copy, "generate/rows-seed0") == before["generate/rows-seed0"]
    assert (copy.folder / RESULTS / "generate/rows-seed0/generations.jsonl").stat().st_mtime_ns == written
    assert planned(copy) == set()


ON_POLICY = (
    "  - {name: rloo, method: rloo, samples: 2, kl: 0.05, batch_size: 2, max_steps: 12, checkpoints: 1, "
    "max_new_tokens: 16}\n"
)
BY_WIN_RATE = (
    "select: {grid: {learning_rate: [5e-3, 1e-3]}, criterion: win_rate, rows: [rloo], budget: 4, "
    "early_stopping: true}\n"
)
RATES = ("rloo-learning_rate5e-3", "rloo-learning_rate1e-3")  # in the order of the grid
CHOICE = ("choice.json", "candidates.csv", "manifest.json")


def with_search(finished: Project, folder: Path) -> Project:
    """Add the row and its search. The longer answer wins: most of these answers have the same reward, 0."""
    project = with_rows(finished, folder, ON_POLICY + BY_WIN_RATE)
    project.edit(SUITE, "judge: {bootstrap: 100}", "judge: {bootstrap: 100, judges: [length]}")
    return project


@pytest.fixture(scope="module")
def searched(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished suite with an on-policy row, whose learning rate and length are chosen by win rate. Read only."""
    project = with_search(finished, tmp_path_factory.mktemp("searched"))
    done = project.snakemake()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return project


def test_an_on_policy_row_is_chosen_by_its_win_rate_on_validation_prompts(searched: Project) -> None:
    results = searched.folder / RESULTS
    table = pd.read_csv(results / "choose/rloo/candidates.csv")
    sets = [f"{name}@{variant}" for name in RATES for variant in ("validation-step6", "validation")]
    summaries = [json.loads((results / f"judge/{one}/summary.json").read_text()) for one in sets]
    assert table["learning_rate"].tolist() == [5e-3, 5e-3, 1e-3, 1e-3] and table["steps"].tolist() == [6, 12] * 2
    assert table["win_rate"].tolist() == pytest.approx([one["win_rate"] for one in summaries])
    assert table["chosen"].tolist().index(True) == table["win_rate"].to_numpy().argmax() and table["chosen"].sum() == 1
    choice = json.loads((results / "choose/rloo/choice.json").read_text())
    assert (choice["criterion"], choice["candidates"], choice["lengths"]) == ("win_rate", 4, 2)
    training, length = divmod(choice["candidate"], 2)
    trained = manifest(searched, f"policy/{RATES[training]}")["files"]
    files, folder = manifest(searched, "selected/rloo")["files"], ("checkpoints/6", "model")[length]
    assert files["model/model.safetensors"] == trained[f"{folder}/model.safetensors"]
    answers = (results / "generate/rloo/generations.jsonl").read_bytes()
    checkpoint = (results / "generate/rloo@step6/generations.jsonl").read_bytes()
    assert (answers == checkpoint) is (folder == "checkpoints/6")
    runs = pd.read_csv(results / "report/runs.csv").set_index("run")
    assert runs.loc["rloo", "method"] == "rloo" and not set(RATES) & set(runs.index)
    assert (
        f"largest win rate by the headline judge on {choice['prompts']} validation prompts"
        in (results / "report/index.html").read_text()
    )


def started_training(project: Project, seen: set[Path], done: subprocess.Popen[bytes], rounds: int) -> Path:
    """Return the journal of a candidate's training that has begun since, as soon as it has some rounds."""
    while done.poll() is None:
        for journal in set((project.folder / RESULTS / ".journal").glob("policy-rloo-*")) - seen:
            if journal.read_text().count('"metrics"') >= rounds:
                return journal
        time.sleep(0.005)
    raise AssertionError("Snakemake ended before a training began")


def test_a_search_that_is_killed_twice_chooses_as_one_that_ran_through(
    searched: Project, finished: Project, tmp_path: Path
) -> None:
    """SIGTERM to all processes in the middle of a training, which saves its state; then SIGKILL of one job."""
    project = with_search(finished, tmp_path)
    target = f"{RESULTS}/choose/rloo/manifest.json"
    command = [sys.executable, "-m", "snakemake", "--cores", "1", target, "--configfile", SUITE]
    seen: set[Path] = set()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with (tmp_path / f"{number.name}.txt").open("wb") as log:
            inside = {**environment(), "PREFDAG_TRACK": "later"}
            pipes = {"stdout": log, "stderr": log, "start_new_session": True}
            done = subprocess.Popen(command, cwd=project.folder, env=inside, **pipes)
            journal = started_training(project, seen, done, rounds=1 if number is signal.SIGTERM else 0)
            seen.add(journal)
            if number is signal.SIGTERM:
                os.killpg(done.pid, number)
            else:
                os.kill(int(journal.stem.rpartition("-")[2]), number)
            assert done.wait(timeout=120) != 0
        saved = list((project.folder / RESULTS / ".resume").glob("policy-rloo-*/state.pt"))
        assert saved and not (project.folder / target).exists()
    again = project.snakemake(target)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    folders = [f"policy/{name}/manifest.json" for name in RATES] + [f"choose/rloo/{name}" for name in CHOICE]
    for name in folders:
        expected = (searched.folder / RESULTS / name).read_bytes()
        assert (project.folder / RESULTS / name).read_bytes() == expected, name
