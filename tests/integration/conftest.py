"""One PostgreSQL and one tracking server with a login, for all tests that need them."""

from collections.abc import Iterator

import pytest
from tracking_server import ADMIN, BINARIES, MISSING, PASSWORD, TrackingServer, running_postgres


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """The server, which runs."""
    if BINARIES is None:
        pytest.skip(MISSING)
    with running_postgres() as port:
        server = TrackingServer.on(port, tmp_path_factory.mktemp("tracking"))
        with server.running():
            yield server


@pytest.fixture
def server(tracking_server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the server, whose admin we are."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return tracking_server.url
