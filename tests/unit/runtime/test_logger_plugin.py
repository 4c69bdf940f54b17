"""The console's formatting, on files and log records made by hand."""

import io
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_prefdag.console import ConsoleHandler
from snakemake_logger_plugin_prefdag.jobs import (
    Job,
    describe_facts,
    describe_progress,
    find_sentence,
    format_seconds,
    key_result,
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (90, "1.5 min"), (3599, "60.0 min"), (7560, "2.1 h")]
)
def test_durations(seconds: float, text: str):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("stage", "facts", "text"),
    [
        ("fetch", {"train": 12000, "validation": 200}, "12,200 rows"),
        ("fetch", {"commit": "0123456789abcdef"}, "commit 01234567"),
        ("fetch", {}, ""),
        ("classifier", {"accuracy": {"mean": 0.8765}}, "accuracy 0.876"),
        ("prepare", {"train": {"used": 3, "rows_in": 4}, "test": {"used": 1, "rows_in": 1}}, "4 of 5 rows used"),
        ("preference", {"validation_loss": 0.6, "validation_margin": 2.6}, "loss 0.600  margin 2.600"),
        ("policy", {"score": 0.812, "kl": 2.5}, "score 0.81  KL 2.50"),
        ("online", {"score": 1, "doubts": ["the KL is off"]}, "score 1.00; the KL is off"),
        ("score", {"reward": {"mean": 0.25}, "kl": {"mean": 2}}, "reward 0.25  KL 2.00"),
        ("best_of_n", {"prompts": 180, "samples": 16}, "180 prompts, N up to 16"),
        ("exact", {"settings": 12, "responses": 85}, "12 settings"),
        ("reference", {"key": {}}, ""),
    ],
)
def test_key_results(stage: str, facts: dict, text: str):
    assert describe_facts(stage, facts) == text


def job_in(results: Path) -> Job:
    folder = results / "preference/dpo"
    folder.mkdir(parents=True)
    return Job("preference", "dpo", folder / "log.txt", started=1000.0)


def write_journal(job: Job, losses: dict[int, float], name: str = "dpo", when: float = 1001.0) -> None:
    """Write a journal of a training that takes two seconds a step."""
    path = job.folder.parents[1] / f".journal/preference-{name}-20260101T000000000Z-7.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = [
        json.dumps({"event": "metrics", "time": 1000.0 + 2 * step, "step": step, "values": {"loss": loss}})
        for step, loss in losses.items()
    ]
    path.write_text("\n".join([*lines, '{"event": "metr']))
    os.utime(path, (when, when))


def test_progress_has_step_loss_and_remaining_time(tmp_path: Path):
    job = job_in(tmp_path)
    assert describe_progress(job) == "", "it has written nothing"
    job.log.write_text("dpo: step 1/90, loss 0.6931\n")
    write_journal(job, {1: 0.6931})
    write_journal(job, {1: 0.6931}, name="dpo-strong", when=2000.0)
    assert describe_progress(job) == "step 1/90  loss 0.693", "one step gives no speed"
    write_journal(job, dict.fromkeys(range(1, 12), 0.5))
    assert describe_progress(job) == "step 11/90  loss 0.500  ETA 2.6 min"
    write_journal(job, dict.fromkeys(range(1, 91), 0.4))
    assert describe_progress(job) == "step 90/90  loss 0.400"


def test_progress_ignores_the_journal_of_an_earlier_attempt(tmp_path: Path):
    job = job_in(tmp_path)
    job.log.write_text("dpo: step 1/90, loss 0.6931\n")
    write_journal(job, {1: 0.6931}, when=999.0)
    assert describe_progress(job) == ""


def test_the_sentence_of_a_failed_job(tmp_path: Path):
    job = job_in(tmp_path)
    assert find_sentence(job) == "the job wrote nothing to its log"
    job.log.write_text("step 1\nprefdag: the cause\nsome library's last words\n")
    assert find_sentence(job) == "prefdag: the cause"
    job.log.write_text("step 1\nsome library's last words\n\n")
    assert find_sentence(job) == "some library's last words"
    os.utime(job.log, (job.started - 100, job.started - 100))
    assert find_sentence(job) == "the job wrote nothing to its log", (
        "that of an earlier attempt says nothing of this one"
    )
    assert find_sentence(Job("lock", "", None, 0.0)) == "the job has no log; its output is above"


def test_a_result_that_cannot_be_read_is_left_out(tmp_path: Path):
    job = job_in(tmp_path)
    assert key_result(job) == ""
    (job.folder / "manifest.json").write_text('{"facts": {"validation_loss": 0.5}}')
    assert key_result(job) == "loss 0.500"
    assert key_result(Job("lock", "", None, 0.0)) == ""


def show(monkeypatch: pytest.MonkeyPatch, *records: logging.LogRecord, quiet: tuple = (), dryrun: bool = False) -> str:
    """Return what the handler prints to a pipe for these records."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.argv", ["/bin/snakemake", "--configfile", "a b.yaml"])
    handler = ConsoleHandler(SimpleNamespace(quiet=quiet, dryrun=dryrun, nocolor=False, stdout=False))
    for record in records:
        handler.emit(record)
    handler.close()
    return stream.getvalue()


def record(
    message: str = "", level: int = logging.INFO, created: float = 1000.0, **values: object
) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelno": level, "created": created, **values})


def run(tmp_path: Path) -> list[logging.LogRecord]:
    """Return Snakemake's records of two jobs, of which one fails and is tried again."""
    logs = {1: tmp_path / "sft/log.txt", 2: tmp_path / "preference/dpo/log.txt"}
    info = {"event": LogEvent.JOB_INFO, "reason": ""}
    return [
        record("Building DAG of jobs..."),
        record("None", event=LogEvent.RUN_INFO, stats={"sft": 1, "preference": 1, "all": 1, "total": 3}),
        record("Select jobs to execute..."),
        record(jobid=1, rule_name="sft", wildcards={}, log=[str(logs[1])], **info),
        record(jobid=2, rule_name="preference", wildcards={"run": "dpo"}, log=[str(logs[2])], **info),
        record(created=1012.0, event=LogEvent.JOB_FINISHED, job_id=1),
        record("RuleException: ...", logging.ERROR, event=LogEvent.ERROR, exception="RuleException"),
        record(level=logging.ERROR, created=1090.0, event=LogEvent.JOB_ERROR, jobid=2, log=[str(logs[2])]),
        record("Trying to restart job 2."),
        record(level=logging.ERROR, created=1090.0, event=LogEvent.JOB_ERROR, jobid=2, log=[str(logs[2])]),
        record("At least one job did not complete successfully.", logging.ERROR, event=LogEvent.ERROR),
    ]


def test_a_run_in_a_pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert show(monkeypatch, *run(tmp_path)).splitlines() == [
        "2 jobs: 1 sft, 1 preference",
        "sft                                  12 s",
        "preference dpo                    1.5 min  failed",
        "  the job wrote nothing to its log",
        f"  log: {tmp_path}/preference/dpo/log.txt",
        "Trying to restart preference dpo",
        "preference dpo                    1.5 min  failed",
        "  the job wrote nothing to its log",
        f"  log: {tmp_path}/preference/dpo/log.txt",
        "",
        "1 failed, 1 done, 0 not run. Fix the cause, then run",
        "  snakemake --configfile 'a b.yaml'",
        "again: it keeps what is done, and continues trainings from their last saved state.",
    ]


def test_a_run_that_a_signal_stops_has_nothing_to_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    records = run(tmp_path)
    log = tmp_path / "preference/dpo/log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("step 3/10\nprefdag: stopped by SIGTERM; the next run continues from its saved state\n")
    assert show(monkeypatch, *records[:-3], records[-1]).splitlines()[2:] == [
        "preference dpo                    1.5 min  stopped",
        "  prefdag: stopped by SIGTERM; the next run continues from its saved state",
        f"  log: {log}",
        "",
        "1 stopped, 1 done, 0 not run. To continue, run",
        "  snakemake --configfile 'a b.yaml'",
        "again: it keeps what is done, and continues trainings from their last saved state.",
    ]


def test_a_locked_folder_is_a_sentence_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Snakemake's own words name neither the command nor that nothing is lost."""
    monkeypatch.chdir(tmp_path)
    words = "LockException:\nError: Directory cannot be locked. Please make sure that ... --unlock argument."
    locked = record(words, logging.ERROR, event=LogEvent.ERROR, exception="LockException")
    assert show(monkeypatch, locked).splitlines() == [
        f"prefdag: {tmp_path} is locked: another Snakemake runs here, or one was killed. If none runs, use",
        "  snakemake --unlock --configfile 'a b.yaml'",
        "and run the suite again: finished jobs do not run again.",
    ]


def test_quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    progress = show(monkeypatch, *run(tmp_path), quiet=(Quietness.PROGRESS,))
    assert progress.startswith("preference dpo ") and "sft" not in progress
    assert show(monkeypatch, *run(tmp_path), quiet=(Quietness.ALL,)) == ""


def test_warnings_errors_and_messages_of_other_commands_are_shown(monkeypatch: pytest.MonkeyPatch):
    text = show(
        monkeypatch,
        record("Unlocked working directory."),
        record("a warning", logging.WARNING),
        record("SyntaxError in file Snakefile", logging.ERROR, event=LogEvent.ERROR, exception="SyntaxError"),
        record("Traceback\nFileNotFoundError: x.yaml\n", event=LogEvent.ERROR, exception="FileNotFoundError"),
    )
    expected = [
        "Unlocked working directory.",
        "a warning",
        "SyntaxError in file Snakefile",
        "FileNotFoundError: x.yaml",
    ]
    assert text.splitlines() == expected
