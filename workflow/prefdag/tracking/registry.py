"""Register a policy in MLflow's model registry.

Registering is idempotent: the sha256 of the weights identifies a version.
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
    """Make a policy a version of a registered model, and return the version's number.

    Args:
        experiment: The suite's experiment.
        manifest: Manifest of the policy.
        name: Name of the registered model, which is created where missing.
        alias: An alias to move to this version, or None.
        upload: Whether to copy the weights into MLflow's artifact store.

    Raises:
        UserError: The database does not have these weights.
    """
    digest = weights_digest(manifest)
    weights = newest(experiment.weights.values(), digest, float("inf"))
    if weights is None:
        raise UserError(
            f"{manifest.path}: MLflow has no record of these weights (their journal is gone); rerun their stage"
        )
    if upload:
        _upload(experiment.client, weights, manifest)
    version = _version(experiment.client, weights, name, digest)
    if alias:
        experiment.client.set_registered_model_alias(name, alias, version)
    return version


def _version(client: Any, weights: StoredModel, name: str, digest: str) -> str:
    if not any(one.name == name for one in client.search_registered_models(f"name = '{name}'")):
        client.create_registered_model(name, description="Policies of a suite; a version's tags name its weights")
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get("prefdag.sha256") == digest:
            return str(version.version)
    model = client.get_logged_model(weights.id)
    tags = {"prefdag.sha256": digest, "prefdag.path": weights.tags["prefdag.path"]}
    location = model.artifact_location  # models:/<id> would be resolved in this process's default database
    with no_retries():
        version = client.create_model_version(name, location, model.source_run_id, tags, model_id=weights.id)
    return str(version.version)


def _upload(client: Any, weights: StoredModel, manifest: Manifest) -> None:
    """Copy the weights into MLflow's artifact store, except files that are there with their full size."""
    stored = {file.path: file.file_size for file in client.list_logged_model_artifacts(weights.id, "weights")}
    for name in manifest.content["files"]:
        path = Path(name)
        if path.parts[0] == "model" and stored.get(f"weights/{path.name}") != manifest.content["files"][name]["size"]:
            client.log_model_artifact(weights.id, str(manifest.file(name)), "weights")
