"""Crops are exactly the pixels that their papers say, and crops that are alike are one input."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from graftline.augment.crops import CROP_SETS, check, cut
from graftline.augment.preprocess import Preprocessing
from graftline.errors import UserError

LANDSCAPE = (256, 320)  # height, width: as high as AlexNet's images, so that nothing is resized


def preprocessing(side: int = 224, crop_pct: float = 0.875, **others: object) -> Preprocessing:
    fields = {"image_size": (side, side), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": crop_pct, **others}
    return Preprocessing(**fields)  # type: ignore[arg-type]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def frames(name: str, image: np.ndarray, own: Preprocessing) -> list[np.ndarray]:
    return CROP_SETS[name].cut(image, own)


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def resized(image: np.ndarray, height: int) -> np.ndarray:
    """Return an image with its proportions and another height."""
    width = image.shape[1] * height // image.shape[0]
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [LANDSCAPE, (333, 280), (300, 300)])
def test_one_crop_is_what_the_predictor_is_given(size: tuple[int, int]) -> None:
    own, image = preprocessing(), noise(*size)
    found = cut(image, own, ["1"])
    np.testing.assert_array_equal(found.inputs, own(image)[None])
    assert found.shares.tolist() == [[1.0]]


@pytest.mark.parametrize("name", sorted(CROP_SETS.keys() - {"144"}))
def test_the_first_crop_is_the_center(name: str) -> None:
    own, image = preprocessing(), noise(*LANDSCAPE)
    np.testing.assert_array_equal(frames(name, image, own)[0], own.frame(image))


def test_five_and_ten_crops_are_alexnets() -> None:
    image = noise(*LANDSCAPE)
    square = image[:, 32:288]  # "cropped out the central 256x256 patch from the resulting image"
    five = [
        square[16:240, 16:240],
        square[:224, :224],
        square[:224, 32:],
        square[32:, :224],
        square[32:, 32:],
    ]
    assert_same(frames("5", image, preprocessing()), five)
    assert_same(frames("10", image, preprocessing()), [*five, *(np.fliplr(crop) for crop in five)])
    assert_same(frames("mirror", image, preprocessing()), [five[0], np.fliplr(five[0])])


def test_corners_of_a_network_that_sees_the_whole_image_lie_in_a_larger_one() -> None:
    own, image = preprocessing(crop_pct=1.0), noise(300, 300)
    center, first, *_, last = frames("5", image, own)
    np.testing.assert_array_equal(center, own.frame(image))
    larger = resized(image, 256)
    assert_same([first, last], [larger[:224, :224], larger[32:, 32:]])


def test_144_crops_are_googlenets() -> None:
    image = noise(*LANDSCAPE)
    expected = []
    for side, place in product((256, 288, 320, 352), (0, 1, 2)):
        whole = resized(image, side)  # "4 scales where the shorter dimension is 256, 288, 320 and 352"
        start = place * (whole.shape[1] - side) // 2
        square = whole[:, start : start + side]  # "the left, center and right square of these resized images"
        edge, middle = side - 224, (side - 224) // 2
        expected += [square[top : top + 224, left : left + 224] for top in (0, edge) for left in (0, edge)]
        expected += [square[middle : middle + 224, middle : middle + 224], resized(square, 224)]
    found = frames("144", image, preprocessing())
    assert_same(found, [*expected, *(np.fliplr(crop) for crop in expected)])
    upright = frames("144", image.transpose(1, 0, 2), preprocessing())
    np.testing.assert_array_equal(upright[0], found[0].transpose(1, 0, 2))  # the first square is the upper one


def test_of_a_square_image_48_of_the_144_are_different_and_count_alike() -> None:
    found = cut(noise(256, 256), preprocessing(), ["144"])
    assert len(found.inputs) == 48
    np.testing.assert_allclose(found.shares, 1 / 48)


def test_scales_are_googlenets_centers() -> None:
    image = noise(256, 256)
    expected = []
    for side in (256, 288, 320, 352):
        middle = (side - 224) // 2
        expected.append(resized(image, side)[middle : middle + 224, middle : middle + 224])
    assert_same(frames("scales", image, preprocessing()), expected)


def test_d4_has_all_eight_symmetries_of_the_center() -> None:
    image = noise(256, 256)
    center = image[16:240, 16:240]
    turned = [center, center[::-1, ::-1], center.transpose(1, 0, 2), center[::-1, ::-1].transpose(1, 0, 2)]
    expected = {crop.tobytes() for one in turned for crop in (one, np.flipud(one))}
    assert {crop.tobytes() for crop in frames("d4", image, preprocessing())} == expected
    assert len(expected) == 8


@pytest.mark.parametrize("name", CROP_SETS)
def test_each_set_has_as_many_crops_as_it_says(name: str) -> None:
    own = preprocessing(32)
    crops = frames(name, noise(50, 70), own)
    assert len(crops) == CROP_SETS[name].count
    assert {crop.shape for crop in crops} == {(32, 32, 3)}
    assert "." not in CROP_SETS[name].wrong


def test_sets_share_what_they_have_in_common() -> None:
    found = cut(noise(50, 70), preprocessing(32), ["1", "5", "10", "mirror"])
    assert len(found.inputs) == 10
    assert found.shares.sum(axis=1).tolist() == pytest.approx([1, 1, 1, 1])
    assert np.count_nonzero(found.shares, axis=1).tolist() == [1, 5, 10, 2]


def test_gray_networks_and_padded_ones_take_all_sets() -> None:
    gray = Preprocessing(image_size=(28, 28), mean=(0.5,), std=(0.5,), channels=1)
    assert cut(noise(40, 44), gray, list(CROP_SETS)).inputs.shape[1:] == (1, 28, 28)
    padded = preprocessing(32, crop_pct=1.0, crop_mode="border")
    assert cut(noise(30, 90), padded, list(CROP_SETS)).inputs.shape[1:] == (3, 32, 32)


def test_a_strip_takes_no_more_memory_than_another_image() -> None:
    assert len(cut(noise(10, 20_000), preprocessing(), ["10", "144"]).inputs) > 100


def test_crops_that_a_network_cannot_take_are_refused() -> None:
    wide = preprocessing(image_size=(192, 256))
    with pytest.raises(UserError, match=r"'144' are squares, but this network sees images of 192 x 256 px: take 10 or"):
        check("144", wide)
    check("10", wide)
    with pytest.raises(UserError, match=r"for which 4 x 4 px are too few: take 1 or mirror"):
        check("10", preprocessing(4))
    with pytest.raises(UserError, match=r"no crops '12': take some of 1, mirror, scales, 5, d4, 10, 144\."):
        check("12", preprocessing())
