"""Policies as they are shipped, and the draws that are made from them."""

import pickle
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from random import Random

import albumentations
import numpy as np
import pytest

from graftline.augment.color import PCAShift
from graftline.augment.draw import Draw
from graftline.augment.policy import Augment, EvalTransform, Policy, RandomCrop
from graftline.augment.preprocess import Preprocessing
from graftline.augment.symmetry import D4
from graftline.errors import UserError

LoadPolicy = Callable[..., Policy]

CONF = Path(__file__).parents[2] / "conf" / "augment"
NAMES = sorted(path.stem for path in CONF.rglob("*.yaml"))
COLOR = Preprocessing((48, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GRAY = Preprocessing((32, 32), (0.5,), (0.25,), channels=1)


def test_d4_draws_all_symmetries_that_keep_the_shape() -> None:
    d4 = D4(p=1.0)
    for shape, number in (((4, 4, 3), 8), ((4, 6, 3), 4)):
        image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        results = {d4(image=image)["image"].tobytes() for _ in range(100)}
        assert len(results) == number
        assert all(d4(image=image)["image"].shape == shape for _ in range(20))


def test_six_policies_are_shipped() -> None:
    assert NAMES == ["auto", "d4", "light", "none", "standard", "strong"]


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_makes_the_networks_input_of_any_image(
    load_policy: LoadPolicy, cat: np.ndarray, name: str
) -> None:
    policy = load_policy(name)
    assert policy.name == name
    gray = cat[..., :1].repeat(3, axis=2)
    for preprocessing in (COLOR, GRAY):
        augment = Augment(policy, preprocessing, seed=0)
        for image in (cat, gray, cat[:40, :5], cat[:3], np.zeros((64, 48, 3), dtype=np.uint8)):
            for index in range(10):
                result = augment(image, Draw(0, index))
                assert result.shape == (preprocessing.channels, *preprocessing.image_size)
                assert result.dtype == np.float32
                assert np.isfinite(result).all()


def test_standard_holds_all_six_of_the_notes(load_policy: LoadPolicy) -> None:
    policy = load_policy("standard")
    assert isinstance(policy.crop, RandomCrop)  # random cropping
    assert {name: type(transform) for name, transform in policy.transforms.items()} == {
        "mirror": albumentations.HorizontalFlip,
        "rotate": albumentations.Rotate,
        "shear": albumentations.Affine,
        "warp": albumentations.GridDistortion,  # local warping
        "pca": PCAShift,  # color shifting
        "jitter": albumentations.ColorJitter,
    }
    assert all(0 < transform.p < 1 for transform in policy.transforms.values())


def test_light_crops_gently_and_mirrors(load_policy: LoadPolicy) -> None:
    light, standard = load_policy("light"), load_policy("standard")
    assert light.crop is not None
    assert standard.crop is not None
    assert light.crop.scale[0] > standard.crop.scale[0]
    assert list(light.transforms) == ["mirror", "jitter"]


def test_none_is_the_evaluation(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    for preprocessing in (COLOR, GRAY):
        augment, evaluate = Augment(load_policy("none"), preprocessing, seed=0), EvalTransform(preprocessing)
        for draw in (Draw(0, 0), Draw(3, 7)):
            np.testing.assert_array_equal(augment(cat, draw), evaluate(cat, draw))
            np.testing.assert_array_equal(evaluate(cat, draw), preprocessing(cat))


def test_one_transform_can_be_changed_or_left_out(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    policy = load_policy(
        "standard", "augment.transforms.mirror=null", "augment.transforms.rotate.p=1", "augment.crop=null"
    )
    augment = Augment(policy, COLOR, seed=0)
    for index in range(20):
        _, happened = augment.augment(cat, Draw(0, index))
        assert happened[0] == "rotate"
        assert "mirror" not in happened


def test_unknown_settings_are_refused() -> None:
    with pytest.warns(UserWarning, match="limits"):
        transform = albumentations.Rotate(limits=3)
    with pytest.raises(UserError, match=r"Policy.transforms.turn \(Rotate\) has no setting 'limits'"):
        Policy("mine", None, {"turn": transform})


def test_a_draw_depends_on_seed_epoch_and_index_only(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    draws = [Draw(epoch, index) for epoch in range(4) for index in range(10)]
    first = Augment(load_policy("strong"), COLOR, seed=0)
    expected = {draw: first(cat, draw) for draw in draws}
    other = pickle.loads(pickle.dumps(first))  # as workers get it
    for draw in reversed(draws):  # in another order
        np.testing.assert_array_equal(other(cat, draw), expected[draw])
    assert len({result.tobytes() for result in expected.values()}) == len(draws)
    another_seed = Augment(load_policy("strong"), COLOR, seed=1)
    assert not {another_seed(cat, draw).tobytes() for draw in draws} & {r.tobytes() for r in expected.values()}


def test_transforms_come_up_independently_and_as_often_as_they_say(load_policy: LoadPolicy, cat: np.ndarray) -> None:
    policy = load_policy("standard")
    augment = Augment(policy, Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3), seed=0)
    image = cat[::20, ::20].copy()
    came_up = np.array(
        [
            [name in happened for name in policy.transforms]
            for _, happened in (augment.augment(image, Draw(number % 10, number // 10)) for number in range(1500))
        ]
    )
    expected = [transform.p for transform in policy.transforms.values()]
    np.testing.assert_allclose(came_up.mean(axis=0), expected, atol=0.05)
    correlation = np.corrcoef(came_up.T)
    for one, other in combinations(range(len(expected)), 2):
        assert abs(correlation[one, other]) < 0.1


def test_crop_is_as_free_on_a_panorama_as_on_a_square() -> None:
    crop, chance = RandomCrop((0.5, 1.0), (0.8, 1.25)), Random(0)
    boxes = np.array([crop.box((100, 900), 1.0, chance) for _ in range(500)])
    left, top, right, bottom = boxes.T
    assert (boxes >= 0).all()
    assert right.max() <= 900
    assert bottom.max() <= 100
    assert left.min() < 20  # from one end to the other
    assert right.max() > 880
    stretch = (right - left) / (bottom - top)
    assert stretch.min() >= 0.8 - 1e-9
    assert stretch.max() <= 1.25 + 1e-9
    assert abs(np.log(stretch).mean()) < 0.02  # as often wide as high


def test_crop_of_a_squashing_network_may_be_the_whole_image(cat: np.ndarray) -> None:
    whole = Policy("whole", RandomCrop((1.0, 1.0), (1.0, 1.0)), {})
    squash = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0, crop_mode="squash")
    np.testing.assert_allclose(Augment(whole, squash, 0)(cat, Draw(0, 0)), squash(cat), atol=0.01)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 1.1), (0.9, 0.8)])
def test_impossible_crop_scales_are_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"RandomCrop.scale"):
        RandomCrop(scale, (1.0, 1.0))


@pytest.mark.parametrize("ratio", [(0.0, 1.0), (1.2, 1.1)])
def test_impossible_crop_ratios_are_refused(ratio: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"RandomCrop.ratio"):
        RandomCrop((0.5, 1.0), ratio)
