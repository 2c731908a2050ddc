"""PostgreSQL, and the MLflow server of docker/compose.yaml on it, as processes on this machine."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import yaml
from workplace import PROJECT

DOCKER = PROJECT / "docker"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
SERVICE = SERVICES["tracking"]
DATABASE_PASSWORD = "the database's, not a secret"
ADMIN, PASSWORD = "admin", "admin's own, not a secret"
SERVED_PASSWORD = "the served model's, not a secret"


def postgres_binaries() -> Path | None:
    """Debian keeps a folder per version, off the PATH."""
    on_path = shutil.which("postgres")
    found = [Path(on_path).parent] if on_path else list(Path("/usr/lib/postgresql").glob("*/bin"))
    return max((path for path in found if (path / "initdb").exists()), default=None)


BINARIES = postgres_binaries()
MISSING = "PostgreSQL is not installed: on Debian, apt-get install postgresql"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def health_check(service: str, ports: dict[int, int], **variables: str) -> Callable[[], bool]:
    """Return what tells whether a service is healthy: its check in docker/compose.yaml, with other ports."""
    kind, *words = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    for before, here in ports.items():
        assert str(before) in " ".join(words)
        words = [word.replace(str(before), str(here)) for word in words]
    words[0] = sys.executable if words[0] == "python" else words[0]
    environment = {"PATH": f"{BINARIES}:/usr/bin:/bin", **variables}
    return lambda: subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0


@contextmanager
def running(
    command: list[str], log: Path, ready: Callable[[], bool], **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server while the block runs."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until(ready, process, log)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # what is in the database is thrown away
        process.wait()


@contextmanager
def running_postgres() -> Iterator[int]:
    """Yield the port of a PostgreSQL with the user of docker/compose.yaml."""
    assert BINARIES is not None
    folder = Path(tempfile.mkdtemp(prefix="graftline-postgres-"))  # pytest's own folders are closed to other users
    become: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
        shutil.chown(folder, user)
        become = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
    password_file = folder / "password"
    password_file.write_text(DATABASE_PASSWORD)
    password_file.chmod(0o644)
    initdb = [str(BINARIES / "initdb"), "--pgdata", str(folder / "data"), "--username=mlflow", "--no-sync"]
    initdb += ["--auth=scram-sha-256", "--pwfile", str(password_file), "--encoding=UTF8", "--locale=C"]
    subprocess.run([*become, *initdb], check=True, capture_output=True, cwd=folder)
    port = free_port()
    options = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", "fsync": "off"}
    command = [*become, str(BINARIES / "postgres"), "-D", str(folder / "data")]
    command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]

    def has_database() -> bool:
        try:
            connection = psycopg2.connect(
                host="127.0.0.1", port=port, user="mlflow", password=DATABASE_PASSWORD, dbname="postgres"
            )
        except psycopg2.OperationalError:
            return False
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
        connection.close()
        return True

    try:
        with running(command, folder.with_suffix(".log"), has_database):
            yield port
    finally:
        shutil.rmtree(folder)
        folder.with_suffix(".log").unlink()


def tracking_command(replacements: dict[str, str]) -> list[str]:
    """Return the tracking service's command from docker/compose.yaml with some options' values replaced."""
    program, *words = SERVICE["command"]
    assert program == "mlflow"
    words = [word.replace("${PUBLIC_NAME:-localhost}", "localhost") for word in words]
    names = [word.partition("=")[0] for word in words]
    assert set(replacements) <= set(names), "docker/compose.yaml has other options"
    replaced = [
        f"{name}={replacements[name]}" if name in replacements else word
        for name, word in zip(names, words, strict=True)
    ]
    return [sys.executable, "-m", "mlflow", *replaced]


@dataclass(frozen=True)
class TrackingServer:
    """How the service is started on this machine.

    Attributes:
        port: of the server.
        command: that starts it.
        environment: that it needs.
        log: what it prints.
    """

    port: int
    command: list[str]
    environment: dict[str, str]
    log: Path

    @classmethod
    def on(cls, postgres: int, folder: Path) -> "TrackingServer":
        """Return the service with its files in a folder and its database on a port."""
        port, database = free_port(), f"postgresql+psycopg2://mlflow@127.0.0.1:{postgres}/mlflow"
        ini = (DOCKER / "basic_auth.ini").read_text().replace("@database:5432", f"@127.0.0.1:{postgres}")
        (folder / "basic_auth.ini").write_text(ini)
        given = {
            "PGPASSWORD": DATABASE_PASSWORD,
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "not a secret",
        }
        own = {name: str(value) for name, value in SERVICE["environment"].items()}
        assert {name for name, value in own.items() if "$" in value or "/etc" in value} == given.keys()
        replacements = {
            "--host": "127.0.0.1",
            "--port": str(port),
            "--backend-store-uri": database,
            "--artifacts-destination": str(folder / "artifacts"),
            "--workers": "1",
        }
        return cls(port, tracking_command(replacements), own | given, folder / "server.log")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run it while the block runs."""
        with running(self.command, self.log, self._is_up, **self.environment) as process:
            yield process

    def _is_up(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
        except OSError:
            return False
        return True
