import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from PIL import Image

from graftline.augment.draw import Draw
from graftline.augment.policy import Augment, Policy
from graftline.augment.preprocess import Preprocessing
from graftline.augment.preview import VARIANTS, preview_sheet

LoadPolicy = Callable[..., Policy]

COLOR = Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3)


def pictures(axes: list[Axes]) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for each in axes for image in each.images]


def test_shows_the_original_and_12_named_variants(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    policy = load_policy("strong")
    figure = preview_sheet(cat, policy, COLOR, seed=3)
    original, *variants = pictures(figure.axes)
    np.testing.assert_array_equal(original, cat)
    captions = [text.get_text().replace("\n", " · ") for each in figure.axes for text in each.texts]
    assert captions[0].startswith("original, 451")
    augment = Augment(policy, COLOR, seed=3)
    expected = [augment.augment(cat, Draw(number, 0)) for number in range(12)]
    assert len(variants) == VARIANTS == 12
    for variant, (picture, _) in zip(variants, expected, strict=True):
        np.testing.assert_array_equal(variant, picture)
    assert captions[1:] == [" · ".join(names) for _, names in expected]
    assert "strong" in figure.texts[0].get_text()


@pytest.mark.parametrize("image_size", [(64, 64), (48, 96), (96, 48)])
def test_pictures_lie_in_the_sheet_and_not_on_each_other(
    load_policy: LoadPolicy, cat: np.ndarray, image_size: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(image_size, (0.5,), (0.5,), channels=1)
    figure = preview_sheet(cat, load_policy("standard"), preprocessing, seed=0)
    figure.draw_without_rendering()
    boxes = [image.get_window_extent() for each in figure.axes for image in each.images]
    texts = [text.get_window_extent() for each in figure.axes for text in each.texts]
    for box in (*boxes, *texts):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
    for number, box in enumerate(boxes):
        assert not any(box.shrunk(0.99, 0.99).overlaps(other) for other in (*boxes[:number], *texts))


def test_the_pictures_can_be_seen(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    figure = preview_sheet(cat, load_policy("none"), COLOR, seed=0)
    file = io.BytesIO()
    figure.savefig(file)
    seen = np.asarray(Image.open(file).convert("RGB"))
    for axes in figure.axes:
        for picture in axes.images:
            box = picture.get_window_extent()
            rows = slice(round(len(seen) - box.y1), round(len(seen) - box.y0))
            found = seen[rows, round(box.x0) : round(box.x1)].mean(axis=(0, 1))
            np.testing.assert_allclose(found, np.asarray(picture.get_array()).mean(axis=(0, 1)), atol=2)


def test_saves_a_png_and_leaves_pyplot_alone(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    file = io.BytesIO()
    preview_sheet(cat, load_policy("none"), COLOR, seed=0).savefig(file)
    assert Image.open(file).format == "PNG"
    assert pyplot.get_fignums() == []


def test_of_a_large_original_no_more_is_drawn_than_is_seen(load_policy: LoadPolicy) -> None:
    figure = preview_sheet(np.zeros((30_000, 20, 3), np.uint8), load_policy("none"), COLOR, seed=0)
    original = pictures(figure.axes)[0]
    assert original.shape[0] <= 1_000
    assert next(text.get_text() for each in figure.axes for text in each.texts).endswith(
        "20 \N{MULTIPLICATION SIGN} 30000 px"
    )
