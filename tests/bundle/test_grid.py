"""Members and crops together give what each gives alone, averaged."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax as scipys_log_softmax
from scipy.special import softmax as scipys_softmax

from graftline.augment.crops import cut
from graftline.bundle import grid as grid_module
from graftline.bundle.decision import Decision
from graftline.bundle.grid import Average, Grid, log_softmax, mean_logits, true_log_probabilities
from graftline.bundle.images import ImageLike, read_pixels
from graftline.bundle.predictor import Predictor, softmax
from graftline.data.decode import Decoding
from graftline.data.decoding import PLAIN
from graftline.errors import UserError
from graftline.execution import Execution


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    sizes = generator.integers(40, 120, (9, 2))
    return [
        (generator.random((height, width, 3)) * generator.integers(50, 256, 3)).astype(np.uint8)
        for height, width in sizes
    ]


@pytest.fixture
def member(bundle: Path) -> Predictor:
    return Predictor.from_directory(bundle, execution=Execution(threads=2))


def grid(*members: Predictor, crops: tuple[str, ...]) -> Grid:
    return Grid(members, crops, PLAIN, tuple(f"member {number}" for number in range(len(members))))


def other(member: Predictor) -> Predictor:
    """A member with another order of classes, and another way to prepare images."""
    engine, order = member.engine, [2, 0, 1]
    return replace(
        member,
        class_names=tuple(member.class_names[number] for number in order),
        preprocessing=replace(member.preprocessing, crop_pct=0.7),
        engine=lambda images, outputs: [engine(images, outputs)[0][:, order]],
    )


def test_means_of_probabilities_are_those_of_scipy() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (4, 5, 3)).astype(np.float32)
    shares = np.array([0.5, 0.0, 0.25, 0.25])
    expected = np.tensordot(shares, scipys_softmax(logits.astype(np.float64), axis=-1), axes=1)
    np.testing.assert_allclose(
        np.exp(mean_logits(logits, shares, "probabilities").astype(np.float64)), expected, rtol=1e-5
    )
    np.testing.assert_array_equal(mean_logits(logits, np.array([0, 1.0, 0, 0]), "probabilities"), logits[1])
    np.testing.assert_allclose(log_softmax(logits), scipys_log_softmax(logits.astype(np.float64), axis=-1))


@contextmanager
def largest_memory() -> Iterator[list[int]]:
    """Yield a list that holds, afterwards, how many bytes were held at once."""
    held = list[int]()
    tracemalloc.start()
    try:
        yield held
        held.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_averages_are_computed_in_blocks(average: Average, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (2, 20_000, 100)).astype(np.float32)
    labels, shares = np.arange(20_000) % 100, np.array([0.25, 0.75])
    few = mean_logits(logits[:, 4_990:5_010], shares, average)
    monkeypatch.setattr(grid_module, "BLOCK", 200_000)
    with largest_memory() as held:
        mean = mean_logits(logits, shares, average)
        losses = true_log_probabilities(logits[0], labels)
    assert held[0] < logits.nbytes, "of which the answer is a half"
    np.testing.assert_allclose(mean[4_990:5_010], few, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses, scipys_log_softmax(logits[0].astype(np.float64), axis=-1)[range(20_000), labels])


def test_logits_of_many_images_are_kept_once(member: Predictor, pictures: list[np.ndarray]) -> None:
    names = tuple(map(str, range(20_000)))
    many = replace(
        member, class_names=names, engine=lambda images, _: [np.zeros((len(images), len(names)), np.float32)]
    )
    with largest_memory() as held:
        found = grid(many, crops=("1",)).logits(10 * pictures, batch_size=4)
    assert held[0] < 1.8 * found.nbytes, "twice as much where they were joined"
    own = grid(member, crops=("1",))
    np.testing.assert_array_equal(own.logits(iter(pictures), 2), own.logits(pictures, 2))


def test_logits_of_crops_are_averaged_where_that_was_asked(member: Predictor, pictures: list[np.ndarray]) -> None:
    found = replace(grid(member, crops=("1", "mirror")), average="logits").logits(pictures)[0]
    np.testing.assert_array_equal(found[0], member.logits(pictures))
    for row, picture in enumerate(pictures):
        mirrored = member.engine(cut(picture, member.preprocessing, ("mirror",)).inputs, ["logits"])[0]
        assert len(mirrored) == 2
        expected = log_softmax(member.calibration.apply(mirrored)).mean(axis=0)
        np.testing.assert_allclose(log_softmax(found[1, row]), log_softmax(expected), rtol=1e-4, atol=1e-3)


def test_one_crop_of_one_member_is_bit_for_bit_what_it_predicts(member: Predictor, pictures: list[np.ndarray]) -> None:
    found = grid(member, crops=("1",)).logits(pictures, batch_size=4)
    np.testing.assert_array_equal(found[0, 0], member.logits(pictures, batch_size=4))


def test_each_cell_is_the_mean_over_its_own_crops(member: Predictor, pictures: list[np.ndarray]) -> None:
    members = (member, other(member))
    sets, pictures = ("1", "5", "10", "144"), pictures[:4]
    done: list[int] = []
    found = grid(*members, crops=sets).logits(iter(pictures), batch_size=7, on_progress=done.append)
    assert sum(done) == len(pictures)
    for number, one in enumerate(members):
        order = [one.class_names.index(name) for name in member.class_names]
        for column, name in enumerate(sets):
            for row, picture in enumerate(pictures):
                inputs = cut(picture, one.preprocessing, [name]).inputs
                (logits,) = one.engine(inputs, ["logits"])
                expected = scipys_softmax(logits, axis=1).mean(axis=0)[order]
                actual = scipys_softmax(found[number, column, row])
                np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_each_image_is_decoded_once_for_all_members_and_crops(
    member: Predictor, pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(tmp_path / f"{number}.png") for number in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        Image.fromarray(picture).save(file)
    decoded = list[str]()

    def counted(image: ImageLike, decoding: Decoding) -> np.ndarray:
        decoded.append(str(image))
        return read_pixels(image, decoding)

    monkeypatch.setattr(grid_module, "read_pixels", counted)
    members, sets = (member, other(member), member), ("1", "5", "10", "d4")
    found = grid(*members, crops=sets).logits(files, batch_size=4)
    assert found.shape[:3] == (3, 4, len(pictures))
    assert sorted(decoded) == sorted(files)


def test_decisions_are_those_of_the_members_whatever_their_order_of_classes(
    member: Predictor, pictures: list[np.ndarray]
) -> None:
    for decision in (Decision(thresholds=(0.9, 0.1, 0.4)), Decision(costs=((0, 1, 9), (1, 0, 1), (1, 2, 0)))):
        turned = replace(other(member), decision=decision)
        both = grid(member, turned, crops=("1",))
        assert both.decisions[0] == member.decision
        found = both.decisions[1].answer(softmax(both.logits(pictures)[1, 0]))
        expected = decision.answer(turned.predict(pictures))
        assert [both.class_names[number] for number in found] == [turned.class_names[number] for number in expected]


def test_unreadable_images_are_passed_over_or_named(member: Predictor, pictures: list[np.ndarray]) -> None:
    images: list[np.ndarray | bytes] = [pictures[0], b"", pictures[1], b"no image"]
    crops = grid(member, crops=("1", "10"))
    ((found, flaws, _),) = crops.steps(images, batch_size=100)
    assert sorted(flaws) == [1, 3]
    assert np.isnan(found[:, :, [1, 3]]).all()
    assert np.isfinite(found[:, :, [0, 2]]).all()
    with pytest.raises(UserError, match="Image number 1, from 0, cannot be read"):
        crops.logits(images)


def test_no_images_are_no_rows(member: Predictor) -> None:
    assert grid(member, crops=("1", "5")).logits([]).shape == (1, 2, 0, 3)


def test_passes_are_the_different_crops(member: Predictor) -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    assert grid(member, crops=("1", "10", "144")).passes(image) == [[1, 10, 48]]


def test_members_that_do_not_go_together_are_refused(member: Predictor) -> None:
    stranger = replace(member, class_names=("ant", "bee/wasp", "dog"))
    with pytest.raises(UserError, match=r"member 1 does not know the same classes as member 0: .* has no 'cat'"):
        grid(member, stranger, crops=("1",))
    wide = replace(member, preprocessing=replace(member.preprocessing, image_size=(64, 96)))
    with pytest.raises(UserError, match=r"member 1: The crops 'd4' are squares"):
        grid(member, wide, crops=("1", "d4"))
