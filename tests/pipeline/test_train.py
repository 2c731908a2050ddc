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
from graftline.pipeline.train_result import TrainResult


@pytest.fixture
def train(color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The overrides for a training in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return ["data=folder", f"data.path={color_folder}", *TINY, "trainer.max_epochs=1", "tracking.register=false"]


def test_without_validation_images_nothing_is_read(train: list[str], tmp_path: Path) -> None:
    for shares in (["data.split.validation=0"], ["data.split.train=0.8", "data.split.test=0.2"]):
        with pytest.raises(UserError, match=r"for validation, which a training needs .* give data\.split\.validation"):
            compose("train", [*train, *shares]).run(tmp_path / "run")
    assert not (tmp_path / "data").exists()


def test_without_test_images_the_model_has_no_scores(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compose("train", [*train, "data.split.test=0", "tracking.register=true"]).run(tmp_path / "run")
    assert isinstance(result, TrainResult)
    assert (result.scores, result.metrics) == ({}, {})
    assert result.model_uri == "models:/colors0/1"
    assert "model has no test scores" in " ".join(capsys.readouterr().out.split())
    report = (tmp_path / "run" / "report.html").read_text()
    assert "No test scores" in report
    assert "model has no test scores" in report
    with pytest.raises(UserError, match=r"test split of .* has no images"):
        compose("evaluate", [*train[:2], f"bundle={result.bundle}"]).run()


@pytest.mark.parametrize(("golden", "size"), [(1, (40, 40)), (0, (76, 52))])
def test_a_model_shows_a_real_image_only_if_its_bundle_may(
    train: list[str], tmp_path: Path, golden: int, size: tuple[int, int]
) -> None:
    compose("train", [*train, f"bundle.golden={golden}"]).run(tmp_path / "run")
    (file,) = tmp_path.rglob("artifacts/input_example.json")
    example = json.loads(file.read_text())["data"][0][0]
    assert Image.open(io.BytesIO(base64.b64decode(example))).size == size  # of the pictures, and of the made-up ones
