"""What the examples in docstrings find around them: a working directory of their own, and images to train on."""

from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from graftline.tracking.client import connect

collect_ignore_glob = ["src/graftline/pipeline/dagster/*.py"]  # of Dagster's environment


@pytest.fixture(autouse=True)
def _around_examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        tmp_path: Path = request.getfixturevalue("tmp_path")
        monkeypatch.chdir(tmp_path)
        if request.node.name == "graftline.pipeline.api.train":
            _save_digits(tmp_path / "digits")
            connect(f"sqlite:///{tmp_path / 'mlflow.db'}")


def _save_digits(folder: Path) -> None:
    """Write a folder with 16 real images of three classes, 8 px wide."""
    images, labels = load_digits(return_X_y=True)  # (N, 64), 0 to 16
    for label, name in {0: "zero", 1: "one", 3: "three"}.items():
        (folder / name).mkdir(parents=True)
        for number, pixels in enumerate(images[labels == label][:16]):
            gray = (15 * pixels.reshape(8, 8)).astype("uint8")
            Image.fromarray(gray).save(folder / name / f"{number}.png")
