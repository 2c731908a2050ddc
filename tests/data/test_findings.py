"""What an ingest finds is told in few lines: kinds of contents, lost classes, files that are not there."""

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from graftline.data.ingest import Ingest, IngestResult
from graftline.data.sources.folder import Folder
from graftline.data.sources.source import Source
from graftline.data.sources.table import Table
from graftline.data.split import Split
from graftline.errors import UserError


def ingest(tmp_path: Path, path: Path, source: Source | None = None, **settings: Any) -> IngestResult:
    settings = {"min_images_per_class": 1, "directory": str(tmp_path / "versions"), **settings}
    return Ingest(name="set", path=str(path), source=source or Folder(), split=Split(), **settings).run()


def test_contents_that_are_sound_but_not_read_are_named_in_the_error(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=5, dog=5)
    for number in range(5):
        (root / f"dog/00{number}.png").write_bytes(b"%PDF-1." + bytes([number]))
    with pytest.raises(
        UserError, match=r"class 'dog' can be used \(5 of 5: it is PDF; save its pages or pictures as PNG\)"
    ):
        ingest(tmp_path, root)
    with pytest.raises(UserError, match=r"5 images cannot be used .*; of 'dog' 5 of 5: it is PDF; save"):
        ingest(tmp_path, root, on_invalid="fail")


def test_half_of_a_class_that_is_lost_is_told(
    tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "pets", cat=9, dog=9)
    for number, content in enumerate([b"%PDF-1", b"%PDF-2", b"", b"<html>", b"%PDF-3"]):
        (root / f"dog/00{number}.png").write_bytes(content)
    lost = [finding for finding in ingest(tmp_path, root).findings if finding.kind == "lost_images"]
    assert [finding.path for finding in lost] == ["dog"]
    assert lost[0].detail.startswith("5 of 9: 3 x it is PDF; save its pages or pictures as PNG; 1 x ")
    told = capsys.readouterr().out
    assert "4 not readable as an image, left out: 3 x it is PDF" in told
    (root / "dog/000.png").unlink()
    (root / "dog/001.png").unlink()
    assert all(finding.kind != "lost_images" for finding in ingest(tmp_path, root).findings)


def test_missing_files_are_told_in_one_line(
    tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    rows = "".join(f"{label}/{number:03}.png,{label}\n" for label in ("cat", "dog") for number in range(15))
    (root / "t.csv").write_text("path,label\n" + rows)
    (root / "cat/010.png").symlink_to("nowhere.png")
    result = ingest(tmp_path, root / "t.csv", Table())
    assert [finding.kind for finding in result.findings] == ["missing"] * 10
    told = capsys.readouterr().out
    assert "10 listed but not there, left out: 9 x there is no such file; 1 x the link leads nowhere" in told


def test_names_that_differ_in_capitals_only_are_told(tmp_path: Path, make_folder: Any) -> None:
    result = ingest(tmp_path, make_folder(tmp_path / "shoes", Boots=9, boots=9, Clogs=9))
    assert [(f.kind, f.path) for f in result.findings] == [("similar_names", "boots")]
    assert "Boots" in result.findings[0].detail


def test_a_name_that_stands_for_no_label_is_told(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=9, dog=9)
    rows = [(f"{label}/{number:03}.png", label if number else "NaN") for label in ("cat", "dog") for number in range(9)]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(root / "t.csv", index=False)
    found = {finding.kind: finding for finding in ingest(tmp_path, root / "t.csv", Table()).findings}
    assert found["placeholder"].path == "NaN"
    assert "of 2; leave the label empty" in found["placeholder"].detail


def test_a_file_with_two_labels_is_told_by_these(
    tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "pets", cat=9, dog=9)
    rows = [(f"{label}/{number:03}.png", label) for label in ("cat", "dog") for number in range(9)]
    rows += [(f"cat/{number:03}.png", "dog") for number in range(3)]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(root / "t.csv", index=False)
    ingest(tmp_path, root / "t.csv", Table())
    assert "left out; listed as cat, listed as dog (first: " in capsys.readouterr().out


def test_classes_that_come_and_go_are_named(
    tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "pets", cat=9, dog=9, cow=9)
    before = ingest(tmp_path, root).version.digest
    shutil.rmtree(root / "cow")
    make_folder(root, first_seed=50, owl=9)
    assert "Classes" not in capsys.readouterr().out
    ingest(tmp_path, root)
    told = capsys.readouterr().out
    assert f"Classes that are new since version {before}: “owl”." in told
    assert f"Classes of version {before} of which no image is left: “cow”." in told
    ingest(tmp_path, root)
    assert "Classes" not in capsys.readouterr().out


def test_an_image_that_is_listed_in_two_splits_is_in_one(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    rows = [
        (f"{label}/{number:03}.png", label, "test" if number > 6 else "train")
        for label in ("cat", "dog")
        for number in range(10)
    ]
    rows += [("cat/000.png", "cat", "test"), ("./cat/009.png", "cat", "test")]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(root / "t.csv", index=False)
    result = ingest(tmp_path, root / "t.csv", Table())
    found = {(finding.kind, os.path.relpath(finding.path, root)) for finding in result.findings}
    assert {("leak", "cat/000.png"), ("listed_twice", "cat/009.png")} <= found
    table = result.version.table()
    assert table["path"].is_unique
    assert table.set_index("path").loc[str(root / "cat/000.png"), "split"] == "test"
