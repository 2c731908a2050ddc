"""A dataset version is named by what it holds, wherever it lies."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from manifest import manifest

from graftline.data.manifest import COLUMNS
from graftline.data.version import DatasetVersion, newest_version
from graftline.data.version_writing import write_version
from graftline.errors import UserError

CLASSES = ("cat", "dog")


def table(root: str = "/photos") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": [f"{root}/b/2.png", f"{root}/a/1.png", f"{root}/a/3.png"],
            "label": ["dog", "cat", "dog"],
            "split": ["train", "train", "test"],
            "group": pd.Series(["p", None, None], dtype="str"),
            "weight": [0.5, 1.0, 1 / 3],
            "stratum": pd.Series([None, None, None], dtype="str"),
            "sha256": ["22", "11", "33"],
            "width": [10, 20, 30],
            "height": [11, 21, 31],
        }
    )


def test_it_reads_as_it_was_written(tmp_path: Path) -> None:
    written, fresh = write_version(tmp_path, "pets", table(), CLASSES)
    assert fresh
    assert sorted(file.name for file in written.directory.iterdir()) == ["manifest.parquet", "summary.json"]
    version = DatasetVersion.load(written.directory)
    assert version == written
    assert (version.name, version.class_names, len(version.digest)) == ("pets", CLASSES, 16)
    assert version.directory == tmp_path / version.digest
    read = version.table()
    assert tuple(read.columns) == COLUMNS
    expected = table().sort_values("path", ignore_index=True)
    assert read["path"].tolist() == ["/photos/a/1.png", "/photos/a/3.png", "/photos/b/2.png"]
    pd.testing.assert_frame_equal(read, expected, check_dtype=False, rtol=1e-6)
    assert version.counts() == {
        "train": {"cat": 1, "dog": 1},
        "validation": {"cat": 0, "dog": 0},
        "test": {"cat": 0, "dog": 1},
    }


def test_the_typical_side_is_of_most_training_images(tmp_path: Path) -> None:
    sides = [*range(20, 29), 900]  # one is unlike the others
    rows = {column: [value] * 11 for column, value in table().iloc[1].items()}
    paths = [f"/photos/{number}.png" for number in range(11)]
    rows |= {"path": paths, "split": ["train"] * 10 + ["test"], "width": [*sides, 5], "height": [2000] * 11}
    version, _ = write_version(tmp_path, "pets", pd.DataFrame(rows), CLASSES)
    assert version.typical_side() == 28
    assert version.typical_aspect() == pytest.approx((2000 / 25 + 2000 / 24) / 2)


def test_the_table_is_read_once_and_is_the_callers_own(tmp_path: Path) -> None:
    written, _ = write_version(tmp_path, "pets", table(), CLASSES)
    version = DatasetVersion.load(written.directory)
    version.table()["label"] = "changed"
    (version.directory / "manifest.parquet").unlink()
    assert version.table()["label"].tolist() == ["cat", "dog", "dog"]
    assert version.num_images("train") == 2
    with pytest.raises(UserError, match=r"has lost its manifest\.parquet"):
        DatasetVersion.load(written.directory).table()
    assert DatasetVersion.load(written.directory).counts() == version.counts()  # of a summary that has them


def test_a_version_reads_no_paths_of_the_one_that_it_grows_from(tmp_path: Path) -> None:
    """They take most of the room that a table needs."""
    first, _ = write_version(tmp_path, "pets", table(), CLASSES)
    grown = pd.concat([table(), table().assign(path="/photos/c.png", sha256="44").iloc[:1]])
    second, _ = write_version(tmp_path, "pets", grown, CLASSES, parent=first)
    assert second.origin["changes"]["added"] == {"train": 1}
    assert "_table" not in vars(first)
    assert first.contents().columns.tolist() == ["sha256", "label", "split"]


def test_images_that_were_seen_in_training_are_known_by_their_contents(tmp_path: Path) -> None:
    rows = table().assign(split=["train", "validation", "test"])
    version, _ = write_version(tmp_path, "pets", rows, CLASSES)
    assert version.seen_in_training(["33", "22", "44", "11", "22"]).tolist() == [False, True, False, True, True]
    assert version.seen_in_training([]).tolist() == []
    assert version.divided({"11": "validation"}).seen_in_training(["11", "22"]).tolist() == [True, False]


def test_counts_are_of_the_images_that_are_left(tmp_path: Path) -> None:
    version, _ = write_version(tmp_path, "pets", table(), CLASSES)
    part = version.divided({"11": "test"})
    assert part.counts()["test"] == {"cat": 1, "dog": 0}
    assert sum(sum(classes.values()) for classes in part.counts().values()) == 1


def test_a_part_has_each_class_in_proportion_or_as_many_of_each_as_are_asked_for(tmp_path: Path) -> None:
    images = manifest(["cat"] * 980 + ["dog"] * 20, ["train"] * 1_000)
    version, _ = write_version(tmp_path, "pets", images, CLASSES)
    assert version.part(train=100).counts()["train"] == {"cat": 98, "dog": 2}
    part = version.part(least_of_class=10, train=100)
    assert part.counts()["train"] == {"cat": 98, "dog": 10}
    assert part.samples("train").sha256 == version.part(least_of_class=10, train=100).samples("train").sha256
    assert version.part(least_of_class=30, train=10).counts()["train"] == {"cat": 30, "dog": 20}


def test_the_same_test_images_have_the_same_digest(tmp_path: Path) -> None:
    """Their paths, their order and other images make no difference; contents and labels do."""
    version, _ = write_version(tmp_path, "pets", table(), CLASSES)
    other = table("/elsewhere").iloc[::-1].assign(path=["/elsewhere/z", "/elsewhere/y", "/elsewhere/x"])
    other.loc[other["sha256"] == "11", "label"] = "dog"
    renamed, _ = write_version(tmp_path, "pets", other, CLASSES)
    assert renamed.digest != version.digest
    assert renamed.test_digest == version.test_digest == version.split_digests["test"]
    assert renamed.split_digests["train"] != version.split_digests["train"]
    assert renamed.split_digests["validation"] == version.split_digests["validation"]  # of no images
    relabeled, _ = write_version(tmp_path, "pets", table().assign(label="cat"), CLASSES)
    assert relabeled.test_digest != version.test_digest


def test_versions_of_format_1_are_read(tmp_path: Path) -> None:
    """They have no parent, no split digests and no history but their own images; the next ingest makes it format 2."""
    version, _ = write_version(tmp_path, "pets", table(), CLASSES)
    summary = version.directory / "summary.json"
    content = json.loads(summary.read_text())
    fields = ("name", "digest", "root", "class_names", "counts")
    summary.write_text(json.dumps({"format": 1, **{name: content[name] for name in fields}}))
    old = DatasetVersion.load(version.directory)
    assert (old, old.parent, old.split_digests) == (version, None, version.split_digests)
    assert len(old.history()) == 3
    assert newest_version(tmp_path) == old
    assert write_version(tmp_path, "pets", table(), CLASSES, parent=old) == (version, False)
    assert json.loads(summary.read_text())["format"] == 2


def test_the_newest_version_is_the_one_ingested_last(tmp_path: Path) -> None:
    """By the summaries, whatever the times of files and the clock say; a version that comes again is the newest."""
    assert newest_version(tmp_path) is None
    first, _ = write_version(tmp_path, "pets", table(), CLASSES)
    summary = first.directory / "summary.json"
    content = json.loads(summary.read_text())
    summary.write_text(
        json.dumps({**content, "ingested": "2999-01-01T00:00:00.000000+00:00"})
    )  # a clock that was wrong
    second, _ = write_version(tmp_path, "pets", table().assign(label="cat"), CLASSES, parent=first)
    os.utime(second.directory / "summary.json", (0, 0))
    assert newest_version(tmp_path) == second
    written = summary.stat()
    assert write_version(tmp_path, "pets", table(), CLASSES, parent=second) == (first, False)
    assert newest_version(tmp_path) == first
    again = summary.stat()
    assert again != written
    assert write_version(tmp_path, "pets", table(), CLASSES, parent=first) == (first, False)
    assert summary.stat() == again


def test_departed_images_are_remembered_and_missed(tmp_path: Path) -> None:
    first, _ = write_version(tmp_path, "pets", table(), CLASSES)
    second, _ = write_version(tmp_path, "pets", table().iloc[:2], CLASSES, parent=first)
    third, _ = write_version(tmp_path, "pets", table().iloc[:1], CLASSES, parent=second)
    assert first.files == [first.directory / name for name in ("manifest.parquet", "summary.json")]
    assert third.directory / "departed.parquet" in third.files
    known = third.history().sort_values("sha256")
    assert known["sha256"].tolist() == ["11", "22", "33"]
    assert known["split"].tolist() == ["train", "train", "test"]
    elsewhere, is_new = write_version(tmp_path / "fresh", "pets", table().iloc[:1], CLASSES, parent=third)
    assert (elsewhere.digest, elsewhere.parent, is_new) == (third.digest, second.digest, True)
    assert len(elsewhere.history()) == 3
    (third.directory / "departed.parquet").unlink()
    with pytest.raises(UserError, match=r"has lost its departed\.parquet"):
        DatasetVersion.load(third.directory).history()


def test_samples_are_the_rows_of_a_split(tmp_path: Path) -> None:
    version, _ = write_version(tmp_path, "pets", table(), CLASSES)
    samples = version.samples("train")
    assert samples.paths == ["/photos/a/1.png", "/photos/b/2.png"]
    assert samples.labels.dtype == np.int64
    np.testing.assert_array_equal(samples.labels, [0, 1])
    assert samples.weights is not None
    assert samples.weights.dtype == np.float32
    np.testing.assert_array_equal(samples.weights, np.array([1.0, 0.5], dtype=np.float32))
    weightless, _ = write_version(tmp_path, "pets", table().assign(weight=np.nan), CLASSES)
    assert weightless.samples("train").weights is None


def test_an_unknown_or_empty_split_is_told(tmp_path: Path) -> None:
    version, _ = write_version(tmp_path, "pets", table(), CLASSES)
    with pytest.raises(UserError, match="no split 'valid'"):
        version.samples("valid")
    with pytest.raises(UserError, match=r"validation split of pets has no images: ingest with Ingest\.parent='none'"):
        version.samples("validation")


def test_the_digest_is_of_the_contents_not_of_the_place_or_order(tmp_path: Path) -> None:
    version, _ = write_version(tmp_path, "pets", table(), CLASSES)
    same, fresh = write_version(tmp_path, "pets", table().iloc[::-1], CLASSES)
    assert (same.digest, fresh) == (version.digest, False)
    moved, fresh = write_version(tmp_path, "pets", table("/elsewhere/deep"), CLASSES)
    assert (moved.digest, fresh) == (version.digest, False)
    assert moved.samples("test").paths == ["/elsewhere/deep/a/3.png"]


@pytest.mark.parametrize(
    "change",
    [{"sha256": "44"}, {"label": "cat"}, {"split": "test"}, {"group": "q"}, {"weight": 0.25}, {"stratum": "s"}],
)
def test_the_digest_notices_each_change(tmp_path: Path, change: dict[str, object]) -> None:
    version, _ = write_version(tmp_path, "pets", table(), CLASSES)
    changed = table()
    for column, value in change.items():
        changed.loc[0, column] = value  # type: ignore[call-overload]
    other, fresh = write_version(tmp_path, "pets", changed, CLASSES)
    assert fresh
    assert other.digest != version.digest
    assert write_version(tmp_path, "pets", table(), CLASSES[::-1])[0].digest != version.digest


def test_a_version_that_lost_a_file_is_written_again(tmp_path: Path) -> None:
    version, _ = write_version(tmp_path, "pets", table(), CLASSES)
    for name in ("manifest.parquet", "summary.json"):
        (version.directory / name).unlink()
        assert write_version(tmp_path, "pets", table(), CLASSES) == (version, True)
        assert version.num_images("train") == 2


def test_a_folder_that_is_no_version_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no dataset version"):
        DatasetVersion.load(tmp_path)
    version, _ = write_version(tmp_path, "pets", table(), CLASSES)
    summary = version.directory / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "format": 99}))
    with pytest.raises(UserError, match="later graftline"):
        DatasetVersion.load(version.directory)
    summary.write_text(summary.read_text()[:20])
    with pytest.raises(UserError, match=rf"summary.json in {version.directory} is damaged: restore it, or remove"):
        newest_version(tmp_path)
