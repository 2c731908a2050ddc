"""Send a model to MLflow: as a LoggedModel of the run and, if wanted, as a version in the registry; or remove it.

Unlike all else that is sent, MLflow would make a second one if asked twice. So each step first looks whether it is done
already, by a tag that names run and bundle; the server alone remembers, and a crash between two steps does no harm.

Fields of a "model" record:

    path             the saved MLflow model, relative to the output directory
    name             of the LoggedModel
    registered_name  in the registry, or null
    tags             {key: str}, of the registered version
    description      of the registered version, one sentence
    metrics          [[key, value, at (ms since 1970), step], ...]
"""

import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from graftline.tracking.client import known_run
from graftline.tracking.journal import Record
from graftline.tracking.names import CHAMPION, PARENT_VERSION

MAX_METRICS = 1000  # per request (mlflow.utils.validation.MAX_METRICS_PER_BATCH)

_IDENTITY = "graftline.record"
_VERSIONS = "mlflow.modelVersions"  # MLflow's own link from a LoggedModel to its registered versions


def send(client: MlflowClient, run_id: str, directory: Path, record: Record, *, identity: str) -> str:
    """Log and register a model, leaving out what is done already.

    Returns:
        ``models:/NAME/VERSION``, or ``models:/ID`` when it is not registered.
    """
    run = client.get_run(run_id)
    model = _logged_model(client, run.info.experiment_id, run_id, record["name"], identity)
    if run.outputs is None or model.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    if model.status != LoggedModelStatus.READY:
        _upload(client, run_id, model, directory / record["path"])
    metrics = [
        Metric(key, value, at, step, model_id=model.model_id, run_id=run_id)
        for key, value, at, step in record["metrics"]
    ]
    for start in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS], synchronous=True)
    if record["registered_name"] is None:
        return f"models:/{model.model_id}"
    version = _registered_version(client, run_id, model, record, identity)
    return f"models:/{version.name}/{version.version}"


def files_digest(model: LoggedModel) -> str:
    """Return the digest of a bundle's files, as it was logged with the model that `send` has made of it."""
    return str(model.tags[_IDENTITY]).rpartition("-")[2]


def size(client: MlflowClient, version: ModelVersion) -> int:
    """Return the bytes of a registered version's files, 0 where they are not those of a model that was sent."""
    model = _model_of(client, version)
    return 0 if model is None else _bytes(client, model.model_id)


def _bytes(client: MlflowClient, model_id: str, path: str | None = None) -> int:
    files = client.list_logged_model_artifacts(model_id, path)
    return sum(_bytes(client, model_id, file.path) if file.is_dir else int(file.file_size or 0) for file in files)


def remove(client: MlflowClient, version: ModelVersion) -> None:
    """Remove a registered version, its LoggedModel and their files, unless another version is of the same run.

    The version goes first, so that no alias can be set to one that has no files.
    """
    model = _model_of(client, version)
    client.delete_model_version(version.name, str(version.version))
    if model is None or client.search_model_versions(f"run_id = '{version.run_id}'"):
        return
    files = get_artifact_repository(model.artifact_location, tracking_uri=client.tracking_uri)
    files.delete_artifacts()  # type: ignore[no-untyped-call]  # as MLflow has it
    client.delete_logged_model(model.model_id)


def _model_of(client: MlflowClient, version: ModelVersion) -> LoggedModel | None:
    """Return the LoggedModel that a registered version was made from by `send`."""
    run = known_run(client, version.run_id) if version.run_id and _IDENTITY in version.tags else None
    if run is None:
        return None
    same = f"tags.`{_IDENTITY}` = '{version.tags[_IDENTITY]}'"
    found = client.search_logged_models([run.info.experiment_id], filter_string=same)
    return next((model for model in found if model.artifact_location == version.source), None)


def _logged_model(client: MlflowClient, experiment_id: str, run_id: str, name: str, identity: str) -> LoggedModel:
    found = client.search_logged_models([experiment_id], filter_string=f"tags.`{_IDENTITY}` = '{identity}'")
    if found:
        return found[0]
    return client.create_logged_model(
        experiment_id, name, run_id, tags={_IDENTITY: identity}, model_type="image-classifier"
    )


def _upload(client: MlflowClient, run_id: str, model: LoggedModel, path: Path) -> None:
    description = Model.load(str(path))
    description.run_id = run_id
    description.model_id = description.model_uuid = model.model_id
    description.artifact_path = model.artifact_location
    description.save(str(path / "MLmodel"))
    client.log_model_artifacts(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _registered_version(
    client: MlflowClient, run_id: str, model: LoggedModel, record: Record, identity: str
) -> ModelVersion:
    name = record["registered_name"]
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    version = next((version for version in versions if version.tags.get(_IDENTITY) == identity), None)
    if version is None:
        parent = client.get_registered_model(name).aliases.get(CHAMPION)
        version = client.create_model_version(
            name,
            # not "models:/ID": on a database without a server MLflow would look that up at its global tracking URI
            source=model.artifact_location,
            run_id=run_id,
            model_id=model.model_id,
            tags={**({} if parent is None else {PARENT_VERSION: str(parent)}), **record["tags"], _IDENTITY: identity},
            description=record["description"],
            await_creation_for=0,
        )
    if _VERSIONS not in client.get_logged_model(model.model_id).tags:  # a server has set it, a database has not
        link = [{"name": name, "version": version.version}]
        client.set_logged_model_tags(model.model_id, {_VERSIONS: json.dumps(link)})
    return version
