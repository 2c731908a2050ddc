"""A bundle becomes a LoggedModel and a registered version, once."""

import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.models import Model

from graftline.data.version import DatasetVersion
from graftline.files import digest_directory
from graftline.tracking import run as run_module
from graftline.tracking.environment import git_state
from graftline.tracking.outbox import sync
from graftline.tracking.run import Run
from graftline.tracking.tracking import Tracking


def start(tracking: Tracking, directory: Path) -> Run:
    return tracking.start(run_name="first", experiment="pets", directory=directory, tags={})


def test_a_model_is_logged_and_registered(
    tracking: Tracking, client: MlflowClient, directory: Path, version: DatasetVersion, bundle: Path, photo: bytes
) -> None:
    metrics = {"test/accuracy": 0.875, "test/precision/C++": 0.5}
    with start(tracking, directory) as run:
        run.log_dataset(version)
        run.log_environment()
        run.log_metrics({**metrics, "train/loss": 1.0}, 3)
        time.sleep(0.01)  # the metrics' time must not be that of the model
        tags = {"graftline.test_digest": "0123456789abcdef"}
        uri = run.log_model(bundle, registered_name="pets: a/b", input_example=photo, metrics=metrics, tags=tags)
    assert uri == "models:/pets-a-b/1"
    registered = client.get_model_version("pets-a-b", "1")
    assert registered.run_id == run.id
    assert registered.description == (
        f"test_efficientnet with 2 classes, trained by run {run.id}, test accuracy 0.875."
    )
    assert {
        "graftline.run_id": run.id,
        "graftline.dataset_digest": version.digest,
        "graftline.bundle_files": digest_directory(bundle),
        "graftline.test_digest": "0123456789abcdef",
        "mlflow.source.git.commit": git_state()[0],
    }.items() <= registered.tags.items()

    outputs = client.get_run(run.id).outputs
    assert outputs is not None
    (output,) = outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.status, model.source_run_id, model.model_type) == ("READY", run.id, "image-classifier")
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "pets-a-b", "version": 1}]
    assert model.metrics is not None
    assert sorted(metric.value for metric in model.metrics) == [0.5, 0.875]
    assert [metric.value for metric in client.get_metric_history(run.id, "test/accuracy")] == [
        0.875
    ]  # not a second time

    files = Path(client.get_model_version_download_uri("pets-a-b", "1").removeprefix("file://"))
    description = Model.load(str(files))
    assert (description.model_id, description.run_id) == (model.model_id, run.id)
    names = {str(path.relative_to(files)) for path in files.rglob("*")}
    assert {"MLmodel", "model.py", "artifacts/bundle/model.onnx", "code/graftline/serving/answers.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pyc"))]
    requirements = {line.partition("==")[0] for line in (files / "requirements.txt").read_text().splitlines()}
    assert requirements == {"mlflow", "numpy", "onnxruntime", "pandas", "pillow"}
    assert (files / "input_example.json").stat().st_size < 200_000
    assert not (directory / "outbox" / "models").exists()  # sent


def test_each_model_gets_a_version_and_the_same_one_no_second(
    tracking: Tracking, client: MlflowClient, directory: Path, bundle: Path, photo: bytes
) -> None:
    with start(tracking, directory) as run:
        uris = [run.log_model(bundle, registered_name="pets", input_example=photo, metrics={})]
        (bundle / "model.onnx").write_bytes(b"better" * 1000)
        uris += [run.log_model(bundle, registered_name="pets", input_example=photo, metrics={}) for _ in range(2)]
        unregistered = run.log_model(bundle, registered_name=None, input_example=photo, metrics={})
    assert uris == ["models:/pets/1", "models:/pets/2", "models:/pets/2"], "a resumed run may log its model again"
    assert unregistered is not None
    assert unregistered.startswith("models:/m-")
    never = Tracking(uri=tracking.uri, register=False, system_metrics=False)
    with start(never, directory / "2") as run:
        uri = run.log_model(bundle, registered_name="pets", input_example=photo, metrics={})
    assert uri is not None
    assert uri.startswith("models:/m-")
    assert len(client.search_model_versions("name = 'pets'")) == 2


@pytest.mark.parametrize(
    "lost_after", ["create_logged_model", "log_outputs", "log_model_artifacts", "create_model_version"]
)
def test_a_lost_answer_makes_no_second_model(
    tracking: Tracking,
    client: MlflowClient,
    directory: Path,
    bundle: Path,
    photo: bytes,
    lost_after: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = getattr(MlflowClient, lost_after)

    def lose_the_first_answer(*arguments: object, **keywords: object) -> object:
        call(*arguments, **keywords)
        monkeypatch.setattr(MlflowClient, lost_after, call)
        raise ConnectionError("lost")

    monkeypatch.setattr(MlflowClient, lost_after, lose_the_first_answer)
    with start(tracking, directory) as run:
        uri = run.log_model(bundle, registered_name="pets", input_example=photo, metrics={"accuracy": 0.5})
    assert uri == "models:/pets/1"
    assert getattr(MlflowClient, lost_after) is call, "the answer was not lost"
    (directory / "outbox" / "sent").unlink()
    assert sync(directory).problem is None
    assert len(client.search_model_versions("name = 'pets'")) == 1
    logged = client.get_run(run.id)
    assert len(client.search_logged_models([logged.info.experiment_id])) == 1
    assert logged.outputs is not None
    assert len(logged.outputs.model_outputs) == 1
    assert len(client.get_metric_history(run.id, "accuracy")) == 1


def test_a_model_waits_for_the_server(
    tracking: Tracking,
    client: MlflowClient,
    directory: Path,
    bundle: Path,
    photo: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_module, "_MODEL_SECONDS", 0.1)
    monkeypatch.setitem(run_module._END_SECONDS, "FINISHED", 0.1)
    database = Path(tracking.uri.removeprefix("sqlite:///"))
    with start(tracking, directory) as run:
        assert run._outbox.wait(30)
        content = database.read_bytes()
        database.write_bytes(b"x" * 100)  # a database that is out of order
        assert run.log_model(bundle, registered_name="pets", input_example=photo, metrics={}) is None
    assert f"records of run {run.id} have not reached the tracking database" in capsys.readouterr().out
    (bundle / "model.onnx").unlink()  # the outbox has its own copy
    database.write_bytes(content)
    assert sync(directory).problem is None
    assert len(client.search_model_versions("name = 'pets'")) == 1
    assert client.get_run(run.id).info.status == "FINISHED"
