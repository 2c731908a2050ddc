"""Answers to images as a table."""

import os
from pathlib import Path

import numpy as np
from bundles import tabulate
from PIL import Image

from graftline.bundle.predictor import Predictor
from graftline.data.image_list import find_images


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

    predictor = Predictor.from_directory(bundle)
    table = tabulate(predictor, find_images(tmp_path))

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


def test_a_name_that_is_not_utf8_is_escaped_in_the_table(bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (70, 90)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    table = tabulate(Predictor.from_directory(bundle), find_images(tmp_path))
    table.to_csv(tmp_path / "t.csv", index=False)
    assert table["path"].tolist() == [f"{tmp_path}/caf\\xe9.png"]
    assert table["error"].isna().all()
