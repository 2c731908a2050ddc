"""Images to classify are found wherever they are listed: folders, tables, archives, other programs' output."""

import io
import os
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from graftline.data.decode import DecodeError, decode_rgb
from graftline.data.image_list import ImageLister, ListedImage, find_images
from graftline.data.sources.archive import Archive
from graftline.data.sources.table import Table
from graftline.errors import UserError

NAMES = [os.fsencode(name) for name in ("a.png", "ä ö.png", "line\nbreak.png")] + [b"caf\xe9.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, one of whose names is not UTF-8, and one in a folder below."""
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    for name in (*NAMES, b"below/b.png"):
        Image.new("RGB", (8, 8)).save(root / os.fsdecode(name))
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_folder_is_walked_as_an_ingest_walks_it(folder: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "store" / "c.png")
    (folder / "linked").symlink_to(tmp_path / "store")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to("nowhere")
    (folder / ".hidden.png").touch()
    os.mkfifo(folder / "pipe.png")
    listed = ImageLister().read(folder, out)
    names = [os.fsencode(os.path.relpath(image.path, folder)) for image in listed]
    assert names == [*sorted([*NAMES, b"gone.png"]), b"below/b.png", b"linked/c.png"]
    assert (listed.kind, listed.title, listed.count) == ("folder", "photos", 7)
    assert [image.name for image in listed.starting_at(5)] == [f"{folder}/below/b.png", f"{folder}/linked/c.png"]
    assert not list(out.iterdir()), "the list leaves no file behind"


def test_the_digest_is_that_of_names_and_files(folder: Path, out: Path) -> None:
    lister = ImageLister()
    before = lister.read(folder, out).digest
    assert lister.read(folder, out).digest == before
    os.utime(folder / "a.png", ns=(1, 1))
    touched = lister.read(folder, out).digest
    (folder / "a.png").rename(folder / "b.png")
    renamed = lister.read(folder, out).digest
    (folder / "b.png").unlink()
    assert len({before, touched, renamed, lister.read(folder, out).digest}) == 4


def test_home_and_a_lone_image(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert ImageLister().read(Path("~/photos"), out).count == 5
    (image,) = ImageLister().read(Path("~/photos/below/b.png"), out)
    assert image == ListedImage(f"{folder}/below/b.png", f"{folder}/below/b.png")


def test_a_name_of_any_length_leaves_room_for_more(out: Path, tmp_path: Path) -> None:
    long = tmp_path / ("ä" * 127)
    long.mkdir()
    (long / "a.png").touch()
    assert ImageLister().read(long, out).title == "ä" * 50


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_lists_paths_relative_to_itself(folder: Path, out: Path, suffix: str) -> None:
    table = folder / f"list{suffix}"
    rows = pd.DataFrame({"file": ["a.png", "below\\b.png", "ä ö.png"], "note": ["x", "y", None]})
    rows.to_csv(table, index=False) if suffix == ".csv" else rows.to_parquet(table)
    listed = ImageLister(table=Table(path="file")).read(table, out)
    assert [image.name for image in listed] == ["a.png", "below\\b.png", "ä ö.png"], "as it is written there"
    assert [image.path for image in listed] == [f"{folder}/{name}" for name in ("a.png", "below/b.png", "ä ö.png")]
    with pytest.raises(UserError, match=r"no column 'path': set Table.path to one of file, note"):
        ImageLister().read(table, out)


def test_a_table_without_paths_is_refused(folder: Path, out: Path) -> None:
    table = folder / "list.csv"
    table.write_text("path,note\na.png,x\n,y\n")
    with pytest.raises(UserError, match="1 rows without a path"):
        ImageLister().read(table, out)
    table.write_text("path,note\n")
    with pytest.raises(UserError, match="has no rows"):
        ImageLister().read(table, out)
    table.write_text("path\nx.png\ny.png\n")
    with pytest.raises(UserError, match=r"2 of 2 files that .* lists are not there"):
        ImageLister().read(table, out)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_is_unpacked_once_and_known_by_its_content(
    folder: Path, out: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / f"photos.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("a.png", "below/b.png"):
                archive.write(folder / name, name)
    else:
        with tarfile.open(file, "w:gz") as archive:
            for name in ("a.png", "below/b.png"):
                archive.add(folder / name, name)
    lister = ImageLister(archive=Archive(cache=str(tmp_path / "cache")))
    listed = lister.read(file, out)
    assert (listed.kind, listed.title) == ("archive", "photos")
    assert [image.name for image in listed] == ["a.png", "below/b.png"]
    assert all(decode_rgb(image.path).shape == (8, 8, 3) for image in listed)
    again = ImageLister(archive=Archive(cache=str(tmp_path / "another"))).read(file, out)
    assert again.digest == listed.digest, "wherever it was unpacked"


def test_an_archive_may_hold_a_table(folder: Path, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "photos.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(folder / "below" / "b.png", "images/b.png")
        archive.writestr("list.csv", "path,label\nimages/b.png,cat\n")
    (image,) = ImageLister(archive=Archive(cache=str(tmp_path / "cache"))).read(file, out)
    assert image.name == "images/b.png"
    assert decode_rgb(image.path).shape == (8, 8, 3)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_lines_of_another_program_are_paths(folder: Path, out: Path, end: bytes) -> None:
    names = [os.fsencode(folder) + b"/" + name for name in NAMES if b"\n" not in name] + [b"no such file"]
    listed = ImageLister().read((end.join(names) + end + end).splitlines(keepends=True), out)
    assert [os.fsencode(image.path) for image in listed] == names
    assert listed.kind == "list"


@pytest.mark.parametrize("many", [1, 5_000])
def test_names_that_find_ends_with_a_zero_may_hold_line_breaks(folder: Path, out: Path, many: int) -> None:
    names = [b"line\nbreak.png", b"a\r\nb\n", b"\n", b"a.png"] * many
    listed = ImageLister().read(io.BytesIO(b"".join(name + b"\0" for name in names)), out)
    assert [os.fsencode(image.path) for image in listed] == names


def test_what_a_pipe_brings_is_not_in_memory_as_a_whole(out: Path) -> None:
    content = b"".join(b"%0800d\0" % number for number in range(5_000))
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as pipe:  # noqa: PTH123 (a descriptor)
            pipe.write(content)

    tracemalloc.start()
    try:
        with open(reading, "rb") as pipe:  # noqa: PTH123 (likewise)
            writer = threading.Thread(target=write)
            writer.start()
            assert ImageLister().read(pipe, out).count == 5_000
            writer.join()
        assert tracemalloc.get_traced_memory()[1] < len(content) / 4
    finally:
        tracemalloc.stop()


def test_a_password_in_a_path_on_standard_input_is_not_repeated(out: Path) -> None:
    for end in (b"\n", b"\0"):
        lines = io.BytesIO(end.join([b"a.png", b"https://host/b.png?token=hush", b""]))
        with pytest.raises(UserError, match=r"^A path on standard input is a URL with a password or") as raised:
            ImageLister().read(lines, out)
        assert "hush" not in str(raised.value)


def test_a_zero_in_a_path_shifts_no_row(folder: Path, out: Path) -> None:
    pd.DataFrame({"path": ["a\0b.png", "a.png", "\0", "below/b.png"]}).to_parquet(folder / "list.parquet")
    listed = ImageLister().read(folder / "list.parquet", out)
    names = ["a\ufffdb.png", "a.png", "\ufffd", "below/b.png"]
    expected = [ListedImage(name, f"{folder}/{name}", "\ufffd" not in name) for name in names]
    assert list(listed) == expected


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (Path("nothing"), "There is nothing at nothing: give an image, or a folder, table or archive"),
        (Path("empty"), "empty holds no files"),
        ([b"\n"], "No path came on standard input"),
    ],
)
def test_nothing_is_refused(
    images: Path, told: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=told):
        ImageLister().read(images, out)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DecodeError, match="this is no file"):
        decode_rgb(tmp_path / "pipe.png")
    with pytest.raises(DecodeError, match="this is no file"):
        decode_rgb(tmp_path)


def test_what_predictions_wrote_beside_images_is_passed_over(folder: Path) -> None:
    before = ImageLister().read(folder, folder / "predictions")
    for name in ("predictions/photos-1/_job.json", "predictions/photos-1/_part-00000.json", "below/.hydra/config.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("predictions/photos-1/part-00000.csv", "below/log.txt", "below/result.json"):
        (folder / name).touch()
    again = ImageLister().read(folder, folder / "predictions")
    assert (again.digest, again.count) == (before.digest, 5)
    assert {file.suffix for file in find_images(folder)} == {".png"}, "they are no images to explain or to watch"
    (folder / "log.txt").touch()
    (folder / "part-00000.csv").touch()
    assert ImageLister().read(folder, folder / "predictions").count == 7, "of others they are listed, with a reason"


def test_files_are_found_as_an_ingest_finds_them(tmp_path: Path) -> None:
    for name in (b"new/here.png", b"new/@eaDir/here.png", b"new/caf\xe9.png", b"store/1.png", b"store/2.png"):
        file = tmp_path / os.fsdecode(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    new = tmp_path / "new"
    for link, target in {"batch": "../store", "one.png": "../store/1.png", "loop": ".", "gone.png": "nowhere"}.items():
        (new / link).symlink_to(target)
    os.mkfifo(new / "pipe.png")  # reading it would wait for ever
    names = ["batch/1.png", "batch/2.png", os.fsdecode(b"caf\xe9.png"), "gone.png", "here.png", "one.png"]
    assert [str(path.relative_to(new)) for path in find_images(new)] == names


def test_a_lone_image_is_found_and_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    assert find_images(folder / "a.png") == [folder / "a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        find_images(tmp_path / "empty")
    with pytest.raises(UserError, match=r"nothing at .*missing: give an image, or a folder"):
        find_images(tmp_path / "missing")
    for name in ("list.csv", "photos.zip"):
        with zipfile.ZipFile(tmp_path / name, "w"):
            pass
        with pytest.raises(UserError, match=f"{name} is no image, but a table or archive: give the folder"):
            find_images(tmp_path / name)
