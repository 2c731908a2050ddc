"""The short fits of whole networks: on training images only, and as long as there is time for."""

from pathlib import Path

import numpy as np
import pytest

from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion, Samples
from graftline.errors import UserError
from graftline.search.deeper import hold_out
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
    divided = hold_out(version, images(version))
    parts: list[Samples] = [divided.samples(split) for split in ("train", "validation")]
    first, second = (set(part.sha256) for part in parts)
    assert first | second == set(training.sha256)
    assert not first & second
    assert np.ptp(np.bincount(parts[1].labels)) <= 1
    assert divided.class_names == version.class_names
    with pytest.raises(UserError, match=r"test split of .* has no images"):
        divided.samples("test")
    assert version.samples("train").sha256 == training.sha256  # which is as it was


def test_no_group_is_on_both_sides(version: DatasetVersion) -> None:
    digests = version.samples("train").sha256
    groups = [f"camera {index % 6}" for index in range(len(digests))]
    divided = hold_out(version, images(version, groups))
    by_digest = dict(zip(digests, groups, strict=True))
    sides = [{by_digest[one] for one in divided.samples(split).sha256} for split in ("train", "validation")]
    assert not sides[0] & sides[1]
