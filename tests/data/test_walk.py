"""Folders are walked as a person sees them: through links, once, and without what systems leave there."""

from collections import Counter
from pathlib import Path

import pytest

from graftline.data.walk import is_leftover, list_folders, walk_files
from graftline.errors import UserError


def walk(root: Path) -> list[str]:
    return [str(Path(file).relative_to(root)) for file in walk_files(root)]


def make(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
    return root


LEFTOVERS = [
    *("@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/old.png", "#snapshot/a.png", "@Recycle/a.png", "~snapshot/x"),
    *(
        "$RECYCLE.BIN/a.png",
        "System Volume Information/x",
        "FOUND.000/a.png",
        "Thumbs.db",
        "desktop.ini",
        "~$list.xlsx",
    ),
    *("__MACOSX/._a.png", ".DS_Store", "._a.png", ".Trashes/501/a.png", ".Spotlight-V100/x", "Icon\r"),
    *("lost+found/a.png", ".ipynb_checkpoints/a.png", ".thumbnails/a.png", ".git/x", "__pycache__/x"),
]


@pytest.mark.parametrize("file", LEFTOVERS)
def test_leftovers_are_passed_over_and_counted(tmp_path: Path, file: str) -> None:
    make(tmp_path, "cat/a.png", f"cat/{file}", file)
    leftovers: Counter[str] = Counter()
    assert [Path(path).name for path in walk_files(tmp_path, leftovers)] == ["a.png"]
    assert leftovers.total() == 2
    assert [folder.name for folder in list_folders(tmp_path)] == ["cat"]


@pytest.mark.parametrize("name", ["recycled", "icon", "found", "thumbs", "temporary", "c#", "user@host", "~", "db"])
def test_names_of_classes_are_no_leftovers(name: str) -> None:
    assert not is_leftover(name)


def test_links_are_followed_once_and_never_back(tmp_path: Path) -> None:
    make(tmp_path, "store/1.png", "store/deep/2.png", "set/cat/3.png", "set/dog/4.png")
    root = tmp_path / "set"
    (root / "cat/here").symlink_to("../../store")
    (root / "cat/there").symlink_to("../../store")  # a second way to the same folder
    (root / "cat/one.png").symlink_to("../../store/1.png")
    (root / "cat/gone.png").symlink_to("nowhere.png")
    (root / "cat/loop").symlink_to(".")
    (root / "cat/up").symlink_to("../..")
    expected = ["3.png", "gone.png", "here/1.png", "here/deep/2.png", "one.png"]
    assert sorted(walk(root / "cat")) == expected
    assert [folder.name for folder in list_folders(root / "cat")] == ["here", "there"]
    (tmp_path / "link").symlink_to("set/cat")
    assert sorted(walk(tmp_path / "link")) == expected


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    make(tmp_path, "file")
    with pytest.raises(UserError, match=r"file cannot be read \(Not a directory\)"):
        list_folders(tmp_path / "file")
