"""Files that somebody has changed: a poisoned checkpoint, and a network that is not what was saved, are refused."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from bundles import tiny_bundle
from workplace import TINY, Workplace

from graftline.bundle.predictor import Predictor
from graftline.errors import UserError


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_a_poisoned_checkpoint_is_refused(tmp_path: Path, color_folder: Path) -> None:
    """A training that is resumed reads the checkpoint of its directory; a swap of it runs nothing."""
    place = Workplace(tmp_path)
    typed = [*TINY, "data=folder", f"data.path={color_folder}"]
    place.kill("outputs/train/*/checkpoints/last.ckpt", "train", *typed, "trainer.max_epochs=200")
    (checkpoint,) = tmp_path.glob("outputs/train/*/checkpoints/last.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    made = tmp_path / "made"
    torch.save({**content, "extra": Evil(made)}, checkpoint)
    (run,) = place.mlflow.search_runs([experiment.experiment_id for experiment in place.mlflow.search_experiments()])
    ran = place.run("train", f"train.resume={run.info.run_id}")
    assert ran.code == 1
    assert not made.exists()
    assert f"{checkpoint} is damaged, or holds pickled objects, which we do not load" in ran.output
    torch.load(checkpoint, weights_only=False)
    assert made.exists()  # it would have


def test_a_network_is_compared_with_its_digest_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    network = bundle / "model.onnx"
    content = bytearray(network.read_bytes())
    content[len(content) // 2] ^= 1
    network.write_bytes(content)

    def load(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    monkeypatch.setattr("timm.create_model", load)
    with pytest.raises(UserError, match=r"model\.onnx .*is not what was saved"):
        Predictor.from_directory(bundle)
