"""CONTRIBUTING.md: every example, performed in a copy of the project, and the guide's metric."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conftest import Project, checkout, environment
from preparing import write_rows

BLOCK = re.compile(r'^```(\w+)(?: title="([^"( ]+)(?: \((.+?)\))?")?\n(.*?)^```$', re.M | re.S)


def perform(project: Project, heading: str, page: str = "CONTRIBUTING.md") -> None:
    """Follow one section of a page: apply its blocks, then run its commands at the root."""
    section = (project.folder / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert section, f"{page} has no section {heading!r}"
    for language, path, anchor, text in BLOCK.findall(section):
        if language == "sh":
            run(project.folder, "set -e\n" + text)
        elif path:
            apply_block(project.folder / path, anchor, text)


def apply_block(path: Path, anchor: str, text: str) -> None:
    """Append `text` to a file, which may be new, or insert it after the one line that starts with `anchor`."""
    before = path.read_text() if path.is_file() else ""
    if not anchor:
        path.write_text(f"{before}\n\n{text}" if before else text)
        return
    lines = [line for line in before.splitlines(keepends=True) if line.startswith(anchor)]
    assert len(lines) == 1, f"{path}: {len(lines)} lines start with {anchor!r}"
    path.write_text(before.replace(lines[0], lines[0] + text))


def run(folder: Path, command: str) -> str:
    """Run a bash command in a copy of the project, with the copy's package; return what it prints."""
    path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
    variables = {**environment(), "PATH": path, "PYTHONPATH": f"{folder}/workflow:{folder}"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return checkout(tmp_path / "clone")


def test_add_an_adapter(project: Project):
    """The adapter is known by its name, its tests pass, and rows of its shape become comparisons."""
    perform(project, "Add an adapter")
    rows = [{"prompt": f"q{n}", "response_a": "a", "response_b": "b", "winner": "model_b"} for n in range(3)]
    write_rows(project.folder / "votes.jsonl", [*rows, {**rows[0], "winner": "tie"}])
    code = (
        "from pathlib import Path; from prefdag.data.adapters.registry import iter_comparisons\n"
        "for one in iter_comparisons('arena', Path('votes.jsonl')): print(one.prompt, *one.responses)"
    )
    assert run(project.folder, f"python -c {shlex.quote(code)}").splitlines() == ["q0 b a", "q1 b a", "q2 b a"]
    assert "stack-exchange, arena" in (project.folder / "configs/README.md").read_text()


def test_add_a_loss(project: Project):
    """The golden value holds, the pages list the loss, and the exact suite minimises it."""
    perform(project, "Add a loss")
    assert "### `dpo_offset`" in (project.folder / "docs/objectives.md").read_text()
    code = (
        "from prefdag.config.jobs import config_of; from prefdag.config.suite import read_suite\n"
        "print(config_of(read_suite(['configs/exact.yaml']), 'exact', 'dpo-offset'))"
    )
    config = run(project.folder, f"python -c {shlex.quote(code)}").strip()
    run(project.folder, f"prefdag exact --output out/exact/dpo-offset/manifest.json --config {shlex.quote(config)}")
    points = (project.folder / "out/exact/dpo-offset/points.csv").read_text().splitlines()
    assert len(points) == 1 + 3 and all(line.startswith("dpo-offset,dpo_offset,pairs,") for line in points[1:])


def rerun(project: Project) -> None:
    """Run Snakemake on a finished suite; it trains nothing again."""
    trained = project.folder / "results/mini/preference/dpo/manifest.json"
    before = trained.stat().st_mtime_ns
    done = project.snakemake()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert trained.stat().st_mtime_ns == before


def test_add_a_metric_and_a_figure(copy: Project):
    """The metric is in every table, the figure on the page."""
    perform(copy, "Add a metric")
    perform(copy, "Add a figure")
    rerun(copy)
    results = copy.folder / "results/mini"
    scores = pd.read_csv(results / "score/dpo/scores.csv")
    lines = (results / "generate/dpo/generations.jsonl").read_text().splitlines()
    assert list(scores["questions"]) == [json.loads(line)["response"].count("?") for line in lines]
    mean = scores["questions"].mean()
    assert json.loads((results / "score/dpo/summary.json").read_text())["questions"]["mean"] == mean
    runs = pd.read_csv(results / "report/runs.csv").set_index("run")
    assert runs.loc["dpo", "questions"] == mean
    assert {"questions_low", "questions_high", "questions_se"} <= set(runs.columns)
    page = (results / "report/index.html").read_text()
    assert ">questions</button>" in page
    assert 'alt="Reward of each policy against the length of its answers"' in page
    for kind in ("png", "svg"):
        assert (results / f"report/figures/reward_and_length.{kind}").is_file()


def test_a_metric_of_the_users_own(copy: Project):
    """It is in every table; an edit of its file scores again and trains nothing; a wrong one ends in a sentence."""
    perform(copy, "A metric of your own", "docs/howto/evaluation.md")
    copy.edit("configs/mini.yaml", "score: {", "score: {metrics: [my_metrics.py:questions], ")
    rerun(copy)
    results, file = copy.folder / "results/mini", copy.folder / "configs/my_metrics.py"
    scores = pd.read_csv(results / "score/dpo/scores.csv")
    lines = (results / "generate/dpo/generations.jsonl").read_text().splitlines()
    assert list(scores["questions"]) == [json.loads(line)["response"].count("?") for line in lines]
    runs = pd.read_csv(results / "report/runs.csv").set_index("run")
    assert runs.loc["dpo", "questions"] == scores["questions"].mean()
    assert {"questions_low", "questions_high", "questions_se"} <= set(runs.columns)
    assert ">questions</button>" in (results / "report/index.html").read_text()
    journal = max((results / ".journal").glob("score-dpo-2*.jsonl"))
    assert '"questions_low"' in journal.read_text(), "MLflow gets what the journal has"
    assert "questions" in run(copy.folder, "prefdag runs results/mini").splitlines()[2]
    file.write_text(file.read_text().replace("response.count", "2 * response.count"))
    rerun(copy)
    assert list(pd.read_csv(results / "score/dpo/scores.csv")["questions"]) == list(2 * scores["questions"])
    file.write_text(file.read_text().replace('response.count("?")', 'float("nan")'))
    done = copy.snakemake("results/mini/score/dpo/manifest.json")
    assert done.returncode == 1
    assert "configs/my_metrics.py: questions returned nan for sample 0 of prompt" in done.stdout + done.stderr


def test_add_a_stage(copy: Project):
    """The suite that states its section has it, the finished one did not."""
    perform(copy, "Add a stage")
    copy.edit("configs/mini.yaml", "judge: {bootstrap: 100}", "judge: {bootstrap: 100}\ndiversity: {min_tokens: 2}")
    rerun(copy)
    results = copy.folder / "results/mini"
    with (results / "generate/sft/generations.jsonl").open() as stream:
        rows = [json.loads(line) for line in stream]
    answers = [row["response"] for row in rows if len(row["ids"]) >= 2]
    facts = json.loads((results / "diversity/diversity.json").read_text())
    assert facts == {"answers": len(answers), "distinct": len(set(answers)) / len(answers)}
    assert "min_tokens" in (copy.folder / "configs/README.md").read_text()


def test_add_a_reward(project: Project):
    """Its golden value holds, and a suite may label pairs by it and make it the headline reward."""
    perform(project, "Add a reward")
    project.edit("configs/mini.yaml", "pairs: {", "pairs: {reward: brevity, ")
    project.edit("configs/mini.yaml", "reward: vader", "reward: brevity")
    code = (
        "from prefdag.config.suite import read_suite; suite = read_suite(['configs/mini.yaml'])\n"
        "print(suite.pairs.reward, suite.score.reward)"
    )
    assert run(project.folder, f"python -c {shlex.quote(code)}").split() == ["brevity", "brevity"]
    assert "`brevity`" in (project.folder / "configs/README.md").read_text()
