"""Each network of the notes goes the whole way: images, training, a bundle that timm and ONNX Runtime agree with."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from small_alexnet import run_with_small_alexnet, shrink_alexnet
from workplace import TINY, Workplace

import graftline.backbones.zoo  # noqa: F401 - timm is to know lenet5 and its kin
from graftline.augment.draw import Draw
from graftline.augment.policy import EvalTransform
from graftline.bundle.predictor import Predictor
from graftline.data.decode import decode_rgb

CLASSES, IMAGES_PER_CLASS = (0, 1, 7), 30
# network: side of its images in px, and its options
NETWORKS: dict[str, tuple[int, dict[str, float]]] = {
    "lenet5": (32, {}),
    "alexnet": (67, {"options.groups": 2}),
    "vgg16": (32, {"options.mlp_ratio": 0.05}),  # 204 units instead of 4096
    "nin": (67, {}),
    "googlenet": (67, {}),
    "resnet18": (32, {}),
    "mobilenetv1_100": (32, {}),
    "mobilenetv2_100": (32, {}),
    "efficientnet": (32, {"phi": -1.0}),  # phi=0 is efficientnet_b0
}
SGD = ("optim=sgd", "optim.lr=0.001", "optim.momentum=0", "optim.nesterov=false")  # keeps large checkpoints small


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits of scikit-learn's (8x8 px, 17 levels of gray), as a folder of images."""
    root = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for digit in CLASSES:
        (root / str(digit)).mkdir()
        for number, pixels in enumerate(data.images[data.target == digit][:IMAGES_PER_CLASS]):
            image = Image.fromarray((pixels / 16 * 255).astype(np.uint8))
            image.resize((32, 32), Image.Resampling.BICUBIC).save(root / str(digit) / f"{number:02}.png")
    return root


@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_an_epoch_and_reloads_in_timm(
    workplace: Workplace, digits: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shrink_alexnet(monkeypatch)
    size, options = NETWORKS[name]
    replaced = ("backbone=", "backbone.image_size", "trainer.max_epochs", "optim.lr")
    typed = [
        "train",
        *(line for line in TINY if not line.startswith(replaced)),
        *("trainer.max_epochs=1", "data=folder", f"data.path={digits}", *SGD),
        *(f"backbone={name}", f"backbone.image_size={size}"),
        *(f"backbone.{key}={value}" for key, value in options.items()),
    ]
    ran = workplace.run_function(partial(run_with_small_alexnet, typed))
    assert ran.code == 0, ran.output
    bundle = ran.directory / "bundle"
    network = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    assert network.pretrained_cfg["architecture"] == name
    arguments = json.loads((bundle / "config.json").read_text()).get("model_args", {})
    for key, value in options.items():
        assert arguments[key.removeprefix("options.")] == value

    predictor = Predictor.from_directory(bundle)
    evaluate = EvalTransform(predictor.preprocessing)
    images = [digits / str(digit) / "00.png" for digit in CLASSES]
    batch = torch.stack([torch.from_numpy(evaluate(decode_rgb(image), Draw(0, 0))) for image in images])
    assert batch.shape[2:] == (size, size)
    with torch.inference_mode():
        expected = network(batch).softmax(dim=1).numpy()
    np.testing.assert_allclose(predictor.predict(images), expected, rtol=0, atol=1e-4)
