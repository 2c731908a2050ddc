"""The tracking server's command in docker/compose.yaml, run outside a container on a real PostgreSQL."""

import io
import json
from pathlib import Path

from mlflow.artifacts import download_artifacts
from PIL import Image

from graftline.tracking.client import connect
from graftline.tracking.tracking import Tracking


def test_a_run_and_a_registered_model(server: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text(json.dumps({"timm_name": "test_efficientnet", "class_names": ["cat", "dog"]}))
    photo = io.BytesIO()
    Image.new("RGB", (8, 8)).save(photo, "PNG")

    tracking = Tracking(uri=server)
    with tracking.start(run_name="first", experiment="pets", directory=tmp_path / "run", tags={"a": "b"}) as run:
        run.log_params({"seed": 0, "long": "x" * 6000}, "seed: 0\n")
        for step in range(1500):
            run.log_metrics({"loss": step / 2, "odd": float("nan")}, step)
        run.log_environment()
        run.set_tags({"first": "1", "not text": "\0", "last": "2"})
        uri = run.log_model(
            bundle, registered_name="pets", input_example=photo.getvalue(), metrics={"test/accuracy": 0.5}
        )
    assert run._outbox.journal.num_unsent == 0
    (refused,) = run._outbox.delivery.refused  # all but one have arrived
    assert refused.startswith("tag not text: ")
    client = connect(server)
    logged = client.get_run(run.id)
    assert logged.info.status == "FINISHED"
    assert (logged.data.tags["first"], logged.data.tags["last"]) == ("1", "2")
    assert logged.data.params == {"seed": "0", "long": "x" * 6000}
    assert [metric.value for metric in client.get_metric_history(run.id, "loss")] == [step / 2 for step in range(1500)]
    assert "system/cpu_utilization_percentage" in logged.data.metrics
    assert logged.info.artifact_uri is not None
    assert logged.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert {item.path for item in client.list_artifacts(run.id)} == {"config.yaml", "requirements"}
    assert uri == "models:/pets/1"
    version = client.get_model_version("pets", "1")
    assert version.run_id == run.id
    source = client.get_model_version_download_uri("pets", "1")
    files = Path(download_artifacts(source, dst_path=str(tmp_path / "model"), tracking_uri=server))
    assert (files / "artifacts" / "bundle" / "bundle.json").read_bytes() == (bundle / "bundle.json").read_bytes()
