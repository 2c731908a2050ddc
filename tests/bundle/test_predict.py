"""A folder of images as a table."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftline.bundle.predict import find_images, predict_directory
from graftline.bundle.predictor import Predictor
from graftline.errors import UserError


def test_each_file_gets_a_row(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".thumbnails").mkdir()
    generator = np.random.default_rng(0)
    good = [tmp_path / "a.png", tmp_path / "deep" / "b.jpg"]
    for path in (*good, tmp_path / ".thumbnails" / "c.png"):
        Image.fromarray(generator.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path)
    (tmp_path / "deep" / "bad.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("to be read by people", encoding="utf-8")
    (tmp_path / ".hidden").touch()

    predictor, done = Predictor.from_directory(bundle), list[int]()
    table = predict_directory(predictor, tmp_path, on_progress=done.append)

    columns = ["path", "class", "probability", "probability/ant", "probability/bee/wasp", "probability/cat", "error"]
    assert table.columns.tolist() == columns
    assert table["path"].tolist() == [
        str(tmp_path / name) for name in ("a.png", "deep/b.jpg", "deep/bad.jpg", "notes.txt")
    ]
    expected = predictor.predict(good)
    np.testing.assert_allclose(table.loc[[0, 1], columns[3:6]].to_numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(table.loc[[0, 1], "probability"], expected.max(axis=1), atol=1e-6)
    assert table.loc[[0, 1], "class"].tolist() == [predictor.class_names[index] for index in expected.argmax(axis=1)]
    assert table.loc[[0, 1], "error"].isna().all()
    assert table.loc[[2, 3], columns[1:6]].isna().all(axis=None)
    assert table.loc[2, "error"] == "the file has no content"
    assert str(table.loc[3, "error"]).startswith("it is text")
    assert sum(done) == 4


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


def test_a_name_that_is_not_utf8_is_escaped_in_the_table(bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (70, 90)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    table = predict_directory(Predictor.from_directory(bundle), tmp_path)
    table.to_csv(tmp_path / "t.csv", index=False)
    assert table["path"].tolist() == [f"{tmp_path}/caf\\xe9.png"]
    assert table["error"].isna().all()


def test_one_image_is_enough(bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (70, 90)).save(tmp_path / "x.png")
    Image.new("RGB", (70, 90)).save(tmp_path / "y.png")
    table = predict_directory(Predictor.from_directory(bundle), tmp_path / "x.png")
    assert table["path"].tolist() == [str(tmp_path / "x.png")]
    assert table["error"].isna().all()


def test_a_folder_without_images_is_refused(bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_directory(bundle)
    with pytest.raises(UserError, match="holds no files"):
        predict_directory(predictor, tmp_path)
    with pytest.raises(UserError, match=r"nothing at .*missing: give an image, or a folder"):
        predict_directory(predictor, tmp_path / "missing")
