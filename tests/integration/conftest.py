"""One PostgreSQL, one tracking server with a login and one served model, for all tests that need them."""

import sys
from collections.abc import Iterator

import pytest
from bundles import tiny_bundle
from tracking_server import (
    ADMIN,
    BINARIES,
    MISSING,
    PASSWORD,
    SERVED_PASSWORD,
    SERVICES,
    TrackingServer,
    free_port,
    health_check,
    running,
    running_postgres,
)
from workplace import Workplace


@pytest.fixture(scope="session")
def postgres() -> Iterator[int]:
    """The port of the database, which runs."""
    if BINARIES is None:
        pytest.skip(MISSING)
    with running_postgres() as port:
        yield port


@pytest.fixture(scope="session")
def tracking_server(postgres: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """The server, which runs."""
    server = TrackingServer.on(postgres, tmp_path_factory.mktemp("tracking"))
    with server.running():
        yield server


@pytest.fixture
def server(tracking_server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the server, whose admin we are."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return tracking_server.url


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the service `serving`, run by its command; its health check has passed."""
    folder, port = tmp_path_factory.mktemp("serving"), free_port()
    bundle = tiny_bundle(folder / "pets" / "bundle")
    line: list[str] = [*SERVICES["serving"]["entrypoint"], *SERVICES["serving"]["command"]]
    program, *words = line
    assert program == "graftline"
    replaced = {
        "host=0.0.0.0": "host=127.0.0.1",
        "port=5001": f"port={port}",
        "model=${SERVED_MODEL:-images}": f"model={bundle}",
        "tracking=server": "accelerator=cpu",
    }
    assert replaced.keys() <= set(words)
    command = [sys.executable, "-m", "graftline", *(replaced.get(word, word) for word in words)]
    environment = Workplace(folder).environment() | {"GRAFTLINE_SERVE_PASSWORD": SERVED_PASSWORD}
    with running(command, folder / "log", health_check("serving", {5001: port}), **environment):
        yield port
