"""Show a workflow on the console: a live table of stages in a terminal, one line per finished job in a pipe."""

import logging
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import OutputSettingsLoggerInterface

from snakemake_logger_plugin_prefdag.jobs import Job, describe_progress, find_sentence, format_seconds, key_result

SHOWN_PER_STAGE = 4  # running jobs of a stage that the table names
# What Snakemake says before it runs jobs, of no interest to a user.
SILENT = re.compile(
    r"Building DAG|Assuming unrestricted|Using (shell|profile|workflow)|Provided|Rules claiming|Conda env|host:"
    r"|Config file|Multiple includes|Singularity"
)
# Snakemake's errors that repeat what the line of the failed job says.
JOB_FAILURES = ("RuleException", "CalledProcessError", "SpawnedJobError")
# Snakemake's warnings after a failed job: that it stops, and what it did with the job's former manifest.
REPEATED = ("Exiting because a job execution failed", "Cannot restore", "Restored previous version")
STOPPED = "prefdag: stopped by "  # the sentence of a job that a signal ended
END_OF_FAILURE = "At least one job did not complete successfully"
REASONS = {
    "Missing output": "output missing",
    "Params have": "config changed",
    "Code has": "command changed",
    "Set of input": "inputs changed",
    "Updated input": "outdated",
    "Input files updated": "after another job",
    "Forced": "forced",
}


class ConsoleHandler(logging.Handler):
    """Handle Snakemake's log records. In a dry run, count the jobs of each stage by reason."""

    def __init__(self, common: OutputSettingsLoggerInterface) -> None:
        super().__init__()
        self.quiet, self.dryrun = set(common.quiet or ()), common.dryrun
        stream = sys.stdout if common.stdout else sys.stderr
        self.console = Console(file=stream, no_color=common.nocolor, highlight=False, soft_wrap=True)
        self.jobs: dict[int, Job] = {}
        self.totals: dict[str, int] = {}  # stage -> number of jobs
        self.reasons: dict[str, Counter[str]] = {}  # stage -> reason -> number of jobs
        self.live: Live | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._handle(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._stop_live()
        super().close()

    def _handle(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event is None:
            self._handle_message(record)
        elif event == LogEvent.RUN_INFO and not self.totals:
            self._start(vars(record)["stats"])
        elif event == LogEvent.JOB_INFO:
            self._start_job(vars(record), record.created)
        elif event == LogEvent.JOB_FINISHED:
            self._finish_job(self.jobs[vars(record)["job_id"]], record.created)
        elif event == LogEvent.JOB_ERROR:
            self._fail_job(self.jobs[vars(record)["jobid"]], vars(record)["log"], record.created)
        elif event == LogEvent.ERROR:
            self._handle_error(record)

    def _handle_message(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if hasattr(record, "console"):  # the end of the workflow, from services.smk
            self._stop_live()
            self._print("\n" + text)
        elif restart := re.match(r"Trying to restart job (\d+)", text):
            self._print(f"Trying to restart {self.jobs[int(restart[1])].title}")
        elif text.startswith("This was a dry-run"):
            self._print_plan()
        elif record.levelno >= logging.WARNING:
            if not text.startswith(REPEATED):
                self._print(text, style="red" if record.levelno >= logging.ERROR else "yellow")
        elif not self.totals and not SILENT.match(text) and text != "None":
            self._print(text)

    def _start(self, stats: dict[str, int]) -> None:
        self.totals = {stage: number for stage, number in stats.items() if stage not in ("all", "total")}
        if self.dryrun or Quietness.PROGRESS in self.quiet:
            return
        if self.console.is_interactive:
            self.live = Live(get_renderable=self._table, console=self.console, refresh_per_second=2, transient=True)
            self.live.start()
        else:
            self._print(f"{sum(self.totals.values())} jobs: {_join(self.totals)}")

    def _start_job(self, values: dict[str, Any], now: float) -> None:
        stage = values["rule_name"]
        if self.dryrun:
            self.reasons.setdefault(stage, Counter()).update([_short_reason(values["reason"])])
            return
        name = " ".join(map(str, values["wildcards"].values()))
        log = next(iter(values["log"]), None)
        self.jobs[values["jobid"]] = Job(stage, name, Path(log) if log else None, now)

    def _finish_job(self, job: Job, now: float) -> None:
        job.status = "done"
        if job.stage != "all" and Quietness.PROGRESS not in self.quiet:
            self._print(f"{job.title:<32}  {format_seconds(now - job.started):>7}  {key_result(job)}".rstrip())

    def _fail_job(self, job: Job, logs: list[str], now: float) -> None:
        sentence = find_sentence(job)
        job.status = "stopped" if sentence.startswith(STOPPED) else "failed"
        style = "red" if job.status == "failed" else None
        self._print(f"{job.title:<32}  {format_seconds(now - job.started):>7}  {job.status}", style=style)
        self._print(f"  {sentence}\n  log: {', '.join(map(str, logs)) or 'none'}")

    def _handle_error(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if END_OF_FAILURE in text:
            self._stop_live()
            count = Counter[str](job.status for job in self.jobs.values() if job.stage != "all")
            named = [name for name in ("failed", "stopped") if count[name]]
            waiting = sum(self.totals.values()) - sum(count[name] for name in (*named, "done"))
            counts = ", ".join(f"{count[name]} {name}" for name in (*named, "done")) + f", {waiting} not run"
            self._print(f"\n{counts}. {'Fix the cause, then run' if count['failed'] else 'To continue, run'}")
            self._print(f"  {shlex.join(['snakemake', *sys.argv[1:]])}")
            self._print("again: it keeps what is done, and continues trainings from their last saved state.")
        elif vars(record).get("exception") == "FileNotFoundError":  # of --configfile or --profile
            self._print(text.strip().splitlines()[-1], style="red")
        elif vars(record).get("exception") == "LockException":
            unlock = shlex.join(["snakemake", "--unlock", *sys.argv[1:]])
            self._print(
                f"prefdag: {Path.cwd()} is locked: another Snakemake runs here, or one was killed. If none runs, use\n"
                f"  {unlock}\nand run the suite again: finished jobs do not run again.",
                style="red",
            )
        elif vars(record).get("exception") not in JOB_FAILURES:
            self._print(text, style="red")

    def _print_plan(self) -> None:
        """Print the jobs of a dry run: how many of each stage, and why."""
        if Quietness.PROGRESS in self.quiet:
            return
        self._print(f"{sum(self.totals.values())} jobs would run:")
        for stage, number in self.totals.items():
            self._print(f"  {stage:<13} {number:>4}   {_join(self.reasons.get(stage, {}))}")
        self._print("`prefdag why` explains each job; `snakemake -n -p` shows its inputs and its command.")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for column in ("stage", "waiting", "running", "done"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        table.add_column("", no_wrap=True)
        jobs = list(self.jobs.values())
        for stage, total in self.totals.items():
            count = Counter(job.status for job in jobs if job.stage == stage)
            waiting = total - sum(count.values())
            running = [job for job in jobs if job.stage == stage and job.status == "running"]
            lines = [f"{job.name}  {describe_progress(job)}".strip() for job in running[:SHOWN_PER_STAGE]]
            lines += [f"and {len(running) - SHOWN_PER_STAGE} more"] if len(running) > SHOWN_PER_STAGE else []
            lines += [f"[red]{count['failed']} failed[/red]"] if count["failed"] else []
            style = "bold" if running else "dim" if count["done"] == total else ""
            numbers = [str(number or "") for number in (waiting, len(running), count["done"])]
            table.add_row(stage, *numbers, "\n".join(lines), style=style)
        return table

    def _stop_live(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None

    def _print(self, text: str, style: str | None = None) -> None:
        if Quietness.ALL not in self.quiet:
            self.console.print(text, style=style, markup=False)


def _short_reason(reason: str) -> str:
    """Shorten Snakemake's reason for a job to a few words, without file names."""
    return next((short for start, short in REASONS.items() if start in reason), reason.split(":")[0] or "other")


def _join(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
