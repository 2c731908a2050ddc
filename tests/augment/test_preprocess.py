"""Preprocessing against timm's own transform, an independent implementation on torchvision."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data
from timm.data import create_transform

from graftline.augment.preprocess import Preprocessing
from graftline.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COFFEE = Image.fromarray(data.coffee())


def timm_transform(preprocessing: Preprocessing, picture: Image.Image) -> np.ndarray:
    transform = create_transform(
        input_size=(preprocessing.channels, *preprocessing.image_size),
        is_training=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
    result: np.ndarray = transform(picture).numpy()
    return result


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
def test_equals_timm(crop_pct: float, interpolation: str, crop_mode: str) -> None:
    for image_size in ((224, 224), (227, 227), (33, 33), (192, 257), (257, 192)):
        preprocessing = Preprocessing(image_size, MEAN, STD, interpolation, crop_pct, crop_mode)
        for size in ((600, 400), (401, 599), (224, 224), (97, 61), (31, 157), (256, 256)):
            picture = COFFEE.resize(size)
            ours = preprocessing(np.asarray(picture))
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours, timm_transform(preprocessing, picture), err_msg=f"{image_size} {size}")


def test_equals_timm_for_the_resolved_config_of_pretrained_weights() -> None:
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg

    for name in ("tf_efficientnet_lite0", "vit_base_patch16_clip_224", "resnetv2_50x1_bit", "convnext_tiny"):
        config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
        channels, height, width = config.pop("input_size")
        preprocessing = Preprocessing((height, width), channels=channels, **config)
        ours = preprocessing(np.asarray(COFFEE))
        np.testing.assert_array_equal(ours, timm_transform(preprocessing, COFFEE), err_msg=name)


@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_gray_network_equals_timm_on_a_gray_picture(crop_mode: str) -> None:
    preprocessing = Preprocessing((32, 32), (0.2860,), (0.3530,), "bilinear", 0.9, crop_mode, channels=1)
    ours = preprocessing(np.asarray(COFFEE))
    assert ours.shape == (1, 32, 32)
    np.testing.assert_array_equal(ours, timm_transform(preprocessing, COFFEE.convert("L")))


def test_normalize_by_hand() -> None:
    preprocessing = Preprocessing((1, 2), (0.5, 0.0, 1.0), (0.5, 1.0, 0.25))
    pixels = np.array([[[255, 255, 255], [0, 51, 0]]], dtype=np.uint8)
    np.testing.assert_allclose(
        preprocessing.normalize(pixels), [[[1.0, -1.0]], [[1.0, 0.2]], [[0.0, -4.0]]], rtol=0, atol=1e-6
    )


def test_resampling_the_whole_image_is_resizing_it() -> None:
    preprocessing = Preprocessing((40, 60), MEAN, STD)
    resized = np.asarray(COFFEE.resize((60, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(preprocessing.resample(np.asarray(COFFEE), (0, 0, 600, 400)), resized)


def test_extreme_shapes_give_an_image_of_the_right_size() -> None:
    line = np.zeros((2, 900, 3), dtype=np.uint8)
    for crop_mode in ("center", "squash", "border"):
        assert Preprocessing((16, 16), MEAN, STD, crop_mode=crop_mode)(line).shape == (3, 16, 16)


@pytest.mark.parametrize("size", [(700, 60), (60, 700), (4000, 300)])
def test_of_a_strip_what_the_crop_keeps_is_what_it_would_be_of_the_whole(size: tuple[int, int]) -> None:
    preprocessing = Preprocessing((32, 48), MEAN, STD)
    picture = COFFEE.resize(size)
    ours = preprocessing.frame(np.asarray(picture)).astype(float)
    whole = timm_transform(Preprocessing((32, 48), (0, 0, 0), (1, 1, 1)), picture).transpose(1, 2, 0) * 255
    np.testing.assert_allclose(ours, whole, atol=3)  # gray levels: the order of rows and columns is another


@pytest.mark.parametrize("size", [(10, 30_000), (30_000, 10), (1, 60_000)])
def test_of_a_strip_no_more_is_resized_than_is_seen(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    resize = Image.Image.resize

    def note(self: Image.Image, size: tuple[int, int], *args: Any, **options: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", note)
    for channels in (3, 1):
        preprocessing = Preprocessing((224, 224), MEAN[:channels], STD[:channels], channels=channels)
        assert preprocessing.frame(np.zeros((*size, 3), np.uint8)).shape == (224, 224, channels)
    assert max(made) == 224 * 224


def test_survives_json() -> None:
    preprocessing = Preprocessing((32, 48), (0.5,), (0.25,), "bilinear", 1.0, "squash", channels=1)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"interpolation": "random"}, "Preprocessing.interpolation is 'random'"),
        ({"crop_mode": "middle"}, "Preprocessing.crop_mode is 'middle'"),
        ({"crop_pct": 0.0}, "crop_pct is 0.0"),
        ({"crop_pct": 1.5}, "crop_pct is 1.5"),
        ({"image_size": (0, 224)}, "image_size"),
        ({"channels": 4}, "Preprocessing.channels is 4"),
        ({"channels": 1}, "Preprocessing.mean and Preprocessing.std"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, Any], named: str) -> None:
    right: dict[str, Any] = {"image_size": (224, 224), "mean": MEAN, "std": STD}
    with pytest.raises(UserError, match=named):
        Preprocessing(**{**right, **wrong})


def test_serving_needs_neither_torch_nor_albumentations() -> None:
    import subprocess
    import sys

    code = (
        "import sys, graftline.augment.preprocess; "
        "print(sorted({'torch', 'timm', 'albumentations', 'cv2', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
