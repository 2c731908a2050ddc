"""A tracking database that is ready, a model with versions in it, a small dataset version and a bundle."""

import io
import json
import shutil
from pathlib import Path

import pytest
from deciding import register
from manifest import manifest
from mlflow import MlflowClient
from mlflow_server import Server
from PIL import Image

from graftline.data.version import DatasetVersion
from graftline.data.version_writing import write_version
from graftline.tracking.client import connect
from graftline.tracking.promotions import Promotions
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


@pytest.fixture(params=["database", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    """Both kinds of places that runs are tracked at."""
    if request.param == "database":
        tracking: Tracking = request.getfixturevalue("tracking")
        return tracking.uri
    server: Server = request.getfixturevalue("server")
    return server.uri


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where downloads are kept."""
    return tmp_path / "cache"


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
    paths = [str(tmp_path / "images" / f"{index}.png") for index in range(8)]
    table = manifest(["cat", "dog"] * 4, splits, path=paths)
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


@pytest.fixture
def pets(tracking: Tracking, client: MlflowClient, tmp_path: Path) -> Promotions:
    """Four versions on which nothing was decided, and a folder for copies."""
    register(client, "pets", 4)
    return Promotions(tracking, "pets", tmp_path / "ledger")
