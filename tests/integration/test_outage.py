"""A tracking server that dies in the middle of a training, and is there again after a minute."""

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tracking_server import ADMIN, PASSWORD, TrackingServer
from workplace import TINY, Workplace

from graftline.tracking.client import connect

AWAY_SECONDS = 60
EPOCHS = 400
LOSS = "val/loss"


def find_run(client: MlflowClient) -> Run | None:
    """Return the run of the training once it has told a loss."""
    found = client.search_experiments(filter_string="name = 'colors-away'")
    runs = client.search_runs([one.experiment_id for one in found]) if found else []
    return next((run for run in runs if LOSS in run.data.metrics), None)


def test_a_server_that_is_killed_in_the_middle_of_a_training_loses_nothing(
    postgres: int, color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TrackingServer.on(postgres, tmp_path)
    for name, value in (("URI", server.url), ("USERNAME", ADMIN), ("PASSWORD", PASSWORD)):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    (tmp_path / "colors-away").symlink_to(color_folder)
    (tmp_path / "place").mkdir()
    place, client = Workplace(tmp_path / "place"), connect(server.url)
    typed = ["tracking=server", "data=folder", "data.path=../colors-away", f"trainer.max_epochs={EPOCHS}"]
    with server.running():
        training = place.start("train", *TINY, "train.patience=null", *typed)
        while (run := find_run(client)) is None:
            assert training.code is None, training.output
            time.sleep(0.2)
    time.sleep(AWAY_SECONDS)  # it was killed
    with server.running():
        assert training.wait(600) == 0, training.output
        assert "is away (connection refused): values are kept on disk" in training.output
        if "have not reached the tracking server" in training.output:  # it was at its end first
            assert (sent := place.run("sync", "tracking=server", f"run_id={run.info.run_id}")).code == 0, sent.output
        told = client.get_run(run.info.run_id)
        assert told.info.status == "FINISHED"
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, LOSS)]
        assert len(set(steps)) == len(steps) == EPOCHS
        assert "report.html" in {item.path for item in client.list_artifacts(run.info.run_id)}
        (version,) = client.search_model_versions("name = 'colors-away'")
        assert version.run_id == run.info.run_id
