"""A job's journal as a tracker needs it: the run, its metrics, its datasets and the lineage of its weights.

Everything here follows from the journals alone, not from when they were read: a replay equals following live.
"""

import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from operator import attrgetter
from pathlib import Path
from typing import Any

from prefdag.provenance.journal import process_is_gone, read_journal

STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
END_TAGS = ("prefdag.manifest", "prefdag.error", "prefdag.closed")
DIGEST = 36  # the length to which MLflow limits a dataset's digest
_MAX_LENGTH = 6000  # MLflow refuses a longer parameter or tag


@dataclass(frozen=True)
class Point:
    """The numbers of one step.

    Attributes:
        time: Seconds since the epoch.
        step: The optimizer step.
        values: Name -> number.
        measured: Whether they belong to the weights that the job makes or evaluates (`Record.measured_weights`).
        final: Whether they are written only once the job has ended, when those weights are known.
    """

    time: float
    step: int
    values: Mapping[str, float]
    measured: bool = False
    final: bool = False


class Record:
    """One journal, as far as it has been written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start: dict[str, Any] | None = None
        self.end: dict[str, Any] | None = None
        self.datasets: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.points: list[Point] = []
        self._offset = 0
        self._step = 0  # of the last metrics
        self._last = 0.0  # time of the last event

    def advance(self) -> None:
        """Read the lines written since the last call. Raises `UserError` for a line that is not JSON."""
        events, self._offset = read_journal(self.path, self._offset)
        for event in events:
            self._last = event["time"]
            match event["event"]:
                case "start":
                    self.start = event
                case "metrics":
                    self._add_point(event)
                case "system":
                    self.points.append(Point(event["time"], event["step"], event["values"]))
                case "dataset":
                    self.datasets.append(event)
                case "model":
                    self.models.append(event)
                case "artifact":
                    self.artifacts.append(event)
                case "end":
                    self.end = event
                    usage = {f"job.{name}": float(event[name]) for name in ("seconds", "peak_memory_mb")}
                    self.points.append(Point(event["time"], 0, usage, final=True))

    def close_if_gone(self) -> None:
        """End the record as killed where its process ran on this machine and has ended."""
        start = self.start
        if (
            start
            and not self.end
            and start["host"] == socket.gethostname()
            and process_is_gone(start["pid"], start["time"])
        ):
            self.advance()  # it may have written its last lines since we read
            self.close_as_killed(f"process {start['pid']} of {start['host']} ended without a last event")

    def close_as_killed(self, reason: str) -> None:
        """End a record without an end event at its last event; an end event that comes later replaces this end."""
        if not self.end:
            self.end = {"time": self._last, "status": "killed", "error": None, "manifest": None, "presumed": reason}

    @property
    def run_name(self) -> str:
        """The run's name, which its reruns share: "<stage>" or "<stage>/<name>"."""
        assert self.start
        return "/".join(part for part in (self.start["stage"], self.start["name"]) if part)

    @property
    def began(self) -> float:
        assert self.start
        return float(self.start["time"])

    @property
    def measured_weights(self) -> dict[str, Any] | None:
        """The weights that metrics belong to: the output, or, for a job without training, the first input."""
        outputs = [model for model in self.models if model["role"] == "output"]
        trains = any(dataset["context"] == "training" for dataset in self.datasets)
        return outputs[-1] if outputs else (self.models[0] if self.models and not trains else None)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The dataset that the job evaluates on."""
        return next((dataset for dataset in reversed(self.datasets) if dataset["context"] == "evaluation"), None)

    @property
    def ready(self) -> list[Point]:
        """The points that may be written now: all before the first final one, or all once the job has ended."""
        if self.end:
            return self.points
        return list(takewhile(lambda point: not point.final, self.points))

    def params(self) -> dict[str, str]:
        """Return the config with dotted keys: {"preference.beta": "0.1"}."""
        assert self.start
        return {key[:250]: text(value) for key, value in flatten(self.start["config"]) if key}

    def tags(self) -> dict[str, str]:
        """Return the tags that identify a run, all known from the first event on."""
        assert self.start
        start = self.start
        tags = {"journal": start["id"], "stage": start["stage"], "name": start["name"] or "", "suite": start["suite"]}
        tags |= {"code": start["code"], "host": start["host"], "started": repr(start["time"]), "num_metrics": "0"}
        tags |= {f"input.{name}": value["sha256"] for name, value in start["inputs"].items()}
        tags = {f"prefdag.{name}": text(value) for name, value in tags.items()}
        return tags | ({"mlflow.source.git.commit": start["git"]} if start["git"] else {})

    def end_tags(self) -> dict[str, str]:
        """Return the tags that are known once the job has ended."""
        assert self.end
        values = self.end["manifest"], self.end["error"], self.end.get("presumed")
        return {name: text(value) for name, value in zip(END_TAGS, values, strict=True) if value}

    def _add_point(self, event: Mapping[str, Any]) -> None:
        final = event["step"] is None
        step = self._step if final else event["step"] or 0
        self._step = step
        self.points.append(
            Point(event["time"], step, event["values"], final or self.measured_weights is not None, final)
        )


@dataclass
class StoredModel:
    """Weights in the database. id: MLflow's; key: (journal, name, sha256); ready: whether MLflow lists them."""

    id: str
    key: tuple[str, str, str]
    time: float
    tags: dict[str, str]
    ready: bool


@dataclass
class StoredRun:
    """What the database holds of one run; `inputs` and `artifacts` are None until asked for."""

    id: str
    name: str
    began: float
    status: str
    deleted: bool = False
    described: bool = False
    num_metrics: int = 0
    superseded: str | None = None
    parent: str | None = None  # id of the training's run
    end_tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    inputs: set[str] | None = None  # ids of weights
    outputs: set[str] = field(default_factory=set)  # ids of weights
    artifacts: dict[str, int] | None = None  # path -> bytes

    @property
    def emptiness(self) -> tuple[bool, int, int, str]:
        """Sort key for runs of one journal: runs that are not deleted first, then the one that holds most."""
        return self.deleted, -self.num_metrics, -len(self.params), self.id


def stored_run(run: Any) -> tuple[str | None, StoredRun]:
    """Return the journal of an MLflow run (None for a run that is not ours) and what the run holds."""
    tags = run.data.tags
    stored = StoredRun(run.info.run_id, run.info.run_name, float(tags.get("prefdag.started", 0)), run.info.status)
    stored.deleted = run.info.lifecycle_stage != "active"
    stored.num_metrics = int(tags.get("prefdag.num_metrics", 0))
    stored.superseded = tags.get("prefdag.superseded")
    stored.parent = tags.get("mlflow.parentRunId")
    stored.described = "mlflow.note.content" in tags
    stored.end_tags = {name: tags[name] for name in END_TAGS if name in tags}
    stored.params = set(run.data.params)
    if run.inputs:
        stored.datasets = {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs}
    stored.outputs = {one.model_id for one in run.outputs.model_outputs} if run.outputs else set()
    return tags.get("prefdag.journal"), stored


def stored_model(model: Any) -> StoredModel | None:
    """Return an MLflow model as weights; None for a model that is not ours."""
    tags = dict(model.tags)
    if "prefdag.journal" not in tags:
        return None
    key = tags["prefdag.journal"], tags["prefdag.name"], tags["prefdag.sha256"]
    return StoredModel(model.model_id, key, float(tags["prefdag.time"]), tags, str(model.status) == "READY")


def requests(points: Iterable[Iterable[Any]], limit: int, linked_limit: int) -> Iterator[tuple[list[Any], int]]:
    """Split metrics into requests.

    Args:
        points: The metrics of each point.
        limit: The number of metrics that a request may hold.
        linked_limit: The number of them that may have a `model_id`.

    Yields:
        The metrics of a request, and the number of points that are complete with it.
    """
    batch: list[Any] = []
    complete = linked = 0
    for point in points:
        for metric in point:
            if len(batch) == limit or (metric.model_id and linked == linked_limit):
                yield batch, complete
                batch, complete, linked = [], 0, 0
            batch.append(metric)
            linked += bool(metric.model_id)
        complete += 1
    if complete:
        yield batch, complete


def newest(weights: Iterable[StoredModel], sha256: str, before: float) -> StoredModel | None:
    """Return the weights with a given content that were made last before a time.

    Where clocks differ and none was, return the first made after it; None where no weights have this content.
    """
    equal = sorted((one for one in weights if one.key[2] == sha256), key=attrgetter("time", "key"))
    earlier = [one for one in equal if one.time <= before]
    return earlier[-1] if earlier else (equal[0] if equal else None)


def successors(jobs: Iterable[tuple[str, float, str]]) -> dict[str, str]:
    """Map each rerun job's journal id to that of the next run of the same name.

    Args:
        jobs: (run name, start time, journal id) of each job, in any order.
    """
    ordered = sorted(jobs)
    return {old[2]: new[2] for old, new in pairwise(ordered) if old[0] == new[0]}


def flatten(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the leaves of nested mappings with dotted keys; a list is a leaf."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{key}.{name}" if key else str(name))
    else:
        yield allowed(key), value


def allowed(key: str) -> str:
    """Replace the characters that MLflow does not allow in a key."""
    return re.sub(r"[^\w.\- :/]", "_", key)


def text(value: Any) -> str:
    """Return a value as the text of a parameter: a string as it is, anything else as JSON, cut at 6,000 characters."""
    return (value if isinstance(value, str) else json.dumps(value))[:_MAX_LENGTH]
