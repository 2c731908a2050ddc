"""The same image more than once: in two splits, under two labels, twice in a table."""

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from ingested import ingest, kinds, paths

from graftline.data.sources.table import Table


def test_copies_in_two_given_splits_leave_training(tmp_path: Path, make_folder: Any) -> None:
    root = tmp_path / "pets"
    for seed, split in ((0, "train"), (100, "val"), (200, "test")):
        make_folder(root / split, first_seed=seed, cat=6, dog=6)
    shutil.copy(root / "test/cat/000.png", root / "train/cat/of_test.png")
    shutil.copy(root / "test/cat/001.png", root / "val/cat/of_test.png")
    shutil.copy(root / "val/dog/000.png", root / "train/dog/of_val.png")
    shutil.copy(root / "train/dog/000.png", root / "train/dog/twice.png")
    result = ingest(tmp_path, root)
    assert kinds(result, root) == {
        "train/cat/of_test.png": "leak",
        "val/cat/of_test.png": "leak",
        "train/dog/of_val.png": "leak",
        "train/dog/twice.png": "duplicate",
    }
    kept = paths(result, root)
    assert len(kept) == 37
    assert "train/dog/twice.png" in kept
    table = result.version.table()
    assert table.groupby("sha256")["split"].nunique().max() == 1


def test_copies_in_a_drawn_split_stay_together(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=20, dog=20)
    for number in range(15):
        shutil.copy(root / f"cat/0{number:02}.png", root / f"cat/copy{number}.png")
    result = ingest(tmp_path, root)
    assert {finding.kind for finding in result.findings} == {"duplicate"}
    assert len(result.findings) == 15
    assert len(result.version.table()) == 55
    assert result.version.table().groupby("sha256")["split"].nunique().max() == 1


def test_one_image_with_two_labels_is_left_out_unless_kept(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    shutil.copy(root / "cat/000.png", root / "dog/same.png")
    result = ingest(tmp_path, root)
    assert kinds(result, root) == {"cat/000.png": "conflict", "dog/same.png": "conflict"}
    assert all("cat in" in finding.detail and "dog in" in finding.detail for finding in result.findings)
    assert len(result.version.table()) == 19
    kept = ingest(tmp_path, root, on_conflict="keep")
    assert kept.version.split_digests != result.version.split_digests
    assert kinds(kept, root) == kinds(result, root)
    assert len(kept.version.table()) == 21
    assert kept.version.table().groupby("sha256")["split"].nunique().max() == 1


def test_a_table_may_list_an_image_twice(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    rows = [(f"{label}/{number:03}.png", label) for label in ("dog", "cat") for number in range(10)]
    rows += [("cat/000.png", "cat"), ("cat/001.png", "dog")]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(root / "labels.csv", index=False)
    result = ingest(tmp_path, root / "labels.csv", Table())
    assert [(f.kind, os.path.relpath(f.path, root)) for f in result.findings] == [
        ("listed_twice", "cat/000.png"),
        ("conflict", "cat/001.png"),
        ("conflict", "cat/001.png"),
    ]
    assert len(result.version.table()) == 19


def test_a_copy_in_test_leaves_training_whatever_its_label(tmp_path: Path, make_folder: Any) -> None:
    root = tmp_path / "pets"
    for seed, split in ((0, "train"), (100, "val"), (200, "test")):
        make_folder(root / split, first_seed=seed, cat=6, dog=6)
    shutil.copy(root / "test/cat/000.png", root / "train/dog/of_test.png")
    result = ingest(tmp_path, root, on_conflict="keep")
    assert ("leak", "of_test.png") in {(finding.kind, Path(finding.path).name) for finding in result.findings}
    assert result.version.table().groupby("sha256")["split"].nunique().max() == 1
