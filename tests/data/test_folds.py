"""Folds: each leaves out its share of the training images of each class, and all together leave out each once."""

from pathlib import Path

import pytest

from graftline.data.folds import without_fold
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
