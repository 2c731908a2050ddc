"""Cutting below the head, the engine, and activations that are computed once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from graftline.augment.policy import Evaluate
from graftline.augment.preprocess import Preprocessing
from graftline.data.version import Samples
from graftline.features.cache import Features, activation_loader
from graftline.features.cut import cut_head
from graftline.features.engine import make_engine

SIZE = (64, 64)
PREPROCESSING = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3)


def network(name: str = "test_efficientnet") -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, drop_rate=0.2)


def samples(folder: Path) -> Samples:
    paths = sorted(str(path) for path in folder.rglob("*.png"))[::4]
    return Samples(paths, np.arange(len(paths)) % 3, np.linspace(0, 1, len(paths), dtype=np.float32))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext", "test_byobnet", "vgg11"])
def test_trunk_then_tail_is_the_network(name: str) -> None:
    whole = network(name).eval()
    parts = cut_head(whole, SIZE)
    assert parts is not None
    trunk, tail = parts
    images = torch.randn(3, 3, *SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(tail.eval()(trunk(images)), whole(images), rtol=0, atol=1e-5)


def test_cutting_leaves_the_mode_and_shares_the_head() -> None:
    whole = network().train()
    parts = cut_head(whole, SIZE)
    assert parts is not None
    assert whole.training
    assert {id(p) for p in parts[1].parameters()} == {id(p) for p in whole.get_classifier().parameters()}


def test_a_network_with_two_heads_is_not_cut() -> None:
    whole = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3)
    assert cut_head(whole, (224, 224)) is None


def test_the_engine_gives_what_torch_gives_for_any_batch_size(tmp_path: Path) -> None:
    parts = cut_head(network(), SIZE)
    assert parts is not None
    engine, runs_on = make_engine(parts[0], tmp_path / "trunk.onnx", SIZE)
    assert runs_on in ("ONNX Runtime", "torch on the GPU")
    for batch in (1, 7):
        images = torch.randn(batch, 3, *SIZE)
        with torch.inference_mode():
            expected = parts[0](images).numpy()
        np.testing.assert_allclose(engine(images), expected, atol=1e-4)


def test_an_export_of_other_weights_is_not_believed(tmp_path: Path) -> None:
    parts, other = cut_head(network(), SIZE), timm.create_model("test_efficientnet", num_classes=3)
    assert parts is not None
    make_engine(parts[0], tmp_path / "trunk.onnx", SIZE)
    different = cut_head(other, SIZE)
    assert different is not None
    engine, runs_on = make_engine(different[0], tmp_path / "trunk.onnx", SIZE)
    assert "differs" in runs_on
    images = torch.randn(2, 3, *SIZE)
    with torch.inference_mode():
        np.testing.assert_allclose(engine(images), different[0](images).numpy(), atol=1e-5)


def test_activations_are_computed_once_and_read_afterwards(colour_folder: Path, tmp_path: Path) -> None:
    images = samples(colour_folder)
    parts = cut_head(network(), SIZE)
    assert parts is not None
    trunk = parts[0].eval()
    calls = []

    def engine(batch: torch.Tensor) -> np.ndarray:
        calls.append(len(batch))
        with torch.inference_mode():
            result: np.ndarray = trunk(batch).numpy()
        return result

    features = Features(directory=str(tmp_path))
    jobs: list[Any] = [(images, Evaluate(PREPROCESSING), 0, {"split": "train"})]
    (first,) = features.activations(engine, jobs, workers=0)
    assert sum(calls) == len(images.paths) == len(first)
    (second,) = features.activations(engine, jobs, workers=0)
    assert sum(calls) == len(images.paths), "read from disk"
    np.testing.assert_array_equal(first, second)
    features.activations(engine, [(*jobs[0][:3], {"split": "validation"})], workers=0)
    assert sum(calls) == 2 * len(images.paths), "another key, another pass"


def test_a_pass_that_is_killed_leaves_nothing_half_done(colour_folder: Path, tmp_path: Path) -> None:
    def engine(batch: torch.Tensor) -> np.ndarray:
        raise KeyboardInterrupt

    features = Features(directory=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        features.activations(engine, [(samples(colour_folder), Evaluate(PREPROCESSING), 0, {})], workers=0)
    assert not list(tmp_path.iterdir())


def test_the_loader_gives_each_activation_with_its_label_and_weight_once_an_epoch(colour_folder: Path) -> None:
    images = samples(colour_folder)
    count = len(images.paths)
    views = [np.arange(count, dtype=np.float32)[:, None] + 100 * view for view in range(2)]
    loader = activation_loader(views, images, batch_size=4, shuffle=True, seed=0)
    orders = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # a DrawSampler
        batches = list(loader)
        assert [len(batch["label"]) for batch in batches] == [4, 4, 4, 3]
        index = torch.cat([batch["index"] for batch in batches])
        orders.append(index.tolist())
        assert sorted(index.tolist()) == list(range(count))
        activations = torch.cat([batch["image"] for batch in batches])[:, 0]
        torch.testing.assert_close(activations, index.float() + 100 * (epoch % 2), msg="each epoch has its view")
        assert torch.equal(torch.cat([batch["label"] for batch in batches]), torch.from_numpy(images.labels)[index])
        assert images.weights is not None
        weights = torch.from_numpy(images.weights)[index]
        assert torch.equal(torch.cat([batch["weight"] for batch in batches]), weights)
    assert orders[0] != orders[1]
