"""What a person sees of a run: in a pipe, in a terminal, in a dry run, and when a job fails."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from conftest import Project, environment
from snakemake_logger_plugin_prefdag.jobs import Job, key_result

RESULTS = "results/mini"
JOB = re.compile(r"(\w+)(?: (\S+))? +\d+ s  (\S.*)")


def change_beta(copy: Project) -> None:
    copy.edit("configs/mini.yaml", "name: dpo-strong, method: dpo, beta: 1}", "name: dpo-strong, method: dpo, beta: 2}")


def test_a_pipe_gets_one_line_per_job_and_the_results(copy: Project):
    change_beta(copy)
    done = copy.snakemake()
    assert done.returncode == 0 and done.stdout == ""
    lines = done.stderr[done.stderr.index("5 jobs: ") :].splitlines()
    assert set(lines[0].removeprefix("5 jobs: ").split(", ")) == {
        f"1 {stage}" for stage in ("preference", "generate", "score", "judge", "report")
    }
    jobs = [JOB.fullmatch(line).groups() for line in lines[1:6]]
    assert [(stage, name) for stage, name, _ in jobs] == [
        *((stage, "dpo-strong") for stage in ("preference", "generate", "score", "judge")),
        ("report", None),
    ]
    assert re.fullmatch(r"loss \S+  margin \S+  accuracy \S+", jobs[0][2])
    assert re.fullmatch(r"reward \S+  KL \S+", jobs[2][2]) and re.fullmatch(r"win rate \S+", jobs[3][2])
    assert jobs[4][2] == f"{RESULTS}/report/index.html"
    table = [line.split()[1] for line in lines if line.startswith("│")]
    assert table == ["base", "sft", "dpo", "dpo-strong", "simpo"]
    assert f"report:  {RESULTS}/report/index.html" in lines and "MLflow:  make ui" in lines
    assert len([line for line in lines[lines.index("Try next:") + 1 :] if line.startswith("  ")]) == 3
    assert ".py" not in done.stderr and "input:" not in done.stderr and len(lines) < 30
    messages = max((copy.folder / ".snakemake/log").iterdir(), key=lambda path: path.name).read_text()
    assert "    input: results/mini/" in messages, "the log file has everything"


def test_a_failed_job_shows_its_sentence_its_log_and_how_to_continue(copy: Project):
    copy.edit("configs/mini.yaml", "max_prompt_tokens: 64", "max_prompt_tokens: 1")
    done = copy.snakemake()
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    at = next(at for at, line in enumerate(lines) if line.endswith("failed"))
    assert lines[at].startswith("prepare demonstrations ")
    assert re.match(r"  prefdag: \S+: no row of the train split can be used", lines[at + 1])
    assert lines[at + 2] == f"  log: {RESULTS}/prepare/demonstrations/log.txt"
    assert lines[at + 4].startswith("1 failed, 0 done, ") and lines[at + 4].endswith(
        " not run. Fix the cause, then run"
    )
    assert lines[at + 5] == "  snakemake --configfile configs/mini.yaml"
    assert not re.search("RuleException|Traceback|set -euo|input:", done.stderr)


def test_a_dry_run_counts_the_jobs_of_each_stage_by_reason(copy: Project):
    change_beta(copy)
    done = copy.snakemake("-n")
    assert done.returncode == 0
    assert done.stdout.startswith("5 jobs would run:\n")
    assert re.search(r"^  preference +1   1 outdated$", done.stdout, re.M)
    assert re.search(r"^  judge +1   1 after another job$", done.stdout, re.M)
    assert "input:" not in done.stdout
    assert "    input: results/mini/" in copy.snakemake("-n", "--logger-prefdag-plain").stdout


def test_a_terminal_gets_a_table_of_stages(copy: Project):
    target = f"{RESULTS}/judge/dpo/manifest.json"
    (copy.folder / target).unlink()
    (copy.folder / RESULTS / "score/dpo/manifest.json").unlink()
    command = [sys.executable, "-m", "snakemake", target, "--configfile", "configs/mini.yaml"]
    inside = {**environment(), "TERM": "xterm", "COLUMNS": "100", "LINES": "40", "PREFDAG_TRACK": "later"}
    leader, follower = pty.openpty()
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    with subprocess.Popen(command, cwd=copy.folder, env=inside, **streams) as process:
        os.close(follower)
        screen = read_all(leader)
    assert process.returncode == 0, screen
    lines = [line.split() for line in screen.splitlines()]
    assert ["stage", "waiting", "running", "done"] in lines
    assert ["score", "1", "dpo"] in lines and ["judge", "1"] in lines, "one runs, the other waits"
    assert re.search(r"^score dpo +\d+ s  reward \S+  KL \S+\s*$", screen, re.M)


def read_all(terminal: int) -> str:
    """Return what was written to a terminal until its last writer closed it, without control sequences."""
    written = bytearray()
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # Linux: the last writer is gone
            chunk = b""
        if not chunk:
            os.close(terminal)
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()).replace("\r", "\n")
        written += chunk


def test_every_stage_has_a_key_result(finished: Project, monkeypatch):
    monkeypatch.chdir(finished.folder)
    without = set()
    for path in Path(RESULTS).rglob("log.txt"):
        stage, *name = path.relative_to(RESULTS).parent.parts
        if not key_result(Job(stage, "".join(name), path, 0.0)):
            without.add(stage)
    assert without == {"reference"}
