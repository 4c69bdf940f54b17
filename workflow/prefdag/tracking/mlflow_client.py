"""The one module that knows MLflow: the experiment of a suite, with one run for each journal.

Everything written carries the event's own time and the journal's id. A write begins by looking at what is there
and adds what is missing: written twice is written once, and a write that broke off is taken up again.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.models.utils import get_external_mlflow_model_spec
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_MODEL_IS_EXTERNAL

from prefdag.provenance.manifest import sha256_of
from prefdag.tracking.environment import no_retries
from prefdag.tracking.links import describe_experiment, describe_run
from prefdag.tracking.records import (
    DIGEST,
    STATUS,
    Point,
    Record,
    StoredModel,
    StoredRun,
    allowed,
    newest,
    requests,
    stored_model,
    stored_run,
    successors,
)

# The most of each that one request may hold. MLflow takes 1,000 metrics, but sent again it can tell those of weights
# that it has from those that it lacks among the first hundred only.
_METRICS, _TIED, _PARAMS = 900, 100, 100
_KIND = "custom_model_development"  # by which the UI shows runs and models first, and nothing of agents


class Experiment:
    """The experiment named like the suite's folder `root` in the database at `uri`; both are made where missing.

    Artifacts lie beside the database in `mlartifacts/<suite>`, or where a tracking server wants them.
    """

    def __init__(self, uri: str, root: Path) -> None:
        for name in ("alembic", "mlflow"):  # MLflow tells of each table it makes
            logging.getLogger(name).setLevel(logging.WARNING)
        self.root = root
        self.client = MlflowClient(uri)
        self.id = self._find(uri)
        describe_experiment(self.client, self.id)
        self.runs = self._one_run_each()
        self.weights = self._one_model_each()

    def write(self, record: Record) -> None:
        """Add to the database what it lacks of a journal that has begun."""
        kept = self._run(record)
        if kept.deleted:  # somebody threw it away in the UI: it stays away
            return
        self._write_params(record, kept)
        self._write_datasets(record, kept)
        self._write_models(record, kept)
        self._write_metrics(record, kept)
        if record.end:
            self._copy_artifacts(record, kept)
            self._close(record, kept)

    def mark_superseded(self) -> None:
        """Tag every run whose job was run again with the journal of the next one."""
        for old, new in successors((kept.name, kept.began, key) for key, kept in self.runs.items()).items():
            kept = self.runs[old]
            if kept.superseded != new and not kept.deleted:
                self.client.set_tag(kept.id, "prefdag.superseded", new)
                kept.superseded = new

    def describe(self, record: Record) -> None:
        """Say on the run's page which runs made what it read; all of them must be written by now."""
        kept = self._run(record)
        if not (kept.described or kept.deleted):
            describe_run(self.client, self.id, kept.id, record, self.runs.values())
            kept.described = True

    def newest_runs(self) -> dict[str, str]:
        """Name -> MLflow's id of the newest run of each job; what was thrown away is none."""
        ordered = sorted(self.runs.values(), key=attrgetter("began"))
        return {kept.name: kept.id for kept in ordered if not kept.deleted}

    def _find(self, uri: str) -> str:
        found = self.client.get_experiment_by_name(self.root.name)
        if found is None:
            served = uri.startswith(("http:", "https:", "databricks"))
            place = None if served else (self.root.parent / "mlartifacts" / self.root.name).as_uri()
            return self.client.create_experiment(self.root.name, place, {"mlflow.experimentKind": _KIND})
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _one_run_each(self) -> dict[str, StoredRun]:
        """The run of each journal. A request whose answer got lost, and came true, may have made one too many."""
        found: dict[str, list[StoredRun]] = {}
        for key, kept in map(stored_run, self._all_runs()):
            if key:
                found.setdefault(key, []).append(kept)
        for same in found.values():
            same.sort(key=attrgetter("emptiness"))
            for spare in same[1:]:
                if not spare.deleted:
                    self.client.delete_run(spare.id)
        return {key: same[0] for key, same in found.items()}

    def _one_model_each(self) -> dict[tuple[str, str, str], StoredModel]:
        """The model of each weights; spare ones as with runs."""
        found: dict[tuple[str, str, str], StoredModel] = {}
        for one in sorted(filter(None, map(stored_model, self._all_models())), key=lambda one: (not one.ready, one.id)):
            if found.setdefault(one.key, one) is not one:
                self.client.delete_logged_model(one.id)
        return found

    def _all_runs(self) -> Iterable[Run]:
        return _all_pages(lambda token: self.client.search_runs([self.id], "", ViewType.ALL, 500, page_token=token))

    def _all_models(self) -> Iterable[LoggedModel]:
        return _all_pages(lambda token: self.client.search_logged_models([self.id], page_token=token))

    def _run(self, record: Record) -> StoredRun:
        assert record.start
        key = record.start["id"]
        if key not in self.runs:
            with no_retries():
                run = self.client.create_run(self.id, _milliseconds(record.began), record.tags(), record.run_name)
            self.runs[key] = stored_run(run)[1]
        return self.runs[key]

    def _write_params(self, record: Record, kept: StoredRun) -> None:
        missing = [Param(key, value) for key, value in record.params().items() if key not in kept.params]
        for part in _parts(missing, _PARAMS):
            self.client.log_batch(kept.id, params=part)
        kept.params |= {param.key for param in missing}

    def _write_datasets(self, record: Record, kept: StoredRun) -> None:
        missing = []
        for event in record.datasets:
            key = event["name"], event["digest"][:DIGEST]
            if key not in kept.datasets:
                source, profile = json.dumps({"uri": self._shown(event["path"])}), json.dumps(event["profile"])
                dataset = Dataset(*key, source_type="local", source=source, profile=profile)
                tags = {MLFLOW_DATASET_CONTEXT: event["context"], "prefdag.digest": event["digest"]}
                missing.append(DatasetInput(dataset, [InputTag(name, value) for name, value in tags.items()]))
                kept.datasets.add(key)
        if missing:
            self.client.log_inputs(kept.id, datasets=missing)

    def _write_models(self, record: Record, kept: StoredRun) -> None:
        """Weights made become external models; weights read, and parents, are linked to the runs that made them."""
        read = []
        for event in record.models:
            if event["role"] == "input":
                read += [newest(self.weights.values(), event["sha256"], event["time"])]
                continue
            parents = [newest(self.weights.values(), sha256, event["time"]) for sha256 in event["parents"]]
            made = self._made(record, kept, event, [parent.id for parent in parents if parent])
            if made.id not in kept.outputs:
                self.client.log_outputs(kept.id, [LoggedModelOutput(made.id, step=0)])
                kept.outputs.add(made.id)
            read += parents
        ids = {one.id for one in read if one} - kept.outputs
        if ids and kept.inputs is None:  # a search of runs leaves them out
            inputs = self.client.get_run(kept.id).inputs
            kept.inputs = {one.model_id for one in inputs.model_inputs} if inputs else set()
        if missing := sorted(ids - (kept.inputs or set())):
            self.client.log_inputs(kept.id, models=[LoggedModelInput(one) for one in missing])
            kept.inputs = (kept.inputs or set()) | ids

    def _made(self, record: Record, kept: StoredRun, event: dict[str, Any], parents: Sequence[str]) -> StoredModel:
        assert record.start
        key = record.start["id"], event["name"], event["sha256"]
        if key not in self.weights:
            tags = dict(zip(("prefdag.journal", "prefdag.name", "prefdag.sha256"), key, strict=True))
            tags |= {"prefdag.path": self._shown(event["path"]), "prefdag.time": repr(event["time"])}
            params = {"path": self._shown(event["path"]), "sha256": event["sha256"]}
            params |= {f"parent.{index}": sha256 for index, sha256 in enumerate(event["parents"])}
            name = "".join("-" if letter in "/:.%\"'" else letter for letter in event["name"])
            tags[MLFLOW_MODEL_IS_EXTERNAL] = "true"
            with no_retries():
                model = self.client.create_logged_model(self.id, name, kept.id, tags, params, record.start["stage"])
            made = stored_model(model)
            assert made
            self.weights[key] = made
        made = self.weights[key]
        if not made.ready:
            self._finalise(made)
        if parents and made.tags.get("prefdag.parents") != (ids := ",".join(parents)):
            self.client.set_logged_model_tags(made.id, {"prefdag.parents": ids})
            made.tags["prefdag.parents"] = ids
        return made

    def _finalise(self, made: StoredModel) -> None:
        """As `mlflow.create_external_model` does, whose own call would log who replays, not who trained."""
        spec = get_external_mlflow_model_spec(self.client.get_logged_model(made.id))
        with tempfile.TemporaryDirectory() as folder:
            spec.save(str(Path(folder, MLMODEL_FILE_NAME)))  # without it nobody could register the model
            self.client.log_model_artifacts(made.id, folder)
        self.client.finalize_logged_model(made.id, "READY")
        made.ready = True

    def _write_metrics(self, record: Record, kept: StoredRun) -> None:
        points = (self._metrics(record, point) for point in record.ready[kept.num_metrics :])
        for metrics, whole in requests(points, _METRICS, _TIED):
            # MLflow stores a request's tags last: what breaks off before is sent again, and it drops what it has.
            done = [RunTag("prefdag.num_metrics", str(kept.num_metrics + whole))] if whole else []
            self.client.log_batch(kept.id, metrics=metrics, tags=done)
            kept.num_metrics += whole

    def _metrics(self, record: Record, point: Point) -> Iterable[Metric]:
        tie: dict[str, Any] = {}
        subject, data = record.subject, record.evaluation
        if point.measured and subject and (weights := self._known(record, subject)):
            tie["model_id"] = weights.id
            if data:
                tie |= {"dataset_name": data["name"], "dataset_digest": data["digest"][:DIGEST]}
        for name, value in point.values.items():
            yield Metric(allowed(name), value, _milliseconds(point.time), point.step, **tie)

    def _known(self, record: Record, event: dict[str, Any]) -> StoredModel | None:
        assert record.start
        own = self.weights.get((record.start["id"], event["name"], event["sha256"]))
        return own or newest(self.weights.values(), event["sha256"], event["time"])

    def _copy_artifacts(self, record: Record, kept: StoredRun) -> None:
        if kept.artifacts is None:
            folders = {PurePosixPath(event["as"]).parent for event in record.artifacts}
            asked = (self.client.list_artifacts(kept.id, "" if str(one) == "." else str(one)) for one in folders)
            kept.artifacts = {file.path: file.file_size or 0 for files in asked for file in files}
        for event in record.artifacts:
            source, name = self.root / event["path"], PurePosixPath(event["as"])
            if not source.is_file():
                continue
            size = source.stat().st_size
            if kept.artifacts.get(str(name)) == size:  # another size: a copy that broke off
                continue
            if sha256_of(source) == event["sha256"]:  # else a rerun has put its own in the place
                with tempfile.TemporaryDirectory() as folder:
                    copy = shutil.copy2(source, Path(folder, name.name))
                    self.client.log_artifact(kept.id, copy, None if str(name.parent) == "." else str(name.parent))
            kept.artifacts[str(name)] = size

    def _close(self, record: Record, kept: StoredRun) -> None:
        assert record.end
        status = STATUS[record.end["status"]]
        tags = record.closing_tags()
        if (kept.status, kept.closing) == (status, tags):
            return
        for name in kept.closing.keys() - tags.keys():  # it was presumed dead, and was not
            self.client.delete_tag(kept.id, name)
        self.client.log_batch(kept.id, tags=[RunTag(name, value) for name, value in tags.items()])
        self.client.set_terminated(kept.id, status, _milliseconds(record.end["time"]))
        kept.status, kept.closing = status, tags

    def _shown(self, path: str) -> str:
        """A journal's path as people know it: results/<suite>/<path> for what lies in the suite's folder."""
        inside = "://" not in path and not path.startswith("/")
        return f"{self.root.parent.name}/{self.root.name}/{path}" if inside else path


def _all_pages(ask: Callable[[str | None], Any]) -> Iterable[Any]:
    page = None
    while page is None or page.token:
        page = ask(page.token if page else None)
        yield from page


def _parts(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
