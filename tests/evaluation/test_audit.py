"""The audit finds what is planted: flipped labels, copies, dark and blurred images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from graftline.data.decoding import PLAIN
from graftline.data.image_facts import FACTS, ImageFacts, find_facts, look_at
from graftline.evaluation.audit import audit
from graftline.evaluation.label_errors import find_label_errors, units_of
from graftline.evaluation.near_duplicates import (
    COPIES,
    Likeness,
    alike_pairs,
    find_near_duplicates,
    make_copies,
    measure_likeness,
    unit,
)
from graftline.evaluation.odd_images import find_odd_images

GENERATOR = np.random.default_rng(0)


def test_flipped_labels_of_digits_are_found() -> None:
    """5 % of the labels of scikit-learn's digits, by their pixels; a head is right for 95 % of these images."""
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    flipped = np.random.default_rng(1).choice(len(labels), len(labels) // 20, replace=False)
    given = labels.copy()
    given[flipped] = (labels[flipped] + np.random.default_rng(2).integers(1, 10, len(flipped))) % 10
    found = find_label_errors(digits.data, given, 10, np.arange(len(labels)))
    planted = np.zeros(len(labels), bool)
    planted[flipped] = True
    assert planted[found.likely].sum() >= 0.7 * len(flipped)  # cleanlab's own estimate of which are wrong
    assert planted[found.likely].mean() >= 0.6
    assert (found.suggested[flipped] == labels[flipped]).mean() > 0.9
    order = np.argsort(found.quality)
    assert planted[order[: 2 * len(flipped)]].sum() >= 0.95 * len(flipped)  # who looks at 10 % finds 95 %


def test_the_quality_of_a_label_is_its_probability_by_a_fit_without_the_image() -> None:
    digits = load_digits()
    rows = digits.target < 3
    activations, labels = digits.data[rows], digits.target[rows].astype(np.int64)
    found = find_label_errors(activations, labels, 4, np.arange(rows.sum()))  # class 3 has no image
    assert found.quality.shape == labels.shape
    assert ((found.quality >= 0) & (found.quality <= 1)).all()
    assert (found.suggested == labels).mean() > 0.98
    assert not (found.likely & (found.suggested == labels)).any()


@pytest.mark.parametrize(("images", "units"), [(1, [60]), (15, [60] * 15), (15, range(60, 75))])
@pytest.mark.filterwarnings("error")  # cleanlab's, of a class of too few images
def test_a_label_that_no_head_knows_is_not_judged(images: int, units: Sequence[int]) -> None:
    """Two classes of 30 images far from each other, and a third one that is in one fold where it is one unit."""
    labels = np.repeat([0, 1, 2], [30, 30, images])
    generator = np.random.default_rng(0)
    activations = 8 * np.eye(3, 9)[labels] + generator.normal(size=(len(labels), 9))
    wrong = 0
    activations[wrong] += 8 * (np.eye(3, 9)[1] - np.eye(3, 9)[0])
    found = find_label_errors(activations, labels, 3, np.array([*range(60), *units]))
    assert found.likely.nonzero()[0].tolist() == [wrong]
    assert np.isnan(found.quality).tolist() == ((labels == 2) & (len(set(units)) == 1)).tolist()


def test_what_belongs_together_is_one_unit() -> None:
    pairs = pd.DataFrame({"first": [0, 3], "second": [4, 5]})
    assert units_of(["a", "a", "b", "c", "d", "e"], pairs).tolist() == [0, 0, 1, 2, 0, 2]


@pytest.mark.parametrize("least", [0.3, 0.6, 0.95])
def test_all_pairs_above_a_threshold_are_found(least: float) -> None:
    centers = GENERATOR.normal(size=(12, 300))
    vectors = unit(centers[np.arange(700) % 12] + GENERATOR.normal(size=(700, 300)) * np.linspace(0.1, 2, 700)[:, None])
    products = np.triu(vectors @ vectors.T, k=1)
    expected = {
        (row, int(column))
        for row, products_of_row in enumerate(products)
        for column in np.argsort(-products_of_row)[:20]  # of an image that is like very many, those most alike
        if products_of_row[column] >= least
    }
    found = {
        (int(a), int(b)) for first, second in alike_pairs(vectors, least) for a, b in zip(first, second, strict=True)
    }
    assert found == expected


def photograph(seed: int, size: int = 64) -> np.ndarray:
    """A smooth picture with some detail, each seed another."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64)
    pixels: np.ndarray = (smooth + generator.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    return pixels


def embed(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stands for a network: what is left of an image at 4 x 4 px."""
    small = [np.asarray(Image.fromarray(one).resize((4, 4), Image.Resampling.BOX), np.float64) for one in images]
    return np.stack([one.ravel() - 128 for one in small])


def test_copies_are_found_and_others_are_not() -> None:
    """Thresholds from some images, copies of others; they are 40 images of which each is another."""
    likeness = measure_likeness([photograph(seed) for seed in range(30)], embed)
    originals = [photograph(seed) for seed in range(100, 140)]
    copied = list(range(10))
    images = originals + [copy for number in copied for copy in make_copies(originals[number])]
    thumbnails = np.stack([look_at(image)[1] for image in images])
    pairs = find_near_duplicates(thumbnails, embed(images), likeness)
    of = [*range(40), *(number for number in copied for _ in COPIES)]
    found = {(of[first], of[second]) for first, second in zip(pairs["first"], pairs["second"], strict=True)}
    assert all(first == second for first, second in found)  # no two different images
    with_original = pairs[pairs["first"] < 40]
    assert len(with_original) >= 0.8 * len(copied) * len(COPIES)
    assert pairs["pixels"].is_monotonic_decreasing


def test_blank_images_say_nothing_of_copies() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    photographs = [photograph(seed) for seed in range(45)]
    likeness = measure_likeness([*photographs, *3 * [black]], embed)
    assert likeness == measure_likeness(photographs, embed)
    assert likeness.pixels > 0.9
    same = unit(np.ones((3, 9)))
    assert find_near_duplicates(same, same, measure_likeness([black], embed)).empty


def test_facts_are_those_of_the_image(tmp_path: Path) -> None:
    dim = np.full((40, 60, 3), 51, np.uint8)
    dim[:, 30:] = 102
    (brightness, contrast, _, aspect, megapixels), thumbnail = look_at(dim)
    assert brightness == pytest.approx(0.3, abs=1e-3)
    assert contrast == pytest.approx(0.1, abs=1e-3)
    assert (aspect, megapixels) == (1.5, 0.0024)
    assert np.linalg.norm(thumbnail) == pytest.approx(1, abs=1e-4)
    sharp = look_at(photograph(0, 128))[0][2]
    blurred = np.asarray(Image.fromarray(photograph(0, 128)).filter(ImageFilter.GaussianBlur(3)))
    assert look_at(blurred)[0][2] < sharp / 3
    assert look_at((photograph(0, 128) // 4).astype(np.uint8))[0][2] == pytest.approx(sharp, rel=0.1)  # dark, as sharp
    assert not look_at(np.zeros((9, 9, 3), np.uint8))[1].any()
    for number in range(20):
        Image.fromarray(photograph(number)).save(tmp_path / f"{number:02}.png")
    paths = [str(file) for file in sorted(tmp_path.iterdir())]
    done: list[int] = []
    facts = find_facts(paths, PLAIN, workers=2, on_progress=done.append)
    assert sum(done) == 20
    np.testing.assert_allclose(facts.table.iloc[3], look_at(photograph(3))[0], rtol=1e-6)


def test_odd_images_are_named() -> None:
    images = [photograph(seed) for seed in range(200)]
    images[7] = (images[7] * 0.05).astype(np.uint8)
    images[8] = np.asarray(Image.fromarray(images[8]).filter(ImageFilter.GaussianBlur(4)))
    images[9] = images[9][:, :20]
    facts = pd.DataFrame([look_at(image)[0] for image in images], columns=list(FACTS))
    odd = find_odd_images(facts)
    named = {(row, name) for row, name in zip(odd["row"], odd["name"], strict=True)}
    assert {(7, "dark"), (8, "blurred"), (9, "narrow"), (9, "small")} <= named
    assert odd["name"].value_counts().max() <= 2  # one in a hundred


def test_the_table_asks_for_a_decision_on_each_image_once(caplog: pytest.LogCaptureFixture) -> None:
    """Wrong labels first; of a pair, the copy that is trained on may go; what was settled is not asked again."""
    digits = load_digits()
    labels = digits.target.astype(np.int64)[:400]
    given = labels.copy()
    given[:8] = (labels[:8] + 3) % 10
    names = [str(number) for number in range(10)]
    table = pd.DataFrame(
        {
            "sha256": [f"{number:064x}" for number in range(400)],
            "path": [f"/images/{number}.png" for number in range(400)],
            "label": [names[label] for label in given],
            "split": np.where(np.arange(400) < 300, "train", "test"),
        }
    )
    thumbnails = unit(GENERATOR.normal(size=(400, 50)))
    thumbnails[350] = thumbnails[20]
    activations = digits.data[:400].copy()
    activations[350] = activations[20]
    facts = pd.DataFrame(0.5, range(400), list(FACTS))
    facts.loc[30, "brightness"] = 0.001
    groups = [sha256 if label != 1 else "ones" for sha256, label in zip(table["sha256"], given, strict=True)]
    found = audit(table, activations, given, names, groups, ImageFacts(facts, thumbnails), Likeness(0.99, 0.99))
    ones = (given == 1).sum()
    assert f"{ones} labels cannot be checked: all images of “1” ({ones}) are of one group" in caplog.text
    settled = pd.DataFrame({"sha256": [table["sha256"][0]], "label": [table["label"][0]]})
    decisions = found.decisions(settled)
    assert decisions.columns.tolist() == ["sha256", "path", "label", "suggested", "score", "reason", "decision"]
    assert not decisions.duplicated("sha256").any()
    assert (decisions["decision"] == "").all()
    assert table["sha256"][0] not in set(decisions["sha256"])
    wrong = decisions[decisions["reason"].str.contains("label is probably wrong")]
    assert set(table["sha256"][1:8]) <= set(wrong["sha256"])
    assert wrong.index.tolist() == list(range(len(wrong)))
    assert wrong["score"].is_monotonic_increasing
    copy = decisions[decisions["sha256"] == table["sha256"][20]].iloc[0]
    assert "almost the same as /images/350.png (test" in copy["reason"]
    assert found.across.tolist() == [True]
    dark = decisions[decisions["sha256"] == table["sha256"][30]].iloc[0]
    assert "dark: 0.001, usual is 0.5" in dark["reason"]


def test_files_that_are_the_same_are_not_asked_to_go() -> None:
    """A decision on an image is one on all of its copies: one that says drop would leave none."""
    names = ["sky", "sea"]
    contents = np.array([*range(40), 7, 7, 7])  # the last three are copies of the eighth
    labels = (contents >= 20).astype(np.int64)
    labels[42] = 1  # one copy has another label
    table = pd.DataFrame(
        {
            "sha256": [f"{content:064x}" for content in contents],
            "path": [f"/images/{number}.png" for number in range(43)],
            "label": [names[label] for label in labels],
            "split": "train",
        }
    )
    thumbnails = unit(GENERATOR.normal(size=(40, 50)))[contents]
    thumbnails[20] = thumbnails[7]
    activations = GENERATOR.normal(size=(40, 8))[contents]
    activations[20] = activations[7]
    facts = ImageFacts(pd.DataFrame(0.5, range(43), list(FACTS)), thumbnails)
    found = audit(table, activations, labels, names, table["sha256"].tolist(), facts, Likeness(0.99, 0.99))
    assert set(zip(found.pairs["first"], found.pairs["second"], strict=True)) == {(7, 20), (7, 42), (20, 42)}
    decisions = found.decisions(table.iloc[:0])
    going = decisions[decisions["reason"].str.contains("almost the same")]
    assert set(going["path"]) == {"/images/20.png", "/images/42.png"}
    assert not decisions.duplicated(["sha256", "label"]).any()
