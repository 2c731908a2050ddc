"""Files that somebody has changed: a poisoned checkpoint, and a network that is not what was saved, are refused."""

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from bundles import tiny_bundle
from workplace import TINY, Workplace

from graftline.bundle.ensemble import load_predictor, save_ensemble
from graftline.errors import UserError
from graftline.pipeline.cli import compose
from graftline.pipeline.health.finding import checked
from graftline.pipeline.health.models import check_model
from graftline.tracking.tracking import Tracking


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


def change_one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    monkeypatch.setattr("timm.create_model", load)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of one network, and one of two."""
    root = tmp_path_factory.mktemp("whole")
    one = tiny_bundle(root / "one")
    return {"one": one, "two": save_ensemble(root / "two", [one, one], (0.5, 0.5), "1", {})}


CHANGED = (("one", "model.onnx"), ("two", "members/2/model.onnx"))


@pytest.fixture(params=CHANGED, ids=[kind for kind, _ in CHANGED])
def changed(request: pytest.FixtureRequest, whole: dict[str, Path], tmp_path: Path) -> tuple[Path, str]:
    """A copy of either with one wrong bit, and the file that has it."""
    kind, name = request.param
    bundle = shutil.copytree(whole[kind], tmp_path / "bundle")
    change_one_bit(bundle / name)
    return bundle, name


@pytest.mark.usefixtures("nothing_loads")
def test_a_network_is_compared_with_its_digest_before_it_is_loaded(changed: tuple[Path, str]) -> None:
    bundle, name = changed
    with pytest.raises(UserError, match=rf"{name} .*is not what was saved"):
        load_predictor(bundle)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_torch_loads_no_changed_file(whole: dict[str, Path], tmp_path: Path, file: str) -> None:
    bundle = shutil.copytree(whole["one"], tmp_path / "bundle")
    change_one_bit(bundle / file)
    with pytest.raises(UserError, match=rf"{file} .*is not what was saved"):
        load_predictor(bundle, "torch")
    with pytest.raises(UserError, match=rf"{file} .*is not what was saved"):
        compose("verify", [f"bundle={bundle}", "engine=torch", "accelerator=cpu"]).run()


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("typed", [("serve", "model", "port=0"), ("verify", "bundle")], ids=lambda typed: typed[0])
def test_a_stage_loads_no_changed_network(
    changed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (stage, key, *more), (bundle, name) = typed, changed
    with pytest.raises(UserError, match=f"^{name} of this bundle is not what was saved: copy or save"):
        compose(stage, [f"{key}={bundle}", "accelerator=cpu", *more]).run()


@pytest.mark.usefixtures("nothing_loads")
def test_doctor_loads_no_changed_network(changed: tuple[Path, str]) -> None:
    bundle, name = changed
    (found,) = checked("pets", lambda: check_model(str(bundle), Tracking()))
    assert (found.state, found.text) == (
        "broken",
        f"{name} of this bundle is not what was saved: copy or save the bundle again",
    )
