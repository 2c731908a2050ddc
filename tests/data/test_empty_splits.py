"""A split that has no image, or none that counts: a version without what a training needs is not written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ingested import ingest

from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.sources.table import Table
from graftline.data.split import Split
from graftline.errors import UserError


def write_groups(root: Path, make_image: Any, groups: int) -> Path:
    """Write a table of groups, each of two images of either class."""
    rows = [(f"{number}.png", "ab"[number % 2], f"g{number // 4}") for number in range(4 * groups)]
    for number, (name, *_) in enumerate(rows):
        make_image(root / name, seed=number)
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(root / "groups.csv", index=False)
    return root / "groups.csv"


def test_a_version_without_images_for_a_split_that_is_needed_is_not_written(tmp_path: Path, make_image: Any) -> None:
    needed = ("train", "validation")

    def run(file: Path, split: Split, parent: str = "newest", needed: Sequence[str] = needed) -> dict[str, int]:
        data = Ingest("set", str(file), Table(), split, parent, min_images_per_class=1, directory=str(tmp_path / "v"))
        result = data.run(needed)
        empty.update({one.path: one.detail for one in result.findings if one.kind == "empty_split"})
        return {split: sum(of.values()) for split, of in result.version.counts().items()}

    empty: dict[str, str] = {}
    file = write_groups(tmp_path, make_image, groups=2)
    with pytest.raises(UserError, match=r"No image would be for validation, .* as there are too few images or groups"):
        run(file, Split())
    assert not list((tmp_path / "v").rglob("summary.json"))
    assert run(file, Split(test=0)) == {"train": 4, "validation": 4, "test": 0}
    file = write_groups(tmp_path, make_image, groups=3)
    assert run(file, Split(), "none") == {"train": 4, "validation": 4, "test": 4}
    assert run(file, Split(validation=0.25)) == {"train": 4, "validation": 4, "test": 4}
    assert not empty
    run(file, Split(validation=0), "none", needed=())
    versions = set((tmp_path / "v").rglob("summary.json"))
    with pytest.raises(UserError, match=r"for validation, .* keep the splits .*: draw all anew with Ingest\.parent="):
        run(file, Split())
    assert set((tmp_path / "v").rglob("summary.json")) == versions
    run(file, Split(), needed=())
    assert list(empty) == ["validation"]
    assert run(file, Split(), "none") == {"train": 4, "validation": 4, "test": 4}


def test_copies_alone_are_no_validation_split(tmp_path: Path, make_folder: Any) -> None:
    root = tmp_path / "pets"
    make_folder(root / "train", cat=5, dog=5)
    for split in ("val", "test"):
        make_folder(root / split, first_seed=50, cat=2, dog=2)
    with pytest.raises(UserError, match=r"for validation, .*, as all that the source gives are copies of test images"):
        Ingest("set", str(root), Folder(), Split(), directory=str(tmp_path / "v")).run(("train", "validation"))


def test_a_split_whose_weights_are_all_0_is_refused(tmp_path: Path, make_image: Any) -> None:
    file = write_groups(tmp_path, make_image, groups=3)
    splits = ["train", "validation", "test"]
    images = pd.read_csv(file).assign(split=[splits[number // 4] for number in range(12)])
    images.assign(weight=[1] * 4 + [0, 2] * 2 + [0] * 4).to_csv(file, index=False)
    with pytest.raises(UserError, match=r"All images for test have the weight 0, .*Table\.weight=None"):
        ingest(tmp_path, file, Table())
    assert not list((tmp_path / "versions").rglob("summary.json"))
    ingest(tmp_path, file, Table(weight=None))
