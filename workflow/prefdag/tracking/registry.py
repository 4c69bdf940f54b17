"""A chosen policy in MLflow's model registry, under an alias; its weights uploaded only where that is asked for.

Asked for twice is done once: a version is known by the sha256 of its weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdag.errors import UserError
from prefdag.provenance.manifest import Manifest, weights_digest
from prefdag.tracking.environment import no_retries
from prefdag.tracking.records import StoredModel, newest

if TYPE_CHECKING:
    from prefdag.tracking.mlflow_client import Experiment


def register(experiment: "Experiment", manifest: Manifest, name: str, alias: str | None, upload: bool) -> str:
    """Make the policy a version of the registered model `name`; returns the version's number.

    Raises `UserError` when the database does not know these weights.
    """
    digest = weights_digest(manifest)
    weights = newest(experiment.weights.values(), digest, float("inf"))
    if weights is None:
        raise UserError(f"{manifest.path}: MLflow does not know these weights; their journal is not there any more")
    if upload:
        _upload(experiment.client, weights, manifest)
    version = _version(experiment.client, weights, name, digest)
    if alias:
        experiment.client.set_registered_model_alias(name, alias, version)
    return version


def _version(client: Any, weights: StoredModel, name: str, digest: str) -> str:
    known = [one.name for one in client.search_registered_models(f"name = '{name}'")]
    if name not in known:
        client.create_registered_model(name, description="Policies of a suite; a version's tags name its weights")
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("prefdag.sha256") == digest:
            return str(version.version)
    model = client.get_logged_model(weights.id)
    tags = {"prefdag.sha256": digest, "prefdag.path": weights.tags["prefdag.path"]}
    place = model.artifact_location  # models:/<id> would be looked up in whatever database this process is set to
    with no_retries():
        made = client.create_model_version(name, place, model.source_run_id, tags, model_id=weights.id)
    return str(made.version)


def _upload(client: Any, weights: StoredModel, manifest: Manifest) -> None:
    """Copy the weights into MLflow's own store, file by file; those that are there whole are not sent again."""
    there = {file.path: file.file_size for file in client.list_logged_model_artifacts(weights.id, "weights")}
    for name in manifest.content["files"]:
        path = Path(name)
        if path.parts[0] == "model" and there.get(f"weights/{path.name}") != manifest.content["files"][name]["size"]:
            client.log_model_artifact(weights.id, str(manifest.file(name)), "weights")
