"""Gray input and a network's own options: the weights are adapted, the images are made to fit, the rest is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from graftline.backbones.backbone import Backbone, Graft
from graftline.errors import UserError


def logits(graft: Graft, image: np.ndarray) -> torch.Tensor:
    """Return (1, K) for an image (C, H, W)."""
    with torch.no_grad():
        result: torch.Tensor = graft.network.eval()(torch.from_numpy(image)[None])
    return result


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Noise, (80, 90, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of three channels."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return str(path)


@pytest.mark.parametrize("source", ["packaged", "file"])
def test_a_gray_network_sees_what_the_other_sees_in_a_gray_image(source: str, file: str, image: np.ndarray) -> None:
    place: dict[str, Any] = (
        {"name": "test_resnet", "file": file} if source == "file" else {"name": "tf_efficientnet_lite0"}
    )
    color = Backbone(**place, image_size=64).build(1000)
    gray = Backbone(**place, image_size=64, channels=1).build(1000)
    seen = gray.preprocessing(image)
    assert seen.shape == (1, 64, 64)
    torch.testing.assert_close(logits(gray, seen), logits(color, seen.repeat(3, axis=0)), rtol=1e-4, atol=1e-4)
    assert logits(gray, seen).abs().max() > 1e-3  # not equal for being zero
    assert gray.arguments == {"in_chans": 1}


def test_gray_pixels_are_luma_and_one_mean_and_deviation_stand_for_three(image: np.ndarray) -> None:
    gray = Backbone("test_resnet", weights="none", image_size=64, channels=1, crop_pct=1.0).preprocessing()
    color = Backbone("test_resnet", weights="none").preprocessing()
    np.testing.assert_allclose([gray.mean, gray.std], [[np.mean(color.mean)], [np.mean(color.std)]], rtol=1e-7)
    flat = np.full((64, 64, 3), (200, 100, 50), dtype=np.uint8)
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)  # ITU-R 601
    assert (gray.frame(flat) == luma).all()
    expected = (luma / 255 - gray.mean[0]) / gray.std[0]
    np.testing.assert_allclose(gray(flat), np.full((1, 64, 64), expected), rtol=1e-5)


def test_a_network_made_for_gray_images_takes_color_too() -> None:
    gray = Backbone("lenet5", weights="none").build(10)
    assert (gray.preprocessing.channels, gray.preprocessing.image_size) == (1, (32, 32))
    color = Backbone("lenet5", weights="none", channels=3).build(10)
    assert color.preprocessing.channels == 3
    assert color.preprocessing.mean == gray.preprocessing.mean * 3
    assert color.preprocessing.std == gray.preprocessing.std * 3
    assert logits(color, np.zeros((3, 32, 32), dtype=np.float32)).shape == (1, 10)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_images_have_one_or_three_channels(channels: int) -> None:
    with pytest.raises(UserError, match=f"Backbone.channels is {channels}, but images have 3, or 1 if gray"):
        Backbone("test_resnet", channels=channels)


def test_the_arguments_build_the_same_network() -> None:
    backbone = Backbone("test_vit", weights="none", image_size=96, channels=1, options={"qkv_bias": False})
    graft = backbone.build(3)
    assert graft.arguments == {"img_size": 96, "in_chans": 1, "qkv_bias": False}
    again = timm.create_model("test_vit", num_classes=3, **graft.arguments)
    shapes = {key: tensor.shape for key, tensor in again.state_dict().items()}
    assert {key: tensor.shape for key, tensor in graft.network.state_dict().items()} == shapes
    assert shapes != {key: tensor.shape for key, tensor in timm.create_model("test_vit").state_dict().items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wings": 2}, "'test_resnet' has no option wings: leave Backbone.options.wings out"),
        ({"wings": 0}, "'test_resnet' has no option wings"),
        ({"in_chans": 1}, "Backbone.options.in_chans is an argument of its own: give Backbone.channels"),
        ({"output_stride": 7}, r"'test_resnet' cannot be built with output_stride=7 \(.*\): leave that out"),
    ],
)
def test_options_that_a_network_does_not_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone("test_resnet", weights="none", options=options).check()


@pytest.mark.parametrize("image_size", [None, 64])
def test_an_option_that_only_the_forward_pass_trips_over_is_named(image_size: int | None) -> None:
    wrong = Backbone("resnet50", weights="none", image_size=image_size, options={"cardinality": True})
    with pytest.raises(
        UserError, match=r"'resnet50' cannot be used with cardinality=True \(conv2d.*\): leave that out"
    ):
        wrong.check()


def test_an_image_size_that_is_wrong_is_not_blamed_on_an_option() -> None:
    with pytest.raises(UserError, match=r"'alexnet' cannot take images of 20 px"):
        Backbone("alexnet", weights="none", image_size=20, options={"groups": 2}).check()


def test_weights_of_one_channel_are_repeated_for_three(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("lenet5")
    save_file(source.state_dict(), tmp_path / "gray.safetensors")
    color = Backbone("lenet5", file=str(tmp_path / "gray.safetensors"), channels=3).build(10)
    gray, repeated = source.state_dict(), color.network.state_dict()
    first = "conv1.0.weight"
    assert repeated[first].shape == (6, 3, 5, 5)
    torch.testing.assert_close(repeated[first].sum(dim=1, keepdim=True), gray[first])
    torch.testing.assert_close(repeated[first], repeated[first][:, :1].expand(-1, 3, -1, -1))
    assert all(torch.equal(repeated[key], gray[key]) for key in gray if key != first)
