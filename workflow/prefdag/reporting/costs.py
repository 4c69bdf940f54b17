"""What each job of a suite cost: time, memory, tokens, from its journals, its benchmark.tsv and the scores.

None of it is part of a manifest, as it differs between equal runs.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefdag.errors import UserError
from prefdag.evaluation.scores import read_scores

COLUMNS = (
    "stage",
    "name",
    "attempts",
    "seconds",
    "peak_memory_mb",
    "steps",
    "tokens",
    "tokens_per_second",
    "wall_seconds",
)


def costs(results: Path) -> list[dict[str, Any]]:
    """A row a finished job that still has its manifest, in the order in which they first began.

    seconds: of all attempts that led to the result, as the jobs measured themselves; wall_seconds: of the last one
    with its start, as Snakemake did. peak_memory_mb: the largest of the attempts. steps, tokens: of training, every
    optimizer step once; tokens of `generate`: those that its answers' scores count. None for what a job has not.
    """
    jobs: dict[tuple[str, str | None], dict[str, Any]] = {}
    for journal in sorted((results / ".journal").glob("*.jsonl"), key=_began):
        try:
            start, tokens, end = _read(journal)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise UserError(f"{journal}: damaged; delete it to leave this attempt of its job out") from None
        if start is None:
            continue
        job = (start["stage"], start["name"])
        known = jobs.get(job)
        if known is None or known["finished"]:  # a finished job that starts again replaces its result
            known = {"attempts": 0, "seconds": 0.0, "peak_memory_mb": 0.0, "tokens": {}, "finished": False}
            jobs[job] = known
        known["attempts"] += 1
        known["tokens"] |= tokens
        if end is not None:
            known["seconds"] += end["seconds"]
            known["peak_memory_mb"] = max(known["peak_memory_mb"], end["peak_memory_mb"])
            known["finished"] = end["status"] == "finished"
    return [_row(results, *job, known) for job, known in jobs.items() if known["finished"]]


def _began(journal: Path) -> list[str]:
    return journal.stem.split("-")[-2:]  # <stage>-<name>-<time>-<process>


def _read(journal: Path) -> tuple[dict[str, Any] | None, dict[int, float], dict[str, Any] | None]:
    """The first event, the tokens of every optimizer step, and the last event if the job came so far."""
    start, tokens, end = None, {}, None
    for event in _events(journal):
        if event["event"] == "start":
            start = {"stage": _checked(event["stage"], str), "name": _checked(event["name"], str | None)}
        elif event["event"] == "end":
            end = {"status": event["status"], **{key: float(event[key]) for key in ("seconds", "peak_memory_mb")}}
        elif event["step"] is not None and "num_tokens" in event["values"]:
            tokens[int(event["step"])] = _checked(event["values"]["num_tokens"], int | float)
    return start, tokens, end


def _checked(value: Any, type_: Any) -> Any:
    """Return a value that a journal states. Raises `TypeError` if it has another type."""
    if not isinstance(value, type_):
        raise TypeError(f"expected {type_}, got {value!r}")
    return value


def _events(journal: Path) -> Iterator[dict[str, Any]]:
    with journal.open(encoding="utf-8") as stream:
        for line in stream:
            if line.endswith("\n") and line.startswith(('{"event": "start"', '{"event": "metrics"', '{"event": "end"')):
                yield json.loads(line)


def _row(results: Path, stage: str, name: str | None, known: dict[str, Any]) -> dict[str, Any]:
    folder = results / stage / (name or "")
    tokens = sum(known["tokens"].values()) or (_generated(results, name) if stage == "generate" else None)
    rate = tokens / known["seconds"] if tokens and known["seconds"] else None
    spent = {"attempts": known["attempts"], "seconds": known["seconds"], "peak_memory_mb": known["peak_memory_mb"]}
    about = {"stage": stage, "name": name or "", "folder": f"{stage}/{name}" if name else stage}
    counted = {"steps": len(known["tokens"]) or None, "tokens": tokens, "tokens_per_second": rate}
    return {**about, **spent, **counted, "wall_seconds": _benchmark(folder / "benchmark.tsv")}


def _generated(results: Path, answers: str | None) -> float | None:
    folder = results / "score" / str(answers)
    return float(read_scores(folder).column("length").sum()) if (folder / "scores.csv").is_file() else None


def _benchmark(path: Path) -> float | None:
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        return float(rows[-1]["s"]) if rows else None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{path}: not Snakemake's times of a job; delete it to leave them out") from None


def by_stage(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums of each stage's jobs, and the largest memory of one."""
    rows_by_stage = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        members = [row for row in rows if row["stage"] == stage]
        sums = {key: sum(row[key] or 0 for row in members) for key in ("seconds", "tokens")}
        most = max(row["peak_memory_mb"] for row in members)
        rows_by_stage.append({"stage": stage, "jobs": len(members), **sums, "peak_memory_mb": most})
    return rows_by_stage
