"""A real MLflow server that can be killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


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
