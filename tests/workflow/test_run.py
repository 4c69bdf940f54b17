"""A finished run and its reruns: what an edit touches, and nothing else. One file, so that one worker makes the run."""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conftest import Project, checkout, environment
from judge_server import judging

RUNS = ("dpo", "dpo-strong", "simpo")
RESULTS = "results/mini"
AFTER_SCORES = {("report", "")}


def planned(project: Project, suite: str = "configs/mini.yaml", options: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    """(rule, wildcard) of every job that a dry run would run, `all` left out."""
    done = project.snakemake("-n", "-p", *options, suite=suite)
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout + done.stderr
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", text, re.M)
    planned_jobs = {
        (rule, "".join(re.findall(r"wildcards: \w+=(\S+)", about))) for rule, about in jobs if rule != "all"
    }
    assert planned_jobs or "Nothing to be done" in text, text
    return planned_jobs


def why(project: Project, *targets: str) -> dict[str, list[str]]:
    """Job -> its reasons, as `prefdag why` prints them."""
    command = [sys.executable, "-m", "prefdag", "why", *targets, "--configfile", "configs/mini.yaml"]
    inside = {**environment(), "PYTHONPATH": str(project.folder / "workflow")}
    done = subprocess.run(command, cwd=project.folder, env=inside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reasons: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("  "):
            reasons[next(reversed(reasons))].append(line.strip())
        else:
            reasons[line] = []
    return reasons


def following(*policies: str) -> set[tuple[str, str]]:
    """What follows a run's weights: its generations, scores and judgement, and the report."""
    return {(stage, policy) for stage in ("generate", "score", "judge") for policy in policies} | AFTER_SCORES


def test_nothing_changed_nothing_runs(finished: Project):
    assert planned(finished) == set()


def test_a_beta_reruns_its_run_and_what_follows(copy: Project):
    copy.edit("configs/mini.yaml", "name: dpo-strong, method: dpo, beta: 1}", "name: dpo-strong, method: dpo, beta: 2}")
    assert planned(copy) == {("preference", "dpo-strong")} | following("dpo-strong")


def test_why_names_the_key_that_changed_and_what_follows(copy: Project):
    assert why(copy) == {"nothing would run": []}
    copy.edit("configs/mini.yaml", "name: dpo-strong, method: dpo, beta: 1}", "name: dpo-strong, method: dpo, beta: 2}")
    assert why(copy, f"{RESULTS}/judge/dpo-strong/manifest.json") == {
        "preference dpo-strong": ["config: objective.beta: 1.0 -> 2.0"],
        "generate dpo-strong": ["after: preference dpo-strong"],
        "score dpo-strong": ["after: generate dpo-strong, preference dpo-strong"],
        "judge dpo-strong": ["after: score dpo-strong"],
    }
    assert why(copy)["report"][0] == "config: runs.1.objective.beta: 1.0 -> 2.0"


def test_why_names_the_lines_that_changed(copy: Project):
    path = "workflow/prefdag/stages/judge.py"
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "workflow"], ["commit", "-q", "-m", "as it was"]):
        subprocess.run([*git, *command], cwd=copy.folder, check=True)
    lines = (copy.folder / path).read_text().splitlines()
    at = lines.index("class Job(Section):")
    (copy.folder / path).write_text("\n".join([*lines[:at], "NEW = 1", "", "", *lines[at:]]) + "  # so\n")
    commit = subprocess.run([*git, "rev-parse", "HEAD"], cwd=copy.folder, capture_output=True, text=True).stdout[:8]
    changed = f"code: {path} (+4 -1 since {commit}, lines {at + 1}-{at + 3}, {len(lines) + 3})"
    reasons = why(copy)
    assert reasons.pop("report") == ["after: judge base, judge dpo, judge dpo-strong, judge simpo"]
    assert reasons == {f"judge {run}": [changed] for run in ("base", *RUNS)}
    shutil.rmtree(copy.folder / ".git")
    assert why(copy)["judge dpo"] == [f"code: {path}"]


def test_why_names_what_is_missing_and_what_was_never_there(copy: Project):
    (copy.folder / RESULTS / "judge/dpo/manifest.json").unlink()
    reasons = why(copy, f"{RESULTS}/judge/dpo/manifest.json")
    assert reasons == {"judge dpo": [f"missing: {RESULTS}/judge/dpo/manifest.json"]}
    copy.edit("configs/mini.yaml", "runs:\n", "runs:\n  - {name: new, method: cdpo, beta: 0.3}\n")
    assert why(copy, f"{RESULTS}/preference/new/manifest.json") == {"preference new": ["never run"]}


def test_why_names_a_manifest_that_was_changed(copy: Project):
    path = f"{RESULTS}/score/sft/manifest.json"
    (copy.folder / path).write_text((copy.folder / path).read_text() + "\n")
    assert why(copy, f"{RESULTS}/judge/dpo/manifest.json") == {
        "score sft": [f"changed: {path}"],
        "judge dpo": ["after: score sft"],
    }


def test_a_new_row_runs_itself_and_what_follows(copy: Project):
    copy.edit("configs/mini.yaml", "runs:\n", "runs:\n  - {name: new, method: cdpo, beta: 0.3}\n")
    assert planned(copy) == {("preference", "new")} | following("new")


def test_a_variant_runs_itself_alone(copy: Project):
    """Every policy's own answers stay as they are; SFT's variant is what the run's is judged against."""
    variant = "generate: {max_new_tokens: 64, variants: {cold: {temperature: 0.5, policies: [sft, dpo]}}}"
    copy.edit("configs/mini.yaml", "generate: {max_new_tokens: 64}", variant)
    cold = {(stage, f"{policy}@cold") for stage in ("generate", "score") for policy in ("sft", "dpo")}
    assert planned(copy) == cold | {("judge", "dpo@cold"), ("report", "")}


def test_checkpoints_rerun_their_run_and_what_follows(copy: Project):
    copy.edit("configs/mini.yaml", "name: simpo, method: simpo}", "name: simpo, method: simpo, checkpoints: 1}")
    checkpoints = {(stage, "simpo@step2") for stage in ("generate", "score", "judge")}
    assert planned(copy) == {("preference", "simpo")} | following("simpo") | checkpoints


def test_further_answers_run_to_their_verdicts(copy: Project):
    """A checkpoint, a variant, the pool and the chosen responses; a second call has nothing to do."""
    more = "chosen: true, best_of: 4, best_of_prompts: 6, variants: {cold: {temperature: 0, policies: [sft, simpo]}}"
    copy.edit("configs/mini.yaml", "generate: {max_new_tokens: 64}", f"generate: {{max_new_tokens: 64, {more}}}")
    copy.edit("configs/mini.yaml", "name: simpo, method: simpo}", "name: simpo, method: simpo, checkpoints: 1}")
    done = copy.snakemake()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert planned(copy) == set()
    results = copy.folder / RESULTS
    scores = {path.parent.name: pd.read_csv(path) for path in results.glob("score/*/scores.csv")}
    prompts = len(scores["sft"])
    assert {name: len(table) for name, table in scores.items() if name not in (*RUNS, "base", "sft")} == {
        **dict.fromkeys(["sft@cold", "simpo@cold", "simpo@step2", "chosen"], prompts), "sft@pool": 24,
    }  # fmt: skip
    assert "kl" not in scores["chosen"] and (scores["sft@pool"]["kl"] == 0).all()
    assert 0 < scores["simpo@step2"]["kl"].mean() < scores["simpo"]["kl"].mean(), "half-way there"
    assert {path.parent.name for path in results.glob("judge/*@*/summary.json")} == {"simpo@cold", "simpo@step2"}
    best = pd.read_csv(results / "best_of_n/best_of_n.csv")
    assert list(best["n"]) == [1, 2, 4] * 3 and list(best["selected_by"]) == ["vader"] * 3 + ["trained"] * 6
    assert len(pd.read_csv(results / "report/runs.csv")) == 5, "the table is of the policies' own answers"
    chosen = [json.loads(line) for line in (results / "generate/chosen/generations.jsonl").read_text().splitlines()]
    sampled = [json.loads(line) for line in (results / "generate/sft/generations.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in chosen] == [row["prompt"] for row in sampled]
    rows = [json.loads(line) for line in (results / "pairs/test.jsonl").read_text().splitlines()]
    first = {row["prompt"]: row["responses"][0] for row in reversed(rows)}
    assert {row["prompt"]: row["response"] for row in chosen} == first


def test_the_losses_rerun_preference_and_later(copy: Project):
    copy.edit(
        "workflow/prefdag/losses/pairwise.py",
        "return -F.logsigmoid(beta * margin((policy - reference).total))",
        "return -F.logsigmoid(margin((policy - reference).total))",
    )
    assert planned(copy) == {("preference", run) for run in RUNS} | following(*RUNS)


def test_a_loss_of_the_users_own_reruns_its_run_alone(copy: Project):
    """Train with a file in the suite's folder: a comment in it reruns nothing, an edit this run and what follows."""
    manifest = f"{RESULTS}/preference/own/manifest.json"
    copy.edit("configs/mini.yaml", "runs:\n", "runs:\n  - {name: own, method: mine.py:chosen}\n")
    mine = copy.folder / "configs/mine.py"
    mine.write_text("def chosen(policy):\n    return -policy.total[:, 0]\n")
    assert copy.snakemake(manifest).returncode == 0
    assert planned(copy) == following("own")
    mine.write_text("# maximum likelihood\n" + mine.read_text())
    assert planned(copy) == following("own")
    mine.write_text(mine.read_text().replace("-policy", "-2 * policy"))
    assert planned(copy) == {("preference", "own")} | following("own")


def test_an_implicit_reward_reruns_the_scores_and_later(copy: Project):
    """Every score reads the run whose reward it is, that run's own the held-out comparisons; the report shows it."""
    copy.edit("configs/mini.yaml", "score: {reward: vader,", "score: {implicit: [dpo], reward: vader,")
    policies = ("base", "sft", *RUNS)
    later = {("judge", policy) for policy in policies if policy != "sft"} | AFTER_SCORES
    assert planned(copy) == {("score", policy) for policy in policies} | later
    assert copy.snakemake().returncode == 0
    results = copy.folder / RESULTS
    run = hashlib.sha256((results / "preference/dpo/manifest.json").read_bytes()).hexdigest()
    for policy in policies:
        inputs = json.loads((results / f"score/{policy}/manifest.json").read_text())["inputs"]
        assert inputs["implicit"] == [run] and ("comparisons" in inputs) == (policy == "dpo")
    runs = pd.read_csv(results / "report/runs.csv").set_index("run")["implicit_dpo"]
    assert runs["dpo"] > runs["sft"] and runs.notna().all()
    assert "implicit, DPO β=0.1</th>" in (results / "report/index.html").read_text()
    assert planned(copy) == set()


def test_a_model_judges(copy: Project, monkeypatch: pytest.MonkeyPatch):
    """Judgements and the report run again, nothing else; without an endpoint the job says so; the key goes nowhere."""
    model = "{model: tiny, prompt: summarisation-simple, concurrency: 8}"
    copy.edit("configs/mini.yaml", "judge: {bootstrap: 100}", f"judge: {{bootstrap: 100, judges: [reward, {model}]}}")
    judged = {("judge", policy) for policy in ("base", *RUNS)}
    assert planned(copy) == judged | {("report", "")}
    targets = [f"{RESULTS}/judge/{policy}/manifest.json" for policy in ("base", *RUNS)]
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    done = copy.snakemake(*targets)
    assert done.returncode != 0 and "judge tiny: no endpoint: set OPENAI_BASE_URL" in done.stdout + done.stderr
    assert planned(copy) == judged | {("report", "")}
    with judging() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.address)
        monkeypatch.setenv("OPENAI_API_KEY", "canary-of-a-key")
        done = copy.snakemake(*targets, PREFDAG_TRACK="now")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert server.keys == {"Bearer canary-of-a-key"} and server.most > 1
    summary = json.loads((copy.folder / RESULTS / "judge/dpo/summary.json").read_text())
    assert set(summary["judges"]) == {"reward", "tiny"} and summary["judges"]["tiny"]["unparsable"] == 0
    assert summary["n"] == summary["judges"]["tiny"]["n"] == summary["agreement"][0]["n"] > 10
    assert planned(copy) == {("report", "")}
    written = [path for place in ("results", ".snakemake") for path in (copy.folder / place).rglob("*")]
    for path in written:
        assert not path.is_file() or b"canary-of-a-key" not in path.read_bytes(), path


def test_the_report_reruns_alone(copy: Project):
    copy.edit("workflow/prefdag/stages/report.py", "\nclass Run(", "\nNEW = 1\n\n\nclass Run(")
    assert planned(copy) == {("report", "")}


def test_touching_every_file_reruns_nothing(copy: Project):
    for path in copy.folder.rglob("*"):
        if path.is_file() and RESULTS not in str(path) and ".snakemake" not in path.parts:
            os.utime(path)
    assert planned(copy) == set()


def test_a_fresh_clone_beside_the_results_reruns_nothing(copy: Project, tmp_path: Path):
    fresh = checkout(tmp_path / "elsewhere")
    for name in ("results", ".snakemake"):
        shutil.move(copy.folder / name, fresh.folder / name)
    assert planned(fresh) == set()


def test_swapped_numbers_are_seen(copy: Project):
    """The same two values under other keys: Snakemake compares parameters as sets, so all keys are in one."""
    copy.edit("configs/mini.yaml", "preference: {batch_size: 2, epochs: 1,", "preference: {batch_size: 1, epochs: 2,")
    assert planned(copy) == {("preference", run) for run in RUNS} | following(*RUNS)


def test_a_comment_in_the_readme_reruns_nothing(copy: Project):
    (copy.folder / "README.md").write_text((copy.folder / "README.md").read_text() + "\n<!-- a comment -->\n")
    assert planned(copy) == set()


EVERYTHING_AFTER_SFT = {
    ("pairs", ""), ("prepare", "comparisons"), ("reward", ""), ("reference", "comparisons"), ("generate", "base"),
    ("generate", "sft"), *(("preference", run) for run in RUNS), *(("generate", run) for run in RUNS), *AFTER_SCORES,
    *(("score", policy) for policy in ("base", "sft", *RUNS)), *(("judge", policy) for policy in ("base", *RUNS)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "jobs"),
    [
        ("report/index.html", AFTER_SCORES),
        ("score/dpo/scores.csv", {("score", "dpo"), ("judge", "dpo")} | AFTER_SCORES),
        ("generate/simpo/generations.jsonl", following("simpo")),
        ("sft/model/model.safetensors", {("sft", "")} | EVERYTHING_AFTER_SFT),
    ],
)
def test_a_deleted_or_damaged_result_is_made_again(copy: Project, file: str, jobs: set[tuple[str, str]]):
    path = copy.folder / RESULTS / file
    content = path.read_bytes()
    path.unlink()
    assert planned(copy) == jobs
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert planned(copy) == jobs, "one bit differs"
    path.write_bytes(content)
    assert planned(copy) == set()


def test_a_lost_result_is_made_again_after_a_job_that_is_forced(copy: Project):
    """Snakemake forces jobs that were interrupted; one whose output is missing must not be skipped behind them."""
    for stage in ("score", "judge"):
        shutil.rmtree(copy.folder / RESULTS / stage / "dpo")
    options = (f"{RESULTS}/judge/dpo/manifest.json", "-R", "generate")
    assert {("generate", "dpo"), ("score", "dpo"), ("judge", "dpo")} <= planned(copy, options=options)


def test_equal_results_stop_the_cascade(copy: Project):
    """Lost weights are trained again; the jobs that read them see that nothing changed, and the report stays."""
    weights = copy.folder / RESULTS / "preference/dpo/model/model.safetensors"
    content, report = weights.read_bytes(), (copy.folder / RESULTS / "report/manifest.json").read_bytes()
    answers = copy.folder / RESULTS / "generate/dpo/generations.jsonl"
    before = answers.stat().st_mtime_ns
    weights.unlink()
    assert copy.snakemake().returncode == 0
    assert weights.read_bytes() == content and answers.stat().st_mtime_ns == before
    assert (copy.folder / RESULTS / "report/manifest.json").read_bytes() == report
    assert planned(copy) == set()


def test_results_without_snakemakes_records_or_times(copy: Project, tmp_path: Path):
    """Copied to another folder without `.snakemake`: nothing runs, and an edit reruns what it touches."""
    shutil.rmtree(copy.folder / ".snakemake")
    shutil.copytree(copy.folder, tmp_path / "elsewhere", symlinks=True, copy_function=shutil.copy)
    moved = Project(tmp_path / "elsewhere")
    assert planned(moved) == set()
    moved.edit(
        "configs/mini.yaml", "name: dpo-strong, method: dpo, beta: 1}", "name: dpo-strong, method: dpo, beta: 2}"
    )
    assert planned(moved) == {("preference", "dpo-strong")} | following("dpo-strong")
    os.utime(moved.folder / RESULTS / "sft/manifest.json")
    assert planned(moved) == {("preference", "dpo-strong")} | following("dpo-strong")


def test_a_comment_in_the_package_reruns_nothing(copy: Project):
    path = copy.folder / "workflow/prefdag/losses/pairwise.py"
    path.write_text("# a comment\n" + path.read_text().replace('"""', '"""Again: ', 1))
    assert planned(copy) == set()


def test_a_loss_without_reference_has_no_such_edge(finished: Project):
    read = {
        run: json.loads((finished.folder / RESULTS / f"preference/{run}/manifest.json").read_text()) for run in RUNS
    }
    assert [run for run in RUNS if "reference" in read[run]["inputs"]] == ["dpo", "dpo-strong"]


def test_every_job_left_its_manifest_log_and_benchmark(finished: Project):
    manifests = sorted((finished.folder / RESULTS).rglob("manifest.json"))
    assert len(manifests) == 8 + 3 + 5 + 5 + 4 + 1  # two of prepare; base and sft are not aligned, sft is not judged
    for path in manifests:
        assert (path.parent / "log.txt").is_file()
        assert (path.parent / "benchmark.tsv").is_file()
        content = json.loads(path.read_text())
        assert {"stage", "config", "code", "inputs", "files", "facts", "seal"} == set(content)
        assert str(finished.folder) not in path.read_text(), "a manifest holds no absolute path"
        for name, entry in content["files"].items():
            assert (path.parent / name).stat().st_size == entry["size"]
    assert not any((finished.folder / RESULTS / ".partial").iterdir())


def test_the_first_step_of_dpo_is_ln_2(finished: Project):
    curves = pd.read_csv(finished.folder / RESULTS / "preference/dpo/curves.csv")
    assert curves["loss"][0] == pytest.approx(0.693147, abs=1e-5)
    assert curves["held_out_chosen_logratio"].notna().any()


def test_the_table_of_runs(finished: Project):
    runs = pd.read_csv(finished.folder / RESULTS / "report/runs.csv")
    expected = [
        "run",
        "method",
        "seed",
        "reward",
        "reward_low",
        "reward_high",
        "kl",
        "kl_se",
        "length",
        "win_rate",
        "win_low",
        "win_high",
    ]
    assert list(runs.columns[: len(expected)]) == expected
    assert list(runs["run"]) == ["base", "sft", *RUNS]
    assert (runs["reward_low"] <= runs["reward"]).all()
    assert (runs["reward"] <= runs["reward_high"]).all()
    assert runs.set_index("run")["kl"]["sft"] == 0
    assert (runs.set_index("run")["kl"][list(RUNS)] > 0).all()


def test_the_page_needs_no_network(finished: Project):
    page = (finished.folder / RESULTS / "report/index.html").read_text()
    assert not re.search(r"src=[\"']?https?:|<link", page)
    assert page.count("data:image/png;base64,") >= 4
    figures = finished.folder / RESULTS / "report/figures"
    assert {path.stem for path in figures.glob("*.png")} == {path.stem for path in figures.glob("*.svg")}


def test_mlflow_has_every_job(finished: Project):
    journals = list((finished.folder / RESULTS / ".journal").glob("*.jsonl"))
    with sqlite3.connect(finished.folder / "results/mlflow.db") as database:
        states = [state for (state,) in database.execute("select status from runs")]
    assert len(journals) == 26
    assert states == ["FINISHED"] * len(journals)


def test_snakemakes_own_report(finished: Project):
    done = finished.snakemake("--report", "report.html")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (finished.folder / "report.html").stat().st_size > 100_000


def test_two_clean_runs_give_identical_manifests(finished: Project, tmp_path: Path):
    again = checkout(tmp_path / "again")
    done = again.snakemake(f"{RESULTS}/judge/dpo/manifest.json")
    assert done.returncode == 0, done.stderr[-2000:]
    manifests = sorted((again.folder / RESULTS).rglob("manifest.json"))
    assert len(manifests) == 14
    assert (again.folder / RESULTS / ".journal").is_dir() and not (again.folder / "results/mlflow.db").exists()
    for path in manifests:
        assert path.read_bytes() == (finished.folder / path.relative_to(again.folder)).read_bytes(), path


def test_mlflow_is_followed_now_or_later(finished: Project):
    done = finished.snakemake("-n", PREFDAG_TRACK="never")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.endswith("prefdag: PREFDAG_TRACK: expected now or later, got 'never'\n")


def test_the_run_continues_by_plain_commands(copy: Project):
    """A stage is an ordinary command: the judge again, without Snakemake, gives the same manifest."""
    folder = copy.folder / RESULTS
    before = (folder / "judge/dpo/manifest.json").read_bytes()
    config = json.dumps(json.loads(before)["config"])
    command = [sys.executable, "-m", "prefdag", "judge", "--config", config]
    command += ["--scores", f"{RESULTS}/score/dpo/manifest.json", "--against", f"{RESULTS}/score/sft/manifest.json"]
    command += ["--output", f"{RESULTS}/judge/dpo/manifest.json"]
    inside = {**environment(), "PYTHONPATH": str(copy.folder / "workflow")}
    subprocess.run(command, cwd=copy.folder, env=inside, check=True, capture_output=True)
    assert (folder / "judge/dpo/manifest.json").read_bytes() == before


def test_every_stage_by_hand_makes_the_same(copy: Project):
    """The commands of docs/stages.md, in their order: every manifest but the report's is Snakemake's.

    Forked from a process that has imported torch, for speed; `test_warm` shows that it makes no difference.
    """
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", (copy.folder / "docs/stages.md").read_text(), re.S))
    tried = set(re.findall(r"^ *prefdag (\w+)", commands, re.M))
    assert tried == {path.stem for path in (copy.folder / "workflow/prefdag/stages").glob("[a-z]*.py")} - {
        "benchmark", "exact", "best_of_n", "classifier", "policy", "online", "pairing", "gold", "rating",
        "discriminator", "choose", "selected",
        "evaluate_reward", "reward_variant", "hidden_map",  # not in the embedded suite
    }  # fmt: skip
    inside = {**environment(), "PYTHONPATH": str(copy.folder / "workflow")}
    warm = [sys.executable, "-m", "prefdag.runtime.warm_start", str(copy.folder / "warm"), str(os.getpid())]
    warm.append("prefdag.cli.main:main")
    script = f'set -e; prefdag() {{ {sys.executable} -m prefdag "$@"; }}\n{commands}'
    with subprocess.Popen(warm, env=inside) as server:
        inside["PREFDAG_WARM"] = str(copy.folder / "warm")
        done = subprocess.run(["bash", "-c", script], cwd=copy.folder, env=inside, capture_output=True, text=True)
        server.terminate()
    assert done.returncode == 0, done.stderr[-3000:]
    by_hand = copy.folder / "results/by-hand"
    manifests = {path.relative_to(by_hand) for path in by_hand.rglob("manifest.json")}
    assert len(manifests) == 15
    for path in manifests - {Path("report/manifest.json")}:
        assert (by_hand / path).read_bytes() == (copy.folder / RESULTS / path).read_bytes(), path
    assert "by-hand" in (by_hand / "report/index.html").read_text()
