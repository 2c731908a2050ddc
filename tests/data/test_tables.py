"""Tables are read as people export them; what cannot be read, or is no list of single labels, gets one sentence."""

import logging
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from graftline.data.sources.table import Table
from graftline.errors import UserError

PLAIN = "path;label\na.png;Kratzer\nb.png;gut, sauber\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the files that most tables here list; nothing looks into them."""
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def read(root: Path, content: str | bytes, name: str = "t.csv", **columns: str) -> pd.DataFrame:
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Table(**columns).read(root / name)


def names(images: pd.DataFrame) -> list[str]:
    return [Path(path).name for path in images["path"]]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode("utf-8-sig"),
        ("sep=;\r\n" + PLAIN).encode("utf-8-sig"),
        ("sep=#\n" + PLAIN.replace(";", "#")).encode(),
        PLAIN.replace(";", "\t").encode("utf-16"),
        PLAIN.replace(";", "\t").encode("utf-16-le"),
        PLAIN.replace(";", "\t").encode("utf-16-be"),
        PLAIN.encode("utf-32"),
        PLAIN.replace(";", "|").encode(),
        PLAIN.replace(";", "\t").replace("\n", "\r").encode(),
        b'path,label\na.png,Kratzer\nb.png,"gut, sauber"\n',
        b'path,label\na.png, Kratzer\nb.png, "gut, sauber"\n',
        b' path , label \na.png,Kratzer \nb.png," gut, sauber\t"\n',
        b'path,label,\na.png,Kratzer,\nb.png,"gut, sauber",\n',
        b'path,label\na.png,Kratzer,\nb.png,"gut, sauber",\n',
        b',path,label\n0,a.png,Kratzer\n1,b.png,"gut, sauber"\n',
        b'\n\npath,label\n,\na.png,Kratzer\n\nb.png,"gut, sauber"\n',
    ],
)
def test_encoding_and_separator_are_recognized(root: Path, content: bytes) -> None:
    images = read(root, content)
    assert names(images) == ["a.png", "b.png"]
    assert images["label"].tolist() == ["Kratzer", "gut, sauber"]


def test_labels_are_compared_without_blanks_that_have_no_width(root: Path) -> None:
    images = read(root, "path,label\na.png,\ufeffboots\nb.png,boots\u200b\nc.png,boots\u00a0\n")
    assert images["label"].tolist() == ["boots"] * 3


def test_absolute_addresses_of_files_are_paths(root: Path) -> None:
    images = read(root, f"path,label\nfile://{root}/a.png,x\nfile://{root}/b.png,y\n")
    assert names(images) == ["a.png", "b.png"]


def test_the_index_of_a_parquet_file_may_be_of_any_kind(root: Path) -> None:
    listed, url = ["a.png", "b.png"], "https://nowhere.example/c.png"
    pd.DataFrame({"path": [*listed, url], "label": ["x", "y", "x"]}, index=[7, 7, 7]).to_parquet(root / "t.parquet")
    assert Table().read(root / "t.parquet")["path"].tolist() == [*(str(root / name) for name in listed), url]


def test_a_tsv_is_a_table(root: Path) -> None:
    assert read(root, PLAIN.replace(";", "\t"), "t.tsv")["label"].tolist() == ["Kratzer", "gut, sauber"]


def test_the_columns_that_are_wanted_tell_the_separator(root: Path) -> None:
    images = read(root, "file;kind, colour, size;x\na.png;1, 2, 3;4\n", path="file", label="x")
    assert images["label"].tolist() == ["4"]


def test_windows_letters_are_read_and_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = read(root, "path,label\na.png,caf\u00e9\nb.png,Gr\u00f6\u00dfe\n".encode("cp1252"))
    assert images["label"].tolist() == ["caf\u00e9", "Gr\u00f6\u00dfe"]
    assert "is read as Windows-1252" in caplog.text


def test_a_decimal_comma_is_a_number(root: Path) -> None:
    assert read(root, "path;label;weight\na.png;x;0,5\nb.png;y;1\n")["weight"].tolist() == [0.5, 1.0]


def test_labels_are_compared_without_blanks_and_in_one_unicode_form(root: Path) -> None:
    accent = "caf\u00e9"
    content = f"path,label,group\na.png,{accent},p1\nb.png,{unicodedata.normalize('NFD', accent)} ,p1 \nc.png,  ,p2\n"
    images = read(root, content)
    assert images["label"].iloc[:2].tolist() == [accent, accent]
    assert pd.isna(images["label"].iloc[2])
    assert images["group"].tolist() == ["p1", "p1", "p2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "path,label\na.png,x\nb.png,gut, sauber\n",
            "3 values for 2 columns in line 3, separated by commas: .*quotation",
        ),
        ('path,label\na.png,"x\nb.png,y\n', "quotation mark that is not closed"),
        (f"path,label\na.png,{'x' * 200_000}\n", "cannot be read as a table"),
        ("path,label,label\na.png,x,y\n", "2 columns 'label'"),
        ("a.png,x\nb.png,y\n", "first line is an image's: put a line of column names"),
        ("<!DOCTYPE html><html>", "no table but HTML"),
        ("exported in 2024\npath,label\na.png,x\n", "2 values in line 2.*remove what stands over the line of column"),
        ('"path,label"\n"a.png,x"\n', "each of its lines is in quotation marks as a whole"),
        ("path,label\na.png,dog;out\nb.png,dog;in\nc.png,cat;out\n", "several labels for an image"),
        ("path,label\na.png,dog|out\nb.png,dog\nc.png,cat\n", "several labels for an image"),
        ("path label\na.png x\n", "no column 'path', only one column: separate columns by commas"),
        ("Path,Label\na.png,x\n", "did you mean Table.path='Path'"),
        ("path,cat,dog\na.png,1,0\nb.png,0,1\n", r"column of 0 and 1 for each class \(cat, dog\).*one column, 'label'"),
        ("image;MEL;NV\na;1,0;0,0\nb;0,0;1,0\n", r"column of 0 and 1 for each class \(MEL, NV\).*Table\.path"),
        ("path,label\na.png,\"['x', 'y']\"\nb.png,\"['x']\"\n", "several labels for an image"),
        (
            "path,label\na.png,cat|dog\nb.png,cat\nc.png,dog\n",
            r"several labels for an image \(cat\|dog\).*without '\|'",
        ),
        ('path,label\na.png,"a, b"\nb.png,"b, c"\nc.png,"a, c"\na.png,"a, b, c"\n', "several labels for an image"),
    ],
)
def test_a_table_that_cannot_be_read_is_told_with_the_way_out(root: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(root, content)


@pytest.mark.parametrize(
    "labels", ["gut, sauber|schlecht|gut", "1,0|1,5|2,0|2,5|0,5|0,0", "ankle boot|boot|rain boot|ankle sock|rain sock"]
)
def test_a_name_with_a_comma_or_blanks_is_one_label(root: Path, labels: str) -> None:
    several = labels.split("|")
    rows = "".join(f'a.png;"{label}"\n' for label in several)
    assert read(root, f"path;label\n{rows}")["label"].tolist() == several


def make(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")


NFC, NFD = unicodedata.normalize("NFC", "\u00e4"), unicodedata.normalize("NFD", "\u00e4")


@pytest.mark.parametrize(
    ("listed", "there", "told"),
    [
        (["img\\ok\\1.png", "img\\ok\\2.png"], ["img/ok/1.png", "img/ok/2.png"], r"with '/' for '\'"),
        (["dcim/i1.jpg", "dcim/i2.jpg"], ["DCIM/I1.JPG", "DCIM/I2.JPG"], "with other capitals"),
        (["1", "2.5"], ["1.png", "2.5.png"], "with another extension"),
        (["1.jpg", "2.jpg"], ["1.png", "2.png"], "with another extension"),
        (["1.png ", "2.png "], ["1.png", "2.png"], "without blanks around them"),
        ([f"{NFC}/1.png", f"{NFC}2.png"], [f"{NFD}/1.png", f"{NFD}2.png"], "in another Unicode form"),
        (["1.png", "2.png"], ["images/1.png", "images/2.png"], "below images/"),
        (["1.png", "2.png"], ["data/images/1.png", "data/images/2.png"], "below data/images/"),
        (["Ok\\1", "Ok\\2"], ["set/ok/1.png", "set/ok/2.png"], "below set/"),
        (["file://img/1.png", "./img//2.png "], ["img/1.png", "img/2.png"], "2"),
    ],
)
def test_files_are_found_in_the_words_of_another_system(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, listed: list[str], there: list[str], told: str
) -> None:
    make(tmp_path, *there)
    caplog.set_level(logging.WARNING)
    images = read(tmp_path, "path;label\n" + "".join(f"{path};x\n" for path in listed))
    assert images["path"].tolist() == [str(tmp_path / path) for path in there]
    assert told in caplog.text
    assert len(caplog.records) == 1


def test_files_are_found_beside_the_tables_folder(tmp_path: Path) -> None:
    make(tmp_path, "images/1.png", "images/2.png", "lists/t.csv")
    (tmp_path / "lists/t.csv").write_text("path,label\nimages/1.png,x\nimages/2.png,y\n")
    assert Table().read(tmp_path / "lists/t.csv")["path"].tolist() == [
        str(tmp_path / "images" / name) for name in ("1.png", "2.png")
    ]


def test_some_files_with_other_capitals_are_found_and_some_that_are_gone_stay_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, *(f"{number}.PNG" for number in range(30)), *(f"{number}.png" for number in range(30, 60)))
    listed = [f"{number}.png" for number in range(62)]
    images = read(tmp_path, "path,label\n" + "".join(f"{path},x\n" for path in listed))
    assert names(images) == [f"{number}.PNG" for number in range(30)] + listed[30:]
    assert "30 of 62 paths" in caplog.text


def test_no_file_is_taken_for_two_paths(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png", "images/2.png")
    content = "path,label\ncat/1.png,cat\ndog/1.png,dog\ncat/1.jpg,cow\n2.png,x\n"
    images = read(tmp_path, content)  # too few are missing to look in other folders
    assert images["path"].tolist() == [
        str(tmp_path / path) for path in ("cat/1.png", "dog/1.png", "cat/1.jpg", "2.png")
    ]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (
            ["D:\\lab\\set 3\\img\\1.png", "D:\\lab\\set 3\\img\\2.png"],
            "Windows drive, so write them relative.*'img/1.png'",
        ),
        (["/home/ann/img/1.png", "/home/ann/img/2.png"], "write them relative to the table's folder, as 'img/1.png'"),
        (["x/1.png", "y/2.png"], "write them relative to the table's folder, as 'img/1.png'"),
        (["8.png", "9.png"], "give them relative to"),
        (["C:\\8.png", "C:\\9.png"], "Windows drive, so give them relative to"),
        (["3.png", "4.png"], "several folders hold these, so write the right one in front, as 'left/3.png'"),
    ],
)
def test_files_that_are_not_there_are_told_in_one_sentence(tmp_path: Path, listed: list[str], message: str) -> None:
    make(tmp_path, "img/1.png", "img/2.png", *(f"{side}/{name}.png" for side in ("left", "right") for name in "34"))
    with pytest.raises(UserError, match=f"2 of 2 files that .* are not there.*{message}"):
        read(tmp_path, "path,label\n" + "".join(f"{path},x\n" for path in listed))


def test_measured_numbers_are_no_classes(root: Path) -> None:
    def table(*labels: object) -> str:
        return "path;label\n" + "".join(f"a.png;{label}\n" for label in labels)

    message = r"has 10 numbers as labels \(0.1\), .*: write a class into that column"
    with pytest.raises(UserError, match=message):
        read(root, table(0.1, "1e-3", *range(8)))
    with pytest.raises(UserError, match=message):
        read(root, table("0,1", *range(9)))
    for labels in (range(10), [0.1, *range(8)], [0.1, *range(9)] * 2, [0.1, "x", *range(9)]):
        assert read(root, table(*labels))["label"].tolist() == [str(label) for label in labels]


def test_whole_numbers_that_pandas_wrote_beside_an_empty_cell_have_no_point(root: Path) -> None:
    assert read(root, "path,label\na.png,3.0\nb.png,\nc.png,-10.0\n")["label"].dropna().tolist() == ["3", "-10"]
    assert read(root, "path,label\na.png,3.0\nb.png,3.5\nc.png,3.0\n")["label"].tolist() == ["3.0", "3.5", "3.0"]


def test_all_unknown_splits_are_named(root: Path) -> None:
    with pytest.raises(UserError, match="has the split 'hold-out', 'tune': use train"):
        read(root, "path,label,split\na.png,x,train\nb.png,y,hold-out\nc.png,y,tune\n")
