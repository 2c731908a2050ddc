"""Folders, tables and the sample are read as what they are, and a user's mistake gets one sentence."""

import os
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from graftline.data.file_names import to_path
from graftline.data.sources.elpv import Elpv
from graftline.data.sources.folder import Folder
from graftline.data.sources.hugging_face import are_splits
from graftline.data.sources.table import Table
from graftline.errors import UserError


def touch(root: Path, *names: str) -> Path:
    """Make files; the sources do not look into them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listed(images: pd.DataFrame, root: Path) -> dict[str, object]:
    return {
        str(Path(path).relative_to(root)): label for path, label in zip(images["path"], images["label"], strict=True)
    }


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    touch(
        tmp_path, "cat/a.jpg", "cat/deep/b", "dog/c.png", "dog/.hidden.png", "dog/notes.txt", ".git/x.png", "about.md"
    )
    assert listed(Folder().read(tmp_path), tmp_path) == {"cat/a.jpg": "cat", "cat/deep/b": "cat", "dog/c.png": "dog"}


def test_images_beside_class_folders_have_no_label(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", "dog/c.png", "loose.jpg", "LICENSE")
    images = Folder().read(tmp_path).set_index("path")["label"]
    assert pd.isna(images[str(tmp_path / "loose.jpg")])
    assert str(tmp_path / "LICENSE") not in images


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "valid", "testing"), ("Training_Set", "val-set", "test images")],
)
def test_a_folder_of_split_folders(tmp_path: Path, train: str, validation: str, test: str) -> None:
    touch(tmp_path, f"{train}/cat/a.jpg", f"{train}/dog/a.jpg", f"{validation}/cat/b.jpg", f"{test}/dog/c.jpg")
    images = Folder().read(tmp_path)
    assert sorted(images["split"]) == ["test", "train", "train", "validation"]
    by_path = images.set_index("path")
    assert by_path.loc[str(tmp_path / validation / "cat/b.jpg"), "split"] == "validation"
    assert by_path.loc[str(tmp_path / test / "dog/c.jpg"), "label"] == "dog"


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    touch(tmp_path, "test/a.jpg", "control/b.jpg")
    images = Folder().read(tmp_path)
    assert "split" not in images
    assert set(images["label"]) == {"test", "control"}


@pytest.mark.parametrize(
    "files",
    [
        ("train/a.jpg", "bus/a.jpg", "car/a.jpg"),  # train holds images, so it is no split
        ("train/a.jpg", "test/a.jpg", "bus/a.jpg"),
        ("test/2020/a.jpg", "control/2020/a.jpg"),
    ],
)
def test_classes_may_have_the_names_of_splits(tmp_path: Path, files: tuple[str, ...]) -> None:
    touch(tmp_path, *files)
    images = Folder().read(tmp_path)
    assert "split" not in images
    assert listed(images, tmp_path) == {file: file.partition("/")[0] for file in files}


def test_split_names_are_classes_if_so_asked(tmp_path: Path) -> None:
    files = {"train/2020/a.jpg": "train", "test/2021/a.jpg": "test", "bus/2020/a.jpg": "bus"}
    touch(tmp_path, *files)
    assert listed(Folder(splits=False).read(tmp_path), tmp_path) == files
    (tmp_path / "bus").rename(tmp_path / ".bus")
    assert set(Folder().read(tmp_path)["split"]) == {"train", "test"}
    assert set(Folder(splits=False).read(tmp_path)["label"]) == {"train", "test"}


def test_a_test_set_of_its_own_is_a_split(tmp_path: Path) -> None:
    touch(tmp_path, "test/cat/a.jpg", "test/dog/a.jpg")
    assert Folder().read(tmp_path)["split"].tolist() == ["test", "test"]


def test_a_class_may_be_missing_in_a_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/a.jpg", "train/dog/a.jpg", "val/cat/b.jpg", "val/dog/readme.txt")
    assert Folder().read(tmp_path)["label"].tolist() == ["cat", "dog", "cat"]


@pytest.mark.parametrize("above", ["pets", "download/pets", "a/b/c"])
def test_a_lone_folder_of_folders_is_gone_into(tmp_path: Path, above: str, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "report.docx", "readme[1].txt", "__MACOSX/x/._a.jpg", f"{above}/licence.md")
    touch(tmp_path / above, "cat/a.jpg", "dog/a.jpg")
    caplog.set_level("INFO")
    assert listed(Folder().read(tmp_path), tmp_path / above) == {"cat/a.jpg": "cat", "dog/a.jpg": "dog"}
    assert f"class folders are those in {above}" in caplog.text
    touch(tmp_path / above, "train/cat/b.jpg")
    with pytest.raises(UserError, match="split folders"):
        Folder().read(tmp_path)


def test_a_lone_folder_of_splits_is_gone_into(tmp_path: Path) -> None:
    touch(tmp_path, "set/train/cat/a.jpg", "set/train/dog/a.jpg", "set/test/cat/b.jpg")
    assert Folder().read(tmp_path)["split"].tolist() == ["test", "train", "train"]
    touch(tmp_path, "lone/train/cat/a.jpg", "lone/train/dog/a.jpg")
    assert Folder().read(tmp_path / "lone")["split"].tolist() == ["train", "train"]


def test_a_lone_class_stays_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", "cat/deep/b.jpg")
    assert set(Folder().read(tmp_path)["label"]) == {"cat"}


def test_folders_of_documents_lie_beside_images(tmp_path: Path) -> None:
    touch(tmp_path, "images/cat/a.jpg", "images/dog/a.jpg", "annotations/a.xml", "docs/more/b.pdf", "logo.png")
    images = Folder().read(tmp_path)
    assert listed(images, tmp_path / "images") == {"cat/a.jpg": "cat", "dog/a.jpg": "dog"}
    touch(tmp_path, "owl/a.jpg", "emu/a.jpg")
    with pytest.raises(UserError, match=r"class folder .*annotations holds no images, nor do docs"):
        Folder().read(tmp_path)
    touch(tmp_path / "set", "train/cat/a.jpg", "train/dog/a.jpg", "annotations/a.xml")
    assert set(Folder().read(tmp_path / "set")["split"]) == {"train"}


@pytest.mark.parametrize(("inner", "is_told"), [(("ok", "nok"), True), (("ok", "other"), False), (("ok",), False)])
def test_folders_that_all_classes_hold_are_told(
    tmp_path: Path, inner: tuple[str, ...], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    touch(
        tmp_path,
        *(f"2023/{name}/a.jpg" for name in inner),
        *(f"2024/{name}/a.jpg" for name in inner if name != "other"),
    )
    assert set(Folder().read(tmp_path)["label"]) == {"2023", "2024"}
    assert ("holds the folders nok, ok, whose images are all of the class above" in caplog.text) == is_told


def test_leftovers_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "cat/a.jpg", "dog/a.jpg", "cat/@eaDir/a.jpg", "dog/@eaDir/a.jpg", "$RECYCLE.BIN/x.jpg", "Thumbs.db")
    caplog.set_level("INFO")
    assert set(Folder().read(tmp_path)["label"]) == {"cat", "dog"}
    assert "4 in all (@eaDir 2, " in caplog.text


def test_a_name_in_two_unicode_forms_is_one_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    touch(tmp_path, f"{composed}/a.jpg", f"{decomposed}/b.jpg", f"{decomposed}/{decomposed}.jpg", "dog/a.jpg")
    images = Folder().read(tmp_path)
    assert listed(images, tmp_path) == {
        f"{composed}/a.jpg": composed,
        f"{decomposed}/b.jpg": composed,
        f"{decomposed}/{decomposed}.jpg": composed,
        "dog/a.jpg": "dog",
    }
    assert all(Path(path).is_file() for path in images["path"])
    assert "have one name: one class" in caplog.text


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg", os.fsdecode(b"cat/caf\xe9.jpg"), os.fsdecode(b"\xe9t\xe9/b.jpg"), r"cat/\xe9.jpg")
    images = Folder().read(tmp_path)
    assert listed(images, tmp_path) == {
        "cat/a.jpg": "cat",
        r"cat/caf\xe9.jpg": "cat",
        r"cat/\xe9.jpg": "cat",
        r"\xe9t\xe9/b.jpg": r"\xe9t\xe9",
    }
    assert all(os.path.isfile(to_path(path)) for path in images["path"])  # noqa: PTH113 (as to_path gives it)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/a.jpg", "dog/notes.txt"], "class folder .*dog holds no images: add"),
        (["cat/a.jpg", "dog/notes.txt", "owl/x.csv"], "class folder .*dog holds no images, nor do owl: add"),
        (["train/cat/a.jpg", "train/dog/a.jpg", "test/a.jpg"], "test holds no class folders: sort its images"),
        (["train/cat/a.jpg", "val/cat/a.jpg", "runs/exp/a.jpg"], r"\(train, val\) and others \(runs\): move away"),
        (["a.jpg", "b.jpg"], "holds images but no class folders"),
        (["notes.txt"], "holds no images"),
        (["train/cat/a.jpg", "cat/a.jpg"], r"split folders \(train\) and others \(cat\).*Folder\.splits=False"),
    ],
)
def test_a_folder_that_is_none_of_these(tmp_path: Path, names: list[str], message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        Folder().read(tmp_path)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    touch(tmp_path, "photos/cat/a.jpg", "a.csv")
    with pytest.raises(UserError, match=r"did you mean '.*photos'"):
        Folder().read(tmp_path / "photo")
    with pytest.raises(UserError, match="There is nothing at"):
        Folder().read(tmp_path / "elsewhere" / "x")
    with pytest.raises(UserError, match=r"Table\(\)"):
        Folder().read(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"Ingest\.path is not given"):
        Table().read(None)


TABLE = pd.DataFrame(
    {
        "path": ["img/a.png", "img/b.png", "/dev/null"],
        "label": ["NA", "10", "9"],
        "split": ["train", "VAL", "test"],
        "group": ["p1", "p2", None],
        "weight": [1.0, 0.5, 0.0],
    }
)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_with_all_columns(tmp_path: Path, suffix: str) -> None:
    file = touch(tmp_path, "img/a.png", "img/b.png") / f"labels.{suffix}"
    if suffix == "csv":
        TABLE.to_csv(file, index=False)
    else:
        TABLE.to_parquet(file)
    images = Table().read(file)
    assert images["path"].tolist() == [str(tmp_path / "img/a.png"), str(tmp_path / "img/b.png"), "/dev/null"]
    assert images["label"].tolist() == ["NA", "10", "9"]
    assert images["split"].tolist() == ["train", "validation", "test"]
    assert images["group"].tolist()[:2] == ["p1", "p2"]
    assert pd.isna(images["group"].iloc[2])
    assert images["weight"].tolist() == [1.0, 0.5, 0.0]


def test_a_table_with_other_names_of_columns(tmp_path: Path) -> None:
    touch(tmp_path, "img/a.png", "img/b.png")
    TABLE.rename(columns={"path": "file", "label": "kind", "group": "patient"}).to_csv(tmp_path / "t.csv", index=False)
    images = Table(path="file", label="kind", group="patient", split=None).read(tmp_path / "t.csv")
    assert images["label"].tolist() == ["NA", "10", "9"]
    assert images["group"].iloc[0] == "p1"
    assert "split" not in images


def test_whole_numbers_are_labels_without_a_point(tmp_path: Path) -> None:
    touch(tmp_path, "a", "b", "c")
    pd.DataFrame({"path": ["a", "b", "c"], "label": [3.0, 11.0, None]}).to_parquet(tmp_path / "t.parquet")
    labels = Table().read(tmp_path / "t.parquet")["label"]
    assert labels.tolist()[:2] == ["3", "11"]
    assert pd.isna(labels.iloc[2])


@pytest.mark.parametrize(
    ("content", "table", "message"),
    [
        ("path,label\na,b\n", Table(label="lable"), r"no column 'lable': did you mean Table.label='label'\?"),
        ("file,kind\na,b\n", Table(), "no column 'path': set Table.path to one of file, kind, which commas separate"),
        ("path,label\na,b\n", Table(group="patient"), "no column 'patient'"),
        ("path,label\n", Table(), "has no rows"),
        ("", Table(), "has no content"),
        ("path,label\n,b\n", Table(), "1 rows without a path"),
        ("path,label,split\na,b,holdout\n", Table(), "has the split 'holdout'"),
        ("path,label,weight\na,b,much\n", Table(), "has the weight 'much'"),
        ("path,label,weight\na,b,-1\n", Table(), "has the weight '-1'"),
        ("path,label,weight\na,b,\n", Table(), "weights are numbers"),
        ("path,label,weight\na,b,inf\n", Table(), r"has the weight 'inf': weights are numbers from 0 to 3\.4e\+38"),
        ("path,label,weight\na,b,1e39\n", Table(), r"has the weight '1e\+?39'"),
    ],
)
def test_a_table_with_a_mistake(tmp_path: Path, content: str, table: Table, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        table.read(tmp_path / "t.csv")


def test_parts_of_a_dataset_beside_its_splits_are_refused() -> None:
    assert are_splits(["train", "validation", "test"], Path("digits"))
    assert not are_splits(["all"], Path("digits"))
    with pytest.raises(UserError, match=r"digits has splits \(train, test\) and other parts \(extra\): save those"):
        are_splits(["train", "test", "extra"], Path("digits"))


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="cannot be read as a table"):
        Table().read(tmp_path / "t.parquet")
    for name, way_out in {"t.xlsx": "save the sheet as CSV", "t.jsonl": "a row per image", "t.xyz": "a .csv"}.items():
        with pytest.raises(UserError, match=f"no table that we read: .*{way_out}"):
            Table().read(touch(tmp_path, name) / name)
    (tmp_path / "sheet.csv").write_bytes(b"PK\3\4" + bytes(20))
    with pytest.raises(UserError, match="no table but a ZIP archive or an Office document"):
        Table().read(tmp_path / "sheet.csv")
    (tmp_path / "pointer.csv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match=r"a pointer of Git LFS.*git lfs pull"):
        Table().read(tmp_path / "pointer.csv")


def test_elpv_is_what_was_published() -> None:
    """2,624 cells; the counts of probability x type are those of the package's labels.csv, counted by hand."""
    images = Elpv().read(None)
    assert len(images) == 2_624
    assert all(Path(path).is_file() for path in images["path"])
    assert images["stratum"].value_counts().to_dict() == {
        "0.00 poly": 920,
        "0.00 mono": 588,
        "1.00 poly": 402,
        "1.00 mono": 313,
        "0.33 poly": 178,
        "0.33 mono": 117,
        "0.67 mono": 56,
        "0.67 poly": 50,
    }
    probability = images["stratum"].str.slice(0, 4)
    assert set(images.loc[probability.isin(["0.00", "0.33"]), "label"]) == {"functional"}
    assert set(images.loc[probability.isin(["0.67", "1.00"]), "label"]) == {"defective"}
    weights = images.groupby(probability)["weight"].unique()
    for name, weight in {"0.00": 1.0, "0.33": 1 / 3, "0.67": 2 / 3, "1.00": 1.0}.items():
        assert weights[name].tolist() == pytest.approx([weight])


def test_elpv_with_another_threshold_or_folder(tmp_path: Path) -> None:
    images = Elpv(threshold=0.2).read(None)
    assert (images["label"] == "defective").sum() == 2_624 - 920 - 588
    (tmp_path / "labels.csv").write_text("images/x.png  1.0   mono\nimages/y.png  0.0   poly\n")
    assert Elpv().read(tmp_path)["path"].tolist() == [str(tmp_path / "images/x.png"), str(tmp_path / "images/y.png")]
    with pytest.raises(UserError, match="not ELPV's list"):
        Elpv().read(touch(tmp_path, "sub/x.png") / "sub")
