"""What a job's journal says, gathered for a tracker: its run, its numbers, its data and the weights' descent.

Everything here follows from the journals alone, whatever was read when: that makes a replay equal to following live.
"""

import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

from prefdag.provenance.journal import process_is_gone, read_journal

STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
CLOSING = ("prefdag.manifest", "prefdag.error", "prefdag.closed")
DIGEST = 36  # characters of a dataset's digest that MLflow holds
_LONGEST = 6000  # characters of a parameter or tag; trackers refuse more


@dataclass(frozen=True)
class Point:
    """Numbers of one step. measured: they say something of the job's `subject`, the weights it made or measures.

    held: they wait for the job's end, when its subject is known for sure.
    """

    time: float
    step: int
    values: Mapping[str, float]
    measured: bool = False
    held: bool = False


class Record:
    """One journal, read as far as it goes."""

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
        """Take in the lines that came since the last time. Raises `UserError` for a line that is not JSON."""
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
                    spent = {f"job.{name}": float(event[name]) for name in ("seconds", "peak_memory_mb")}
                    self.points.append(Point(event["time"], 0, spent, held=True))

    def close_if_gone(self) -> None:
        """End the record as killed when its process ran on this machine and lives no more."""
        start = self.start
        if (
            start
            and not self.end
            and start["host"] == socket.gethostname()
            and process_is_gone(start["pid"], start["time"])
        ):
            self.advance()  # its last lines may have come since we looked
            self.close_as_killed(f"process {start['pid']} of {start['host']} went without a word")

    def close_as_killed(self, why: str) -> None:
        """End a record whose journal has no end, at its last event. A real end that still comes takes over."""
        if not self.end:
            self.end = {"time": self._last, "status": "killed", "error": None, "manifest": None, "presumed": why}

    @property
    def run_name(self) -> str:
        """What the run is called, and what a rerun of it is called too: "<stage>" or "<stage>/<name>"."""
        assert self.start
        return "/".join(part for part in (self.start["stage"], self.start["name"]) if part)

    @property
    def began(self) -> float:
        assert self.start
        return float(self.start["time"])

    @property
    def subject(self) -> dict[str, Any] | None:
        """The weights that measurements are about: those made here, else, where nothing is trained, the first read."""
        made = [model for model in self.models if model["role"] == "output"]
        trains = any(dataset["context"] == "training" for dataset in self.datasets)
        return made[-1] if made else (self.models[0] if self.models and not trains else None)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The dataset that measurements are taken on."""
        return next((dataset for dataset in reversed(self.datasets) if dataset["context"] == "evaluation"), None)

    @property
    def ready(self) -> list[Point]:
        """The points that may be written: up to the first that waits for the end."""
        if self.end:
            return self.points
        held = next((index for index, point in enumerate(self.points) if point.held), len(self.points))
        return self.points[:held]

    def params(self) -> dict[str, str]:
        """The config, flat: {"preference.beta": "0.1"}."""
        assert self.start
        return {key[:250]: text(value) for key, value in flatten(self.start["config"]) if key}

    def tags(self) -> dict[str, str]:
        """What finds and tells apart a run; known from the first event on."""
        assert self.start
        start = self.start
        tags = {"journal": start["id"], "stage": start["stage"], "name": start["name"] or "", "suite": start["suite"]}
        tags |= {"code": start["code"], "host": start["host"], "started": repr(start["time"]), "num_metrics": "0"}
        tags |= {f"input.{name}": value["sha256"] for name, value in start["inputs"].items()}
        tags = {f"prefdag.{name}": text(value) for name, value in tags.items()}
        return tags | ({"mlflow.source.git.commit": start["git"]} if start["git"] else {})

    def closing_tags(self) -> dict[str, str]:
        """What only the end tells."""
        assert self.end
        values = self.end["manifest"], self.end["error"], self.end.get("presumed")
        return {name: text(value) for name, value in zip(CLOSING, values, strict=True) if value}

    def _add_point(self, event: Mapping[str, Any]) -> None:
        final = event["step"] is None
        step = self._step if final else event["step"] or 0
        self._step = step
        self.points.append(Point(event["time"], step, event["values"], final or self.subject is not None, final))


@dataclass
class StoredModel:
    """Weights that a tracker knows. id: the tracker's own; key: (journal, name, sha256)."""

    id: str
    key: tuple[str, str, str]
    time: float
    tags: dict[str, str]
    ready: bool


@dataclass
class StoredRun:
    """What the database holds of one run."""

    id: str
    name: str
    began: float
    status: str
    deleted: bool = False
    described: bool = False
    num_metrics: int = 0
    superseded: str | None = None
    closing: dict[str, str] = field(default_factory=dict)  # tags that the job's end brought
    params: set[str] = field(default_factory=set)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    inputs: set[str] | None = None  # weights read; None: not asked for yet
    outputs: set[str] = field(default_factory=set)
    artifacts: dict[str, int] | None = None  # path -> bytes; None: not asked for yet

    @property
    def emptiness(self) -> tuple[bool, int, int, str]:
        """Orders runs of one journal: the fullest that nobody threw away comes first."""
        return self.deleted, -self.num_metrics, -len(self.params), self.id


def stored_run(run: Any) -> tuple[str | None, StoredRun]:
    """The journal of an MLflow run, None for somebody else's, and what the run holds."""
    tags = run.data.tags
    kept = StoredRun(run.info.run_id, run.info.run_name, float(tags.get("prefdag.started", 0)), run.info.status)
    kept.deleted = run.info.lifecycle_stage != "active"
    kept.num_metrics = int(tags.get("prefdag.num_metrics", 0))
    kept.superseded = tags.get("prefdag.superseded")
    kept.described = "mlflow.note.content" in tags
    kept.closing = {name: tags[name] for name in CLOSING if name in tags}
    kept.params = set(run.data.params)
    if run.inputs:
        kept.datasets = {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs}
    kept.outputs = {one.model_id for one in run.outputs.model_outputs} if run.outputs else set()
    return tags.get("prefdag.journal"), kept


def stored_model(model: Any) -> StoredModel | None:
    """An MLflow model as weights; None for somebody else's in our experiment."""
    tags = dict(model.tags)
    if "prefdag.journal" not in tags:
        return None
    key = tags["prefdag.journal"], tags["prefdag.name"], tags["prefdag.sha256"]
    return StoredModel(model.model_id, key, float(tags["prefdag.time"]), tags, str(model.status) == "READY")


def requests(points: Iterable[Iterable[Any]], most: int, most_tied: int) -> Iterator[tuple[list[Any], int]]:
    """Metrics of one request each, and how many more points are whole with it.

    points: the metrics of each; most_tied: how many of a request may have a `model_id`.
    """
    gathered: list[Any] = []
    whole = tied = 0
    for point in points:
        for metric in point:
            if len(gathered) == most or (metric.model_id and tied == most_tied):
                yield gathered, whole
                gathered, whole, tied = [], 0, 0
            gathered.append(metric)
            tied += bool(metric.model_id)
        whole += 1
    if whole:
        yield gathered, whole


def newest(weights: Iterable[StoredModel], sha256: str, before: float) -> StoredModel | None:
    """Of all weights with this content those made last before a time; else (clocks differ) the first made after."""
    equal = sorted((one for one in weights if one.key[2] == sha256), key=attrgetter("time", "key"))
    earlier = [one for one in equal if one.time <= before]
    return earlier[-1] if earlier else (equal[0] if equal else None)


def successors(jobs: Iterable[tuple[str, float, str]]) -> dict[str, str]:
    """Which job took the place of which: journal id -> journal id of the next run of the same (stage, name).

    jobs: (run's name, start time, journal id) of each; their order does not matter.
    """
    ordered = sorted(jobs)
    return {old[2]: new[2] for old, new in pairwise(ordered) if old[0] == new[0]}


def flatten(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of nested mappings with dotted keys; lists stay whole."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{key}.{name}" if key else str(name))
    else:
        yield allowed(key), value


def allowed(key: str) -> str:
    """A key of the characters that trackers take."""
    return re.sub(r"[^\w.\- :/]", "_", key)


def text(value: Any) -> str:
    """A value as a parameter: strings as they are, anything else as JSON, both cut at 6,000 characters."""
    return (value if isinstance(value, str) else json.dumps(value))[:_LONGEST]
