"""The short fits of whole networks: on training images only, and as long as there is time for."""

from pathlib import Path

import numpy as np
import pytest

from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion, Samples
from graftline.search.deeper import HeldOut, ShortFit
from graftline.search.rounds import TrainingImages


@pytest.fixture(scope="module")
def version(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    split = Split(train=0.6, validation=0.2, test=0.2, seed=0, existing=True)
    return (
        Ingest(None, str(color_folder), Folder(), split, directory=str(tmp_path_factory.mktemp("data"))).run().version
    )


def images(version: DatasetVersion, groups: list[str] | None = None) -> TrainingImages:
    samples = version.samples("train")
    return TrainingImages(samples, groups or samples.sha256, 3)


def test_held_out_are_training_images_only(version: DatasetVersion) -> None:
    training = version.samples("train")
    divided = HeldOut.of(version, images(version))
    parts: list[Samples] = [divided.samples(split) for split in ("train", "validation")]
    first, second = (set(part.sha256) for part in parts)
    assert first | second == set(training.sha256)
    assert not first & second
    assert np.bincount(parts[1].labels).tolist() == [3, 2, 2] or np.ptp(np.bincount(parts[1].labels)) <= 1
    assert divided.limited(10).samples("train").sha256 == parts[0].sha256[:10]
    assert divided.limited(10).samples("validation").sha256 == parts[1].sha256
    assert divided.class_names == version.class_names
    with pytest.raises(KeyError):
        divided.samples("test")


def test_no_group_is_on_both_sides(version: DatasetVersion) -> None:
    count = len(version.samples("train").paths)
    groups = [f"camera {index % 6}" for index in range(count)]
    divided = HeldOut.of(version, images(version, groups))
    by_digest = dict(zip(version.samples("train").sha256, groups, strict=True))
    sides = [{by_digest[one] for one in divided.samples(split).sha256} for split in ("train", "validation")]
    assert not sides[0] & sides[1]


def test_a_fit_has_as_many_images_and_epochs_as_there_is_time_for() -> None:
    for seconds in (20, 60, 200, 1000):
        short = ShortFit.within(seconds, 0.01, training=2000, held_out=400)
        if short is not None:
            assert 0.01 * short.epochs * (3 * short.images + 400) <= seconds
    assert ShortFit.within(1e6, 0.01, 2000, 400) == ShortFit(2000, 4)
