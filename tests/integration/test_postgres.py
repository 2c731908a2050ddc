"""The tracking server's command in docker/compose.yaml, run outside a container on a real PostgreSQL."""

import io
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
import yaml
from mlflow.artifacts import download_artifacts
from PIL import Image

from graftline.tracking.client import connect
from graftline.tracking.tracking import Tracking

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"
PASSWORD = "not a secret"


def postgres_binaries() -> Path | None:
    """Debian keeps a folder per version, off the PATH."""
    on_path = shutil.which("postgres")
    found = [Path(on_path).parent] if on_path else list(Path("/usr/lib/postgresql").glob("*/bin"))
    return max((path for path in found if (path / "initdb").exists()), default=None)


BINARIES = postgres_binaries()
pytestmark = pytest.mark.skipif(
    BINARIES is None, reason="PostgreSQL is not installed: on Debian, apt-get install postgresql"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@contextmanager
def running(command: list[str], log: Path, ready: Callable[[], bool], **environment: str) -> Iterator[None]:
    """Run a server while the block runs."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until(ready, process, log)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # what is in the database is thrown away
        process.wait()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a PostgreSQL with the database and the user of docker/compose.yaml."""
    assert BINARIES is not None
    folder = Path(tempfile.mkdtemp(prefix="graftline-postgres-"))  # pytest's own folders are closed to other users
    become: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
        shutil.chown(folder, user)
        become = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
    password_file = folder / "password"
    password_file.write_text(PASSWORD)
    password_file.chmod(0o644)
    initdb = [str(BINARIES / "initdb"), "--pgdata", str(folder / "data"), "--username=mlflow", "--no-sync"]
    initdb += ["--auth=scram-sha-256", "--pwfile", str(password_file), "--encoding=UTF8", "--locale=C"]
    subprocess.run([*become, *initdb], check=True, capture_output=True, cwd=folder)
    port = free_port()
    options = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", "fsync": "off"}
    command = [*become, str(BINARIES / "postgres"), "-D", str(folder / "data")]
    command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]

    def create_database() -> bool:
        try:
            connection = psycopg2.connect(
                host="127.0.0.1", port=port, user="mlflow", password=PASSWORD, dbname="postgres"
            )
        except psycopg2.OperationalError:
            return False
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
        connection.close()
        return True

    try:
        with running(command, tmp_path_factory.mktemp("logs") / "postgres.log", create_database):
            yield port
    finally:
        shutil.rmtree(folder)


def tracking_command(replacements: dict[str, str]) -> list[str]:
    """Return the tracking service's command from docker/compose.yaml with some options' values replaced."""
    program, *words = yaml.safe_load(COMPOSE.read_text())["services"]["tracking"]["command"]
    assert program == "mlflow"
    names = [word.partition("=")[0] for word in words]
    assert set(replacements) <= set(names), "docker/compose.yaml has other options"
    replaced = [
        f"{name}={replacements[name]}" if name in replacements else word
        for name, word in zip(names, words, strict=True)
    ]
    return [sys.executable, "-m", "mlflow", *replaced]


@pytest.fixture(scope="module")
def server(postgres: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the tracking server."""
    folder = tmp_path_factory.mktemp("tracking")
    port = free_port()
    command = tracking_command(
        {
            "--host": "127.0.0.1",
            "--port": str(port),
            "--backend-store-uri": f"postgresql+psycopg2://mlflow@127.0.0.1:{postgres}/mlflow",
            "--artifacts-destination": str(folder / "artifacts"),
        }
    )

    def is_up() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            return False
        return True

    service = yaml.safe_load(COMPOSE.read_text())["services"]["tracking"]
    environment = {name: str(value) for name, value in service["environment"].items()} | {"PGPASSWORD": PASSWORD}
    with running(command, folder / "server.log", is_up, **environment):
        yield f"http://127.0.0.1:{port}"


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
