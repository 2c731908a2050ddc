"""A class of few images has enough of them in each comparison, and counts in it as often as it is there."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.evaluation.head_score import HeadScore, score_head
from graftline.evaluation.subset import class_weights, stratified_order, with_rare_first
from graftline.search.deeper import _weighed, hold_out
from graftline.search.rounds import TrainingImages

IMAGES, RARE = 4_000, 20


@pytest.fixture(scope="module")
def version(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """A version of many rows for few files, of which one in 200 is of a rare class; no image is read."""
    directory = str(tmp_path_factory.mktemp("data"))
    split = Split(train=0.6, validation=0.2, test=0.2, seed=0, existing=True)
    small = Ingest(None, str(color_folder), Folder(), split, directory=directory).run().version
    first = small.table().query("split == 'train'").iloc[:1]
    contents = [sha256(str(number).encode()).hexdigest() for number in range(IMAGES)]
    labels = ["blue"] * RARE + ["green", "red"] * ((IMAGES - RARE) // 2)
    table = pd.concat([first] * IMAGES, ignore_index=True).assign(sha256=contents, label=labels)
    return small._with_table(table)


@pytest.fixture
def images(version: DatasetVersion) -> TrainingImages:
    return TrainingImages.of(version)


def test_each_round_has_ten_of_a_rare_class(images: TrainingImages) -> None:
    for number, rare in ((500, 10), (1_000, 10), (2_000, 10), (4_000, 20)):
        labels = images.samples.labels[:number]
        counts = np.bincount(labels, minlength=3)
        assert counts[0] >= rare
        weights = images.weights(labels)
        assert weights[labels].mean() == pytest.approx(1.0)
        assert (counts * weights / number).tolist() == pytest.approx([0.005, 0.4975, 0.4975])
    assert sorted(images.samples.sha256) == sorted(set(images.samples.sha256))
    assert len(images) == IMAGES


def test_all_of_a_rare_class_that_a_fold_has_are_held_out(version: DatasetVersion, images: TrainingImages) -> None:
    divided = hold_out(version, images)
    held_out, rest = (divided.samples(split).labels for split in ("validation", "train"))
    assert len(held_out) == 500
    assert np.bincount(held_out).tolist()[0] == RARE - np.bincount(rest).tolist()[0]
    hits = (held_out == 0).astype(np.float64)
    score = _weighed(HeadScore(2 * hits, hits, 0.0), divided, images.weights(held_out))
    assert score.accuracy == pytest.approx(0.005)
    assert score.log_loss == pytest.approx(0.01)


def test_classes_in_proportion_stay_in_their_order() -> None:
    labels = np.sort(np.arange(900) % 3)
    ordered = labels[stratified_order(labels, np.arange(900))]
    assert with_rare_first(ordered, first=500, least=10).tolist() == list(range(900))


def test_a_score_with_weights_is_that_of_the_frequencies_that_these_stand_for() -> None:
    """Two classes that overlap, one in 50 is of the rare one; of it, ten times as many are among the images.

    Activations are normal, of means 2 apart, so that what the best head would give is known.
    """
    generator = np.random.default_rng(0)

    def draw(labels: np.ndarray) -> np.ndarray:
        return generator.normal(size=(len(labels), 5)) + 2.0 * labels[:, None] * [1, 0, 0, 0, 0]

    all_labels = np.repeat([0, 1], [196_000, 4_000])
    logits = np.log(0.02 / 0.98) + 2 * draw(all_labels)[:, 0] - 2
    best = np.log1p(np.exp(np.where(all_labels == 1, -logits, logits))).mean()
    labels = np.repeat([0, 1], [8_000, 2_000])
    activations, folds = draw(labels), np.arange(len(labels)) % 5
    weighed = score_head(activations, labels, 2, folds, class_weights(labels, np.array([0.98, 0.02])))
    assert weighed.log_loss == pytest.approx(best, abs=0.01)
    assert weighed.accuracy == pytest.approx(((logits > 0) == all_labels).mean(), abs=0.005)
    assert score_head(activations, labels, 2, folds).log_loss > 3 * best
