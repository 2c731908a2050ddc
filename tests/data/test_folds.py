"""Folds: each leaves out its share of each class, all together each image once, and groups stay whole."""

from pathlib import Path

import numpy as np
import pytest

from graftline.data.folds import assign_folds, without_fold
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.errors import UserError
from graftline.training.recipe import Recipe


def test_each_training_image_is_left_out_once(color_folder: Path, tmp_path: Path) -> None:
    version = Ingest("colors", str(color_folder), Folder(), Split(), directory=str(tmp_path)).run().version
    whole = set(version.samples("train").sha256)
    left_out = list[str]()
    for number in range(1, 6):
        part = without_fold(version, f"{number}/5")
        kept = part.samples("train")
        assert set(kept.sha256) < whole
        assert {len(whole) // 3 - len(kept.labels[kept.labels == one]) for one in range(3)} <= {2, 3}, "of each class"
        left_out += whole - set(kept.sha256)
        assert sum(part.counts()["train"].values()) == len(kept.paths)
        assert part.counts()["test"] == version.counts()["test"]
        assert part.split_digests["train"] != version.split_digests["train"]
        assert part.test_digest == version.test_digest
        for split in ("validation", "test"):
            assert part.samples(split).sha256 == version.samples(split).sha256
    assert sorted(left_out) == sorted(whole)
    assert without_fold(version, None) is version
    assert len(without_fold(version, "1/99").samples("train").paths) == len(whole), "a class keeps its images"


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "a/b", "2/5 "])
def test_what_is_no_fold_is_refused(fold: str) -> None:
    with pytest.raises(UserError, match=r"^Recipe\.fold is .*: give which of how many is left out, such as 2/5\.$"):
        Recipe(fold=fold)


def digests(number: int) -> list[str]:
    return [f"{value:064x}" for value in np.random.default_rng(0).permutation(number)]


def test_folds_are_even_where_each_image_stands_alone() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    folds = assign_folds(labels, digests(153))
    for number, count in enumerate((100, 50)):
        assert np.bincount(folds[labels == number], minlength=5).tolist() == [count / 5] * 5
    assert np.bincount(folds[labels == 2]).max() == 1  # three images, of which each is tested by a fit with two
    assert np.ptp(np.bincount(folds)) <= 1


def test_groups_stay_whole() -> None:
    labels = np.arange(400) % 4
    groups = [f"font {index % 25}" for index in range(400)]
    folds = assign_folds(labels, groups)
    assert all(len({*folds[np.array(groups) == name]}) == 1 for name in set(groups))
    assert np.ptp(np.bincount(folds)) <= 400 / 25
    assert set(assign_folds(labels, ["a"] * 200 + ["b"] * 200)) == {0, 1}


def test_one_group_is_divided_image_by_image() -> None:
    labels = np.arange(40) % 4
    folds = assign_folds(labels, ["camera 1"] * 40)
    assert np.bincount(folds).tolist() == [8] * 5
    assert all(np.ptp(np.bincount(labels[folds == fold], minlength=4)) <= 1 for fold in range(5))
