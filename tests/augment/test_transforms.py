"""Each transform of ``standard`` and ``strong``, alone and certain, does what its name says: seen on known images.

Where a transform moves pixels, the image is a chart whose colors are its coordinates, so that each pixel of the result
tells where it came from.
"""

from collections.abc import Callable

import numpy as np
import pytest

from graftline.augment.draw import Draw
from graftline.augment.policy import Augment, Policy
from graftline.augment.preprocess import Preprocessing

LoadPolicy = Callable[..., Policy]

SIZE = 128  # px
SQUARE = Preprocessing((SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
CHART = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)  # red = 2 x, green = 2 y
CHART[..., 0] = 2 * np.arange(SIZE)
CHART[..., 1] = 2 * np.arange(SIZE)[:, np.newaxis]
INNER = slice(SIZE // 4, 3 * SIZE // 4)  # far from the reflections at the border
DRAWS = [Draw(0, index) for index in range(60)]


def only(load_policy: LoadPolicy, policy: str, name: str, *overrides: str) -> Augment:
    """Return the augmentation that does ``name`` of the policy always, and nothing else."""
    full = load_policy(policy, f"augment.transforms.{name}.p=1", *overrides)
    return Augment(Policy(policy, None, {name: full.transforms[name]}), SQUARE, seed=0)


def variants(augment: Augment, image: np.ndarray) -> list[np.ndarray]:
    results = []
    for draw in DRAWS:
        result, happened = augment.augment(image, draw)
        assert happened == list(augment.policy.transforms)
        results.append(result)
    return results


def origins(image: np.ndarray) -> np.ndarray:
    """Return where each inner pixel came from on the chart, (n, 2) px as x and y."""
    return image[INNER, INNER, :2].reshape(-1, 2) / 2


def fit_affine(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the (2, 2) matrix from places in the result to their origins, and what it fails to explain (rms, px)."""
    y, x = np.mgrid[INNER, INNER]
    places = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
    solution, *_ = np.linalg.lstsq(places, origins(image), rcond=None)
    return solution[:2].T, float(np.sqrt(np.mean((places @ solution - origins(image)) ** 2)))


def test_crop_keeps_a_part_of_the_image_within_the_limits(load_policy: LoadPolicy) -> None:
    policy = load_policy("standard")
    assert policy.crop is not None
    augment = Augment(Policy("crop", policy.crop, {}), SQUARE, seed=0)
    areas, stretches, lefts = [], [], []
    for draw in DRAWS:
        result, happened = augment.augment(CHART, draw)
        assert happened == ["crop"]
        (x_by_x, x_by_y), (y_by_x, y_by_y) = fit_affine(result)[0]
        assert abs(x_by_y) < 0.01  # a box, neither turned nor sheared
        assert abs(y_by_x) < 0.01
        largest = min(1, x_by_x / y_by_y) * min(1, y_by_y / x_by_x)
        areas.append(x_by_x * y_by_y / largest)
        stretches.append(x_by_x / y_by_y)
        lefts.append(result[0, 0, 0])
    assert 0.58 < min(areas) < 0.7
    assert 0.9 < max(areas) < 1.02
    assert 0.78 < min(stretches) < 0.9
    assert 1.1 < max(stretches) < 1.27
    assert np.std(lefts) > 5  # not always the same place


def test_mirror_swaps_left_and_right(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    augment = only(load_policy, "standard", "mirror")
    for result in variants(augment, cat)[:3]:
        np.testing.assert_array_equal(result, SQUARE.frame(cat)[:, ::-1])


def test_rotate_turns_either_way_within_the_limits(load_policy: LoadPolicy) -> None:
    angles = []
    for result in variants(only(load_policy, "standard", "rotate"), CHART):
        matrix, unexplained = fit_affine(result)
        assert unexplained < 0.5
        angle = np.arctan2(matrix[0, 1], matrix[0, 0])
        turned = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        np.testing.assert_allclose(matrix, turned, atol=0.01)  # turned only: no scale, no shear
        angles.append(np.degrees(angle))
    assert -12.5 < min(angles) < -8
    assert 8 < max(angles) < 12.5


def test_shear_slants_and_does_not_turn(load_policy: LoadPolicy) -> None:
    slants = []
    for result in variants(only(load_policy, "standard", "shear"), CHART):
        matrix, unexplained = fit_affine(result)
        assert unexplained < 0.5
        np.testing.assert_allclose(np.diag(matrix), 1, atol=0.04)
        slants.append((matrix[0, 1], matrix[1, 0]))
    limit = np.tan(np.radians(8)) + 0.03
    assert np.abs(slants).max() < limit
    assert np.ptp(slants, axis=0).min() > limit  # both edges, either way
    assert np.abs(np.sum(slants, axis=1)).max() > 0.1  # a turn would have opposite slants


@pytest.mark.parametrize("policy", ["standard", "strong"])
def test_warp_moves_places_differently_and_keeps_their_order(load_policy: LoadPolicy, policy: str) -> None:
    unexplained = []
    for result in variants(only(load_policy, policy, "warp"), CHART):
        unexplained.append(fit_affine(result)[1])
        y, x = np.mgrid[INNER, INNER]
        moved = np.abs(origins(result) - np.stack([x.ravel(), y.ravel()], axis=1))
        assert moved.max() < 0.25 * SIZE
        assert (np.diff(result[INNER, INNER, 0].astype(int), axis=1) >= 0).all()  # nothing is folded over
        assert (np.diff(result[INNER, INNER, 1].astype(int), axis=0) >= 0).all()
    assert np.median(unexplained) > 0.7  # px that no rotation, shear or scale explains: the warp is local


def test_pca_adds_one_color_along_the_images_own_components(load_policy: LoadPolicy) -> None:
    direction = np.array([0.8, -0.6, 0.0])  # the only one in which this image varies; no channel reaches an end
    levels = np.random.default_rng(0).normal(0, 20, (SIZE, SIZE, 1)).clip(-50, 50)
    image = np.rint(128 + levels * direction).astype(np.uint8)
    alongs = []
    for result in variants(only(load_policy, "standard", "pca"), image):
        change = result.astype(int) - image
        assert (change == change[0, 0]).all()
        along = change[0, 0] @ direction
        assert np.abs(change[0, 0] - along * direction).max() < 1
        alongs.append(along)
    assert 0.1 < np.std(alongs) / 20 < 0.2  # alpha is 0.15
    assert min(alongs) < 0 < max(alongs)


def test_pca_leaves_a_single_color_alone(load_policy: LoadPolicy) -> None:
    image = np.full((SIZE, SIZE, 3), (10, 120, 250), dtype=np.uint8)
    for result in variants(only(load_policy, "standard", "pca"), image):
        np.testing.assert_array_equal(result, image)


def jitter(load_policy: LoadPolicy, kind: str) -> Augment:
    others = {"brightness", "contrast", "saturation", "hue"} - {kind}
    return only(load_policy, "standard", "jitter", *(f"augment.transforms.jitter.{other}=0" for other in others))


def test_jitter_brightness_scales_all_levels(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    image = SQUARE.frame(cat)
    factors = []
    for result in variants(jitter(load_policy, "brightness"), cat):
        factor = (result.astype(float).sum()) / image.sum()
        np.testing.assert_allclose(result, (image * factor).clip(0, 255), atol=2)
        factors.append(factor)
    assert 0.79 < min(factors) < 0.85
    assert 1.15 < max(factors) < 1.21


def test_jitter_contrast_stretches_around_the_mean(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    image = SQUARE.frame(cat)
    results = variants(jitter(load_policy, "contrast"), cat)
    factors = [result.std() / image.std() for result in results]
    assert 0.79 < min(factors) < 0.87
    assert 1.1 < max(factors) < 1.21
    np.testing.assert_allclose([result.mean() for result in results], image.mean(), atol=5)


def test_jitter_saturation_keeps_the_lightness(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    luma = np.array([0.299, 0.587, 0.114])
    image = SQUARE.frame(cat)
    factors = []
    for result in variants(jitter(load_policy, "saturation"), cat):
        np.testing.assert_allclose(result @ luma, image @ luma, atol=2)
        colorful = [np.ptp(picture.astype(int), axis=2).mean() for picture in (result, image)]
        factors.append(colorful[0] / colorful[1])
    assert 0.79 < min(factors) < 0.87
    assert 1.1 < max(factors) < 1.21


def test_jitter_hue_changes_reds_only_a_little(load_policy: LoadPolicy) -> None:
    from colorsys import rgb_to_hsv

    image = np.full((SIZE, SIZE, 3), (200, 120, 40), dtype=np.uint8)  # orange, hue 30 degrees
    hues = [rgb_to_hsv(*result[0, 0] / 255)[0] * 360 for result in variants(jitter(load_policy, "hue"), image)]
    assert 21 < min(hues) < 27  # 0.02 of 360 degrees is 7, and OpenCV counts in steps of 2
    assert 33 < max(hues) < 39


@pytest.mark.parametrize("name", ["pca", "jitter"])
def test_color_transforms_leave_gray_gray_and_change_it(load_policy: LoadPolicy, cat: np.ndarray, name: str) -> None:
    gray = cat[..., 1:2].repeat(3, axis=2)
    results = variants(only(load_policy, "standard", name), gray)
    for result in results:
        np.testing.assert_array_equal(result, result[..., :1].repeat(3, axis=2))
    assert sum((result != SQUARE.frame(gray)).any() for result in results) > 50


def test_blur_takes_away_detail_only(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    image = SQUARE.frame(cat).astype(float)
    for result in variants(only(load_policy, "strong", "blur"), cat):
        assert np.abs(np.diff(result.astype(float), axis=0)).mean() < np.abs(np.diff(image, axis=0)).mean()
        assert abs(result.mean() - image.mean()) < 1


def test_erase_covers_small_boxes(load_policy: LoadPolicy) -> None:
    white = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    for result in variants(only(load_policy, "strong", "erase"), white):
        erased = (result != white).all(axis=2)
        assert set(np.unique(result)) == {127, 255}
        assert 0.009 < erased.mean() < 0.13
