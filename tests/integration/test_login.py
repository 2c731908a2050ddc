"""A tracking server with a login, on PostgreSQL, as it fails in life: one clear sentence, and nothing is lost."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from mlflow import MlflowClient
from network import Line
from tracking_server import ADMIN, DATABASE_PASSWORD, PASSWORD, TrackingServer
from workplace import TINY, Workplace

from graftline.errors import UserError
from graftline.pipeline.health.server import check_tracking
from graftline.tracking.client import connect
from graftline.tracking.outbox import sync
from graftline.tracking.run import Run
from graftline.tracking.tracking import Tracking

BOB, BOBS_PASSWORD = "bob", "bob has twelve or more"


def start(url: str, directory: Path, experiment: str) -> Run:
    tracking = Tracking(uri=url, system_metrics=False)
    return tracking.start(run_name="run", experiment=experiment, directory=directory, tags={})


def values(client: MlflowClient, run: Run) -> list[float]:
    return [metric.value for metric in client.get_metric_history(run.id, "loss")]


@pytest.mark.parametrize(
    ("user", "password", "words"),
    [
        (None, None, "wants a login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write both"),
        (ADMIN, "wrong password", "does not take the login of 'admin'"),
        ("nobody", PASSWORD, "does not take the login of 'nobody'"),
    ],
)
def test_a_wrong_login(
    server: str, user: str | None, password: str | None, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("USERNAME", user), ("PASSWORD", password)):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
        if value is not None:
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    began = time.monotonic()
    for ask in (Tracking(uri=server).check, lambda: start(server, tmp_path, "pets")):
        with pytest.raises(UserError) as caught:
            ask()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert password is None or password not in str(caught.value)
    assert time.monotonic() - began < 60
    assert not list(tmp_path.iterdir())


@pytest.fixture
def as_bob(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what we do another user's, who may read."""
    login = {"username": BOB, "password": BOBS_PASSWORD}
    requests.post(f"{server}/api/2.0/mlflow/users/create", json=login, auth=(ADMIN, PASSWORD), timeout=60)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", BOB)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", BOBS_PASSWORD)


def by_admin(method: str, url: str, **content: str) -> None:
    answer = requests.request(method, url, json=content, auth=(ADMIN, PASSWORD), timeout=60)
    answer.raise_for_status()


def test_no_right_to_an_experiment(server: str, as_bob: None, tmp_path: Path) -> None:
    by_admin("POST", f"{server}/api/2.0/mlflow/experiments/create", name="of admin")
    with pytest.raises(UserError, match=r"does not allow this to 'bob'.*ask its administrator"):
        start(server, tmp_path, "of admin")
    with start(server, tmp_path, "of bob") as run:
        run.log_metrics({"loss": 1.0}, 0)
    assert values(connect(server), run) == [1.0]


def test_no_right_to_a_model_loses_nothing(
    server: str,
    as_bob: None,
    tmp_path: Path,
    color_folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model waits on disk until an administrator has given the right, then `make sync` sends it."""
    monkeypatch.setattr("graftline.tracking.run._MODEL_SECONDS", 3.0)
    monkeypatch.setattr("graftline.tracking.run._END_SECONDS", {"FINISHED": 1.0})
    by_admin("POST", f"{server}/api/2.0/mlflow/registered-models/create", name="of-admin")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "bundle.json").write_text(json.dumps({"timm_name": "test_efficientnet", "class_names": ["a", "b"]}))
    photo = next(color_folder.rglob("*.png")).read_bytes()
    with start(server, tmp_path / "run", "of bob") as run:
        assert run.log_model(bundle, registered_name="of-admin", input_example=photo, metrics={}) is None
        run.log_metrics({"loss": 2.0}, 0)
    told = "\n".join(caplog.messages)
    assert "lets us write nothing (no permission): values are kept on disk" in told
    assert "3 records of run" in told
    right = {"username": BOB, "resource_type": "registered_model", "resource_id": "of-admin", "permission": "EDIT"}
    by_admin("POST", f"{server}/api/3.0/mlflow/users/permissions/grant", **right)
    assert sync(tmp_path / "run").problem is None
    client = connect(server)
    assert [version.run_id for version in client.search_model_versions("name='of-admin'")] == [run.id]
    assert values(client, run) == [2.0]


def test_a_server_that_is_down_at_the_start(server: str, tmp_path: Path) -> None:
    with Line(server) as line:
        line.cut()
        began = time.monotonic()
        with pytest.raises(UserError, match=r"does not answer \(connection refused\): start it, or give another"):
            start(line.url, tmp_path, "pets")
    assert time.monotonic() - began < 15
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_away_for_a_while(server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with Line(server) as line, start(line.url, tmp_path, "pets") as run:
        run.log_metrics({"loss": 0.0}, 0)
        assert run._outbox.wait(60)
        line.cut()
        for step in range(1, 300):
            run.log_metrics({"loss": float(step)}, step)
            time.sleep(0.01)
        (tmp_path / "note.txt").write_text("kept")
        run.log_artifact(tmp_path / "note.txt")
        line.mend()
        assert run._outbox.wait(60)
    assert values(connect(server), run) == [float(step) for step in range(300)]
    assert "note.txt" in {item.path for item in connect(server).list_artifacts(run.id)}
    assert connect(server).get_run(run.id).info.status == "FINISHED"
    told = "\n".join(caplog.messages)
    assert "is away (connection refused): values are kept on disk and sent when it is back." in told
    assert "is back." in told


@pytest.fixture
def full_disk(tracking_server: TrackingServer) -> Iterator[list[int]]:
    """The server cannot write files of more than 100 KB until the list of its processes is emptied by `make_room`."""
    port, processes = str(tracking_server.port), psutil.process_iter(["cmdline"])  # None of one that is ending
    ours = [one for one in processes if port in " ".join(one.info["cmdline"] or ())]
    pids = {child.pid for one in ours for child in (one, *one.children(recursive=True))}
    limit_files(pids, "100000:unlimited")
    yield sorted(pids)
    limit_files(pids, "unlimited:unlimited")


def limit_files(pids: "set[int] | list[int]", limit: str) -> None:
    for pid in pids:
        subprocess.run(["prlimit", f"--pid={pid}", f"--fsize={limit}"], check=True)


def test_a_server_whose_disk_is_full(
    server: str, full_disk: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftline.tracking.run._END_SECONDS", {"FINISHED": 3.0})
    content = os.urandom(1_000_000)
    with start(server, tmp_path / "run", "pets") as run:
        run.log_metrics({"loss": 3.0}, 0)
        (tmp_path / "large.bin").write_bytes(content)
        run.log_artifact(tmp_path / "large.bin")
    (told,) = (text for text in caplog.messages if "records of run" in text)
    assert "have not reached the tracking server" in told
    assert "sync() sends them" in told
    limit_files(full_disk, "unlimited:unlimited")
    report = sync(tmp_path / "run")
    assert (report.problem, report.refused) == (None, ())
    client = connect(server)
    assert Path(client.download_artifacts(run.id, "large.bin", str(tmp_path / "run"))).read_bytes() == content
    assert client.get_run(run.id).info.status == "FINISHED"


class ProcessList(threading.Thread):
    """What `ps` shows to everybody, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue  # it has ended


def test_passwords_are_nowhere(
    tracking_server: TrackingServer, server: str, color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no file, parameter, tag, artifact, line that is printed, and list of processes."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    (tmp_path / "place").mkdir()
    place, processes = Workplace(tmp_path / "place"), ProcessList()
    processes.start()
    typed = [*TINY, "trainer.max_epochs=1", "tracking=server", "data=folder", f"data.path={color_folder}"]
    ran = place.run("train", *typed)
    processes.over.set()
    processes.join()
    assert ran.code == 0, ran.output
    assert any(f"--port={tracking_server.port}" in line for line in processes.seen)

    client = connect(server)
    run = client.get_run(ran.result["run_id"])
    client.download_artifacts(run.info.run_id, "", str(place.root))
    files = {str(file): file.read_bytes() for file in place.root.rglob("*") if file.is_file()}
    assert any("versions.json" in name for name in files)
    texts = {**files, "printed": ran.output.encode(), "server": tracking_server.log.read_bytes()}
    texts |= {"run": repr(run.to_dictionary()).encode(), "processes": "\n".join(processes.seen).encode()}
    for secret in (PASSWORD, DATABASE_PASSWORD):
        assert not [name for name, content in texts.items() if secret.encode() in content]


def test_the_doctor_of_a_server(server: str) -> None:
    findings = list(check_tracking(Tracking(uri=server)))
    assert [(one.name, one.state) for one in findings] == [("tracking", "ok"), ("login", "ok"), ("clock", "ok")]
    assert findings[1].text == "the server wants one, and takes ours"
