"""Folders that are to be written to are looked at before anything is computed for them."""

from pathlib import Path

import pytest

from graftline.errors import UserError
from graftline.files import check_folder


def test_a_folder_may_be_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path / "a" / "b", Path("a"), Path()):
        check_folder(path, "Export.out")
    assert not list(tmp_path.iterdir())


def test_what_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for path, there in (("file", "file"), ("file/a/b", "file"), ("link/a", "link")):
        told = f"^Export.out is {tmp_path / path}, but {tmp_path / there} is no folder: move it away, or choose another"
        with pytest.raises(UserError, match=told):
            check_folder(tmp_path / path, "Export.out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder that not even root may write to")
def test_a_folder_that_cannot_be_written_to_is_told() -> None:
    with pytest.raises(UserError, match=r"^Export.out is /proc/a, where nothing can be written \(.+\): allow it, or"):
        check_folder(Path("/proc/a"), "Export.out")


def test_there_is_no_standard_output() -> None:
    with pytest.raises(UserError, match=r"^Export.out is -, but nothing is written to standard output: choose a"):
        check_folder(Path("-"), "Export.out")
