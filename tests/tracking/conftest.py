"""A tracking database that is ready, a real server that can be killed, a small dataset version and a bundle."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from graftline.data.version import DatasetVersion, write_version
from graftline.tracking.client import connect
from graftline.tracking.tracking import Tracking


@pytest.fixture
def tracking(empty_database: Path, tmp_path: Path) -> Tracking:
    """A local database of its own."""
    file = tmp_path / "mlflow.db"
    shutil.copyfile(empty_database, file)
    return Tracking(uri=f"sqlite:///{file}", system_metrics=False)


@pytest.fixture
def client(tracking: Tracking) -> MlflowClient:
    """MLflow's own view of that database."""
    return connect(tracking.uri)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An output directory."""
    path = tmp_path / "outputs" / "run"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def version(tmp_path: Path) -> DatasetVersion:
    """Eight images that exist by name only."""
    splits = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    table = pd.DataFrame(
        {
            "path": [str(tmp_path / "images" / f"{index}.png") for index in range(8)],
            "label": ["cat", "dog"] * 4,
            "split": splits,
            "group": None,
            "weight": float("nan"),
            "stratum": None,
            "sha256": [f"{index:064x}" for index in range(8)],
            "width": 8,
            "height": 8,
        }
    )
    return write_version(tmp_path / "data" / "pets", "pets", table, ("cat", "dog"))[0]


@pytest.fixture
def bundle(directory: Path) -> Path:
    """What registration sees of a bundle: nothing in it is run here (tests/serving does that)."""
    path = directory / "bundle"
    path.mkdir()
    (path / "bundle.json").write_text(json.dumps({"timm_name": "test_efficientnet", "class_names": ["cat", "dog"]}))
    (path / "model.onnx").write_bytes(b"onnx" * 1000)
    return path


@pytest.fixture
def photo() -> bytes:
    """A large image file."""
    file = io.BytesIO()
    Image.effect_noise((1200, 900), 80).save(file, "PNG")
    return file.getvalue()


class Server:
    """A real `mlflow server` on sqlite, which keeps its port and its data when it is killed and started again."""

    def __init__(self, directory: Path, database: Path) -> None:
        self._directory = directory
        self._database = directory / "mlflow.db"
        shutil.copyfile(database, self._database)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._database}"]
        command += ["--serve-artifacts", "--artifacts-destination", str(self._directory / "artifacts")]
        # without the job runners, eight processes for language models
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError((self._directory / "server.log").read_text())

    @property
    def group(self) -> int:
        """The number of its group of processes."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it without a word, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            while not self._port_is_free():  # the leader's children die a moment later
                time.sleep(0.01)

    def _port_is_free(self) -> bool:
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="session")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is up; a test that kills it starts it again."""
    server = Server(tmp_path_factory.mktemp("server"), empty_database)
    server.start()
    yield server
    server.kill()
