"""Values reach MLflow once each and in order, whatever the server does, and training never waits for it."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import Server

from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.tracking import client as mlflow_client
from graftline.tracking import run as run_module
from graftline.tracking.client import connect, request_limit
from graftline.tracking.journal import Journal
from graftline.tracking.outbox import sync
from graftline.tracking.run import Run
from graftline.tracking.tracking import Tracking


def start(tracking: Tracking, directory: Path) -> Run:
    return tracking.start(run_name="first", experiment="pets", directory=directory, tags={})


def history(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def log(run: Run, steps: range) -> None:
    """Log as a training loop does."""
    for step in steps:
        run.log_metrics({"loss": step / 2, "accuracy": step / 1000}, step)
        time.sleep(0.002)  # a training step


@contextmanager
def silent_server(port: int) -> Iterator[None]:
    """Something that accepts connections and never answers."""
    listener = socket.create_server(("127.0.0.1", port))
    accepted = []

    def accept() -> None:
        while True:
            try:
                accepted.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in accepted:
            connection.close()


@pytest.mark.long
def test_a_server_that_is_killed_and_stays_away(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(run_module._END_SECONDS, "FINISHED", 1.0)
    tracking = Tracking(uri=server.uri, system_metrics=False)
    with start(tracking, directory) as run:
        assert run.url is not None
        assert run.url.startswith(f"{server.uri}/#/experiments/")
        run.log_params({"seed": 0}, "seed: 0\n")
        log(run, range(100))
        killer = threading.Timer(0.1, server.kill)  # in the middle of the following
        killer.start()
        log(run, range(100, 400))
        killer.join()
        log(run, range(400, 500))
    unsent = run._outbox.journal.num_unsent
    assert unsent > 100, "what was logged without a server was not waited for"
    output = " ".join(capsys.readouterr().out.split())
    assert "is away (connection refused)" in output
    assert f"{unsent} records of run {run.id} have not reached the tracking server {server.uri}" in output
    assert f"they are in {directory / 'outbox'}, and sync() sends them" in output
    report = sync(directory)  # still away
    assert (report.num_sent, report.num_unsent, report.problem) == (0, unsent, "connection refused")

    server.start()
    assert tracking.find_output_directory(run.id) == directory
    report = sync(directory)
    assert (report.num_sent, report.num_unsent, report.refused, report.problem) == (unsent, 0, (), None)
    client = connect(server.uri)
    assert history(client, run.id, "loss") == [(step, step / 2) for step in range(500)]
    assert history(client, run.id, "accuracy") == [(step, step / 1000) for step in range(500)]
    assert client.get_run(run.id).info.status == "FINISHED"
    assert client.get_run(run.id).data.params == {"seed": "0"}
    assert Path(client.download_artifacts(run.id, "config.yaml", str(directory))).read_text() == "seed: 0\n"
    assert sync(directory).num_sent == 0


@pytest.mark.long
def test_a_server_that_falls_silent_and_comes_back(
    server: Server, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("graftline.tracking.delivery._REQUEST_SECONDS", 1)
    with start(Tracking(uri=server.uri, system_metrics=False), directory) as run:
        log(run, range(100))
        server.kill()
        with silent_server(server.port):
            log(run, range(100, 300))
            assert run._outbox.journal.num_unsent >= 200, "no call waited for an answer"
            assert not run._outbox.wait(1.5)
            while run._outbox.problem != "no answer in time":
                time.sleep(0.01)
            log(run, range(300, 400))
        server.start()
        log(run, range(400, 500))
    client = connect(server.uri)
    assert history(client, run.id, "loss") == [(step, step / 2) for step in range(500)]
    assert client.get_run(run.id).info.status == "FINISHED"
    assert "is back" in capsys.readouterr().out


def test_no_server_at_the_start(directory: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    sentence = rf"tracking server {uri} does not answer \(%s\): start it, or give another Tracking.uri"
    with pytest.raises(UserError, match=sentence % "connection refused"):
        start(Tracking(uri=uri), directory)
    with pytest.raises(UserError, match=sentence % "connection refused"):
        Tracking(uri=uri).check()
    with silent_server(port), pytest.raises(UserError, match=sentence % "no answer in time"):
        start(Tracking(uri=uri), directory)
    assert mlflow_client.START_SECONDS < 10
    assert list(directory.iterdir()) == []


def test_a_name_server_that_is_silent(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_client, "START_SECONDS", 0.3)
    monkeypatch.setattr(mlflow_client, "connect", lambda _: time.sleep(3))
    with pytest.raises(UserError, match="no answer in time"):
        start(Tracking(uri="http://somewhere:5000"), directory)


def test_sending_twice_doubles_nothing(
    tracking: Tracking, client: MlflowClient, directory: Path, version: DatasetVersion
) -> None:
    with start(tracking, directory) as run:
        run.log_params({"seed": 0}, "seed: 0\n")
        log(run, range(20))
        run.log_metrics({"odd": float("nan"), "infinite": float("inf")}, 0)
        run.log_dataset(version)
        run.set_tags({"a": "b"})
        run.log_environment()

    def everything() -> tuple[object, ...]:
        logged = client.get_run(run.id)
        rows = {key: repr(history(client, run.id, key)) for key in logged.data.metrics}
        assert logged.inputs is not None
        inputs = [(item.dataset.name, item.dataset.digest, len(item.tags)) for item in logged.inputs.dataset_inputs]
        artifacts = [item.path for item in client.list_artifacts(run.id)]
        return rows, logged.data.params, logged.data.tags, inputs, artifacts, logged.info.status, logged.info.end_time

    once = everything()
    (directory / "outbox" / "sent").unlink()  # as if every answer of the server had been lost
    report = sync(directory)
    assert report.num_sent > 20
    assert report.problem is None
    assert report.refused == ()
    assert everything() == once


def test_another_run_in_the_same_directory(tracking: Tracking, client: MlflowClient, directory: Path) -> None:
    first = start(tracking, directory)
    first.log_metrics({"loss": 1.0}, 0)
    with pytest.raises(UserError, match="still going"):
        start(tracking, directory)
    first.finish()
    (directory / "outbox" / "sent").unlink()  # as if nothing had been sent
    with start(tracking, directory) as second:
        second.log_metrics({"loss": 2.0}, 0)
    assert history(client, first.id, "loss") == [(0, 1.0)]
    assert history(client, second.id, "loss") == [(0, 2.0)]
    (experiment,) = client.search_experiments(filter_string="name = 'pets'")
    assert len(client.search_runs([experiment.experiment_id])) == 2  # the refused start has left none


def test_the_journal_survives_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append({"kind": "tags", "values": {"a": "1"}})
    journal.append({"kind": "tags", "values": {"a": "2"}})
    journal.mark_sent(journal.unsent()[0])
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"kind": "tags", "val')  # a power cut
    journal = Journal(tmp_path)
    assert (journal.total, journal.num_sent) == (2, 1)
    assert journal.append({"kind": "tags", "values": {"a": "3"}}) == 2
    assert [(entry.number, entry.record["values"]["a"]) for entry in journal.unsent()] == [(1, "2"), (2, "3")]
    with pytest.raises(UserError, match="still going"):
        Journal(tmp_path)
    journal.close()


def test_a_long_journal_is_read_in_parts(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(300):
        journal.append({"number": number, "text": "x" * 3000})
    seen: list[int] = []
    while entries := journal.unsent():
        assert len(json.dumps([entry.record for entry in entries])) < 300_000
        seen += [entry.record["number"] for entry in entries]
        journal.mark_sent(entries[-1])
    assert seen == list(range(300))
    journal.close()


def test_request_limits_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with request_limit(5):
        with request_limit(7.6):
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "8"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
