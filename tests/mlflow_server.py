"""A real MLflow server that can be killed."""

import os
import shutil
import socket
import time
import urllib.request
from functools import partial
from pathlib import Path

from warm_process import WarmProcess


class Server:
    """MLflow's server on sqlite, which keeps its port and its data when it is killed and started again."""

    def __init__(self, directory: Path, database: Path) -> None:
        self._directory = directory
        self._database = directory / "mlflow.db"
        shutil.copyfile(database, self._database)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: WarmProcess | None = None

    def start(self) -> None:
        serve = partial(_serve, self.port, f"sqlite:///{self._database}", str(self._directory / "artifacts"))
        self._process = WarmProcess(
            serve, self._directory, {**os.environ, "COLUMNS": "120"}, self._directory / "server.log"
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.code is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError(self._process.output)

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it without a word, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process = None


def _serve(port: int, database: str, artifacts: str) -> int:
    """Do what `mlflow server` does in the process of its own that it starts."""
    import uvicorn  # before MLflow's module, which looks whether it is there
    from mlflow.server import constants

    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = database
    os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = database
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = artifacts
    uvicorn.run("mlflow.server.fastapi_app:app", host="127.0.0.1", port=port)
    return 0
