"""The MLflow experiment of a suite, with one run for each journal; which `tracking.results` completes.

Everything written has the event's own time and the journal's id. A write first reads what the database holds and then
adds what is missing, so writing is idempotent and an interrupted write can be continued.
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
from prefdag.tracking.links import KIND, describe_experiment, describe_run
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

# Limits of one request. MLflow takes 1,000 metrics, but of a repeated request it recognises only the first hundred
# metrics of a model.
_METRICS, _LINKED_METRICS, _PARAMS = 900, 100, 100


class Experiment:
    """The experiment named like the suite's folder, in the database at `uri`; both are created where missing.

    Artifacts go to `mlartifacts/<suite>` next to the database, or where a tracking server stores them.
    """

    def __init__(self, uri: str, root: Path) -> None:
        for name in ("alembic", "mlflow"):  # MLflow logs every table that it creates
            logging.getLogger(name).setLevel(logging.WARNING)
        self.root = root
        self.client = MlflowClient(uri)
        self.id = self._find(uri)
        describe_experiment(self.client, self.id)
        self.runs = self._one_run_each()
        self.weights = self._one_model_each()

    def write(self, record: Record) -> None:
        """Add to the database what it lacks of a journal that has a start event."""
        stored = self._run(record)
        if stored.deleted:  # a user deleted it in the UI
            return
        self._write_params(record, stored)
        self._write_datasets(record, stored)
        self._write_models(record, stored)
        self._write_metrics(record, stored)
        if record.end:
            self._copy_artifacts(record, stored)
            self._close(record, stored)

    def mark_superseded(self) -> None:
        """Tag every run whose job was rerun with the journal of the next run."""
        for old, new in successors((stored.name, stored.began, key) for key, stored in self.runs.items()).items():
            stored = self.runs[old]
            if stored.superseded != new and not stored.deleted:
                self.client.set_tag(stored.id, "prefdag.superseded", new)
                stored.superseded = new

    def describe(self, record: Record) -> None:
        """Link, on an ended run's page, the runs that made its inputs; they must have been written before.

        A running job may still name data and weights that it reads.
        """
        stored = self._run(record)
        if record.end and not (stored.described or stored.deleted):
            describe_run(self.client, self.id, stored.id, record, self.runs.values())
            stored.described = True

    def newest_runs(self) -> dict[str, str]:
        """Map each job's name to MLflow's id of its newest run; deleted runs do not count."""
        ordered = sorted(self.runs.values(), key=attrgetter("began"))
        return {stored.name: stored.id for stored in ordered if not stored.deleted}

    def _find(self, uri: str) -> str:
        experiment = self.client.get_experiment_by_name(self.root.name)
        if experiment is None:
            served = uri.startswith(("http:", "https:", "databricks"))
            artifacts = None if served else (self.root.parent / "mlartifacts" / self.root.name).as_uri()
            return self.client.create_experiment(self.root.name, artifacts, dict([KIND]))
        if experiment.lifecycle_stage != "active":
            self.client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def _one_run_each(self) -> dict[str, StoredRun]:
        """Return the run of each journal; delete duplicates, which a request whose answer was lost may have made."""
        runs: dict[str, list[StoredRun]] = {}
        for key, stored in map(stored_run, self._all_runs()):
            if key:
                runs.setdefault(key, []).append(stored)
        for same in runs.values():
            same.sort(key=attrgetter("emptiness"))
            for duplicate in same[1:]:
                if not duplicate.deleted:
                    self.client.delete_run(duplicate.id)
        return {key: same[0] for key, same in runs.items()}

    def _one_model_each(self) -> dict[tuple[str, str, str], StoredModel]:
        """Return the model of each weights; delete duplicates."""
        models: dict[tuple[str, str, str], StoredModel] = {}
        for one in sorted(filter(None, map(stored_model, self._all_models())), key=lambda one: (not one.ready, one.id)):
            if models.setdefault(one.key, one) is not one:
                self.client.delete_logged_model(one.id)
        return models

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

    def _write_params(self, record: Record, stored: StoredRun) -> None:
        missing = [Param(key, value) for key, value in record.params().items() if key not in stored.params]
        for part in _parts(missing, _PARAMS):
            self.client.log_batch(stored.id, params=part)
        stored.params |= {param.key for param in missing}

    def _write_datasets(self, record: Record, stored: StoredRun) -> None:
        missing = []
        for event in record.datasets:
            key = event["name"], event["digest"][:DIGEST]
            if key not in stored.datasets:
                source, profile = json.dumps({"uri": self._shown(event["path"])}), json.dumps(event["profile"])
                dataset = Dataset(*key, source_type="local", source=source, profile=profile)
                tags = {MLFLOW_DATASET_CONTEXT: event["context"], "prefdag.digest": event["digest"]}
                missing.append(DatasetInput(dataset, [InputTag(name, value) for name, value in tags.items()]))
                stored.datasets.add(key)
        if missing:
            self.client.log_inputs(stored.id, datasets=missing)

    def _write_models(self, record: Record, stored: StoredRun) -> None:
        """Record outputs as external models, and link inputs and parents to the models that earlier runs made."""
        read = []
        for event in record.models:
            if event["role"] == "input":
                read += [newest(self.weights.values(), event["sha256"], event["time"])]
                continue
            parents = [newest(self.weights.values(), sha256, event["time"]) for sha256 in event["parents"]]
            model = self._output(record, stored, event, [parent.id for parent in parents if parent])
            if model.id not in stored.outputs:
                self.client.log_outputs(stored.id, [LoggedModelOutput(model.id, step=0)])
                stored.outputs.add(model.id)
            read += parents
        ids = {one.id for one in read if one} - stored.outputs
        if ids and stored.inputs is None:  # a search of runs does not return them
            inputs = self.client.get_run(stored.id).inputs
            stored.inputs = {one.model_id for one in inputs.model_inputs} if inputs else set()
        if missing := sorted(ids - (stored.inputs or set())):
            self.client.log_inputs(stored.id, models=[LoggedModelInput(one) for one in missing])
            stored.inputs = (stored.inputs or set()) | ids

    def _output(self, record: Record, stored: StoredRun, event: dict[str, Any], parents: Sequence[str]) -> StoredModel:
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
                model = self.client.create_logged_model(self.id, name, stored.id, tags, params, record.start["stage"])
            created = stored_model(model)
            assert created
            self.weights[key] = created
        weights = self.weights[key]
        if not weights.ready:
            self._finalise(weights)
        if parents and weights.tags.get("prefdag.parents") != (ids := ",".join(parents)):
            self.client.set_logged_model_tags(weights.id, {"prefdag.parents": ids})
            weights.tags["prefdag.parents"] = ids
        return weights

    def _finalise(self, weights: StoredModel) -> None:
        """Do what `mlflow.create_external_model` does, without logging this process as the one that trained."""
        spec = get_external_mlflow_model_spec(self.client.get_logged_model(weights.id))
        with tempfile.TemporaryDirectory() as folder:
            spec.save(str(Path(folder, MLMODEL_FILE_NAME)))  # the model registry needs this file
            self.client.log_model_artifacts(weights.id, folder)
        self.client.finalize_logged_model(weights.id, "READY")
        weights.ready = True

    def _write_metrics(self, record: Record, stored: StoredRun) -> None:
        points = (self._metrics(record, point) for point in record.ready[stored.num_metrics :])
        for metrics, complete in requests(points, _METRICS, _LINKED_METRICS):
            # MLflow stores a request's tags last: a request that failed midway is repeated, and MLflow ignores the
            # metrics that it has.
            tags = [RunTag("prefdag.num_metrics", str(stored.num_metrics + complete))] if complete else []
            self.client.log_batch(stored.id, metrics=metrics, tags=tags)
            stored.num_metrics += complete

    def _metrics(self, record: Record, point: Point) -> Iterable[Metric]:
        links: dict[str, Any] = {}
        measured_weights, data = record.measured_weights, record.evaluation
        if point.measured and measured_weights and (weights := self._find_weights(record, measured_weights)):
            links["model_id"] = weights.id
            if data:
                links |= {"dataset_name": data["name"], "dataset_digest": data["digest"][:DIGEST]}
        for name, value in point.values.items():
            yield Metric(allowed(name), value, _milliseconds(point.time), point.step, **links)

    def _find_weights(self, record: Record, event: dict[str, Any]) -> StoredModel | None:
        assert record.start
        output = self.weights.get((record.start["id"], event["name"], event["sha256"]))
        return output or newest(self.weights.values(), event["sha256"], event["time"])

    def _copy_artifacts(self, record: Record, stored: StoredRun) -> None:
        if stored.artifacts is None:
            folders = {PurePosixPath(event["as"]).parent for event in record.artifacts}
            listings = (self.client.list_artifacts(stored.id, "" if str(one) == "." else str(one)) for one in folders)
            stored.artifacts = {file.path: file.file_size or 0 for files in listings for file in files}
        for event in record.artifacts:
            source, name = self.root / event["path"], PurePosixPath(event["as"])
            if not source.is_file():
                continue
            size = source.stat().st_size
            if stored.artifacts.get(str(name)) == size:  # another size: an interrupted copy
                continue
            if sha256_of(source) == event["sha256"]:  # else a rerun has replaced the file
                with tempfile.TemporaryDirectory() as folder:
                    copy = shutil.copy2(source, Path(folder, name.name))
                    self.client.log_artifact(stored.id, copy, None if str(name.parent) == "." else str(name.parent))
            stored.artifacts[str(name)] = size

    def _close(self, record: Record, stored: StoredRun) -> None:
        assert record.end
        status = STATUS[record.end["status"]]
        tags = record.end_tags()
        if (stored.status, stored.end_tags) == (status, tags):
            return
        for name in stored.end_tags.keys() - tags.keys():  # it was taken for killed, and was not
            self.client.delete_tag(stored.id, name)
        self.client.log_batch(stored.id, tags=[RunTag(name, value) for name, value in tags.items()])
        self.client.set_terminated(stored.id, status, _milliseconds(record.end["time"]))
        stored.status, stored.end_tags = status, tags

    def _shown(self, path: str) -> str:
        """Return a journal's path as a user writes it: results/<suite>/<path> inside the suite's folder."""
        inside = "://" not in path and not path.startswith("/")
        return f"{self.root.parent.name}/{self.root.name}/{path}" if inside else path


def _all_pages(request: Callable[[str | None], Any]) -> Iterable[Any]:
    page = None
    while page is None or page.token:
        page = request(page.token if page else None)
        yield from page


def _parts(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
