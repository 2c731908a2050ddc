"""What a training refuses before it starts, and what its model holds."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from workplace import TINY

from graftline.errors import UserError
from graftline.pipeline.cli import compose


@pytest.fixture
def train(color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The overrides for a training in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return ["data=folder", f"data.path={color_folder}", *TINY, "trainer.max_epochs=1", "tracking.register=false"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_without_images_is_refused_before_the_training(train: list[str], tmp_path: Path, split: str) -> None:
    with pytest.raises(
        UserError, match=rf"The {split} split .* has no images: ingest with a larger data.split.{split}"
    ):
        compose("train", [*train, f"data.split.{split}=0"]).run(tmp_path / "run")
    assert "epoch" not in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(("golden", "size"), [(1, (40, 40)), (0, (76, 52))])
def test_a_model_shows_a_real_image_only_if_its_bundle_may(
    train: list[str], tmp_path: Path, golden: int, size: tuple[int, int]
) -> None:
    compose("train", [*train, f"bundle.golden={golden}"]).run(tmp_path / "run")
    (file,) = tmp_path.rglob("artifacts/input_example.json")
    example = json.loads(file.read_text())["data"][0][0]
    assert Image.open(io.BytesIO(base64.b64decode(example))).size == size  # of the pictures, and of the made-up ones
