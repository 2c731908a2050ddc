"""A source becomes a checked and split dataset version; what is wrong with it is found, told and left out."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ingested import ingest, kinds
from PIL import Image

from graftline.data.decode import decode_rgb
from graftline.data.findings import Finding
from graftline.data.ingest import Ingest
from graftline.data.sources.archive import Archive
from graftline.data.sources.elpv import Elpv
from graftline.data.sources.folder import Folder
from graftline.data.sources.table import Table
from graftline.data.split import Split
from graftline.data.version import DatasetVersion, newest_version
from graftline.data.version_writing import TEST_SETS
from graftline.errors import UserError


def test_a_clean_folder_becomes_a_version(tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "pets", cat=20, dog=20)
    result = Ingest(None, str(root), Folder(), Split(), directory=str(tmp_path / "versions")).run()
    assert result.is_new
    assert result.findings == []
    assert result.version.directory == tmp_path / "versions" / "pets" / result.version.digest
    assert result.version.class_names == ("cat", "dog")
    assert result.version.counts()["train"] == {"cat": 12, "dog": 12}
    table = result.version.table()
    assert (table["width"].unique().tolist(), table["height"].unique().tolist()) == ([16], [12])
    assert "new dataset version" in capsys.readouterr().out


def test_nothing_new_is_told(tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    first = ingest(tmp_path, root)
    manifest = first.version.directory / "manifest.parquet"
    written = manifest.stat()
    capsys.readouterr()
    again = ingest(tmp_path, root)
    assert again.version == first.version
    assert not again.is_new
    now = manifest.stat()
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert "nothing is new" in capsys.readouterr().out


def test_the_same_images_elsewhere_are_the_same_version(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    first = ingest(tmp_path, root)
    moved = root.rename(tmp_path / "moved")
    second = ingest(tmp_path, moved)
    assert (second.version.digest, second.is_new) == (first.version.digest, False)
    assert all(Path(path).exists() for path in second.version.samples("train").paths)


def test_elpv_again_takes_a_fraction_of_the_time(tmp_path: Path) -> None:
    settings = Ingest(name="elpv", path=None, source=Elpv(), split=Split(), directory=str(tmp_path))
    seconds = [time.process_time()]
    first = settings.run()
    assert first.version.digest == "307aaa877fffdfd7"  # as ever: bundles and runs name it
    assert first.version.counts()["test"] == {"functional": 451, "defective": 205}
    samples = first.version.samples("test")
    assert samples.weights is not None
    assert first.findings == []
    types = first.version.further_columns(first.version.table()["sha256"])["type"]
    assert types.value_counts().to_dict() == {"poly": 1_550, "mono": 1_074}  # lines of the package's labels.csv
    assert (types.astype("str") == first.version.table()["stratum"].str.slice(5)).all()
    seconds.append(time.process_time())
    again = settings.run()
    seconds.append(time.process_time())
    assert not again.is_new
    assert seconds[2] - seconds[1] < (seconds[1] - seconds[0]) / 4  # about 0.3 s after 5 s


def spoil(root: Path, make_image: Any) -> dict[str, str]:
    """Put a file of each bad kind into a folder; return their paths and kinds."""
    good = (root / "cat/000.png").read_bytes()
    (root / "cat/empty.png").write_bytes(b"")
    (root / "cat/words.png").write_bytes(b"these are words")
    (root / "cat/cut.png").write_bytes(good[: len(good) // 2])
    make_image(root / "dog/speck.png", seed=900, size=(7, 40))
    make_image(root / "dog/huge.png", seed=901, size=(101, 100))
    make_image(root / "loose.png", seed=902)
    (root / "dog/gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "dog/pipe.png")  # reading it would wait for ever
    return {
        "cat/empty.png": "empty",
        "cat/words.png": "unreadable",
        "cat/cut.png": "broken",
        "dog/speck.png": "tiny",
        "dog/huge.png": "too_large",
        "loose.png": "no_label",
        "dog/gone.png": "missing",
        "dog/pipe.png": "unreadable",
    }


def test_bad_images_are_listed_and_left_out(
    tmp_path: Path, make_folder: Any, make_image: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    clean = ingest(tmp_path, root)
    bad = spoil(root, make_image)
    result = ingest(tmp_path, root, max_pixels=10_000)
    assert kinds(result, root) == bad
    assert result.version == clean.version
    listed = json.loads((result.version.directory / "findings.json").read_text())
    assert [Finding(**finding) for finding in listed] == result.findings
    assert all(finding.detail for finding in result.findings)
    told = capsys.readouterr().out
    assert "1 truncated or broken, left out" in told
    assert "2 not readable as an image, left out" in told
    assert "findings.json" in told


def test_bad_images_stop_if_they_should(tmp_path: Path, make_folder: Any, make_image: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    assert ingest(tmp_path, root, on_invalid="fail").is_new
    bad = spoil(root, make_image)
    with pytest.raises(UserError, match=r"8 images cannot be used .*Ingest.on_invalid=.leave_out"):
        ingest(tmp_path, root, on_invalid="fail", max_pixels=10_000)
    beside = tmp_path / "versions/set/findings.json"  # as there is no version that they could belong to
    listed = json.loads(beside.read_text())
    assert {os.path.relpath(finding["path"], root) for finding in listed} == set(bad)
    assert ingest(tmp_path, root, max_pixels=10_000).findings
    assert not beside.exists()


def test_the_content_decides_not_the_extension(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    (root / "cat/000.png").rename(root / "cat/000.jpg")
    (root / "cat/001.png").rename(root / "cat/001")
    (root / "cat/002.png").rename(root / "cat/002.PNG")
    pictures = [Image.open(root / f"dog/00{number}.png") for number in range(2)]
    pictures[0].save(root / "dog/phone.jpg", "MPO", save_all=True, append_images=pictures[1:])
    result = ingest(tmp_path, root)
    assert kinds(result, root) == {"cat/000.jpg": "wrong_extension", "cat/001": "wrong_extension"}
    assert {finding.detail for finding in result.findings} == {"it is PNG"}
    assert len(result.version.table()) == 21


def test_classes_are_judged(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=60, dog=5, owl=1)
    result = ingest(tmp_path, root, min_images_per_class=6)
    found = {(finding.kind, finding.path) for finding in result.findings}
    assert {("few_images", "dog"), ("few_images", "owl"), ("imbalance", "cat"), ("not_in_split", "owl")} <= found
    assert ("few_images", "cat") not in found
    assert "60 images, but owl has 1" in next(f.detail for f in result.findings if f.kind == "imbalance")


def test_a_given_split_is_judged(tmp_path: Path, make_folder: Any, make_image: Any) -> None:
    rows = []
    for number in range(20):
        split = "test" if number % 4 == 0 else "train"
        make_image(tmp_path / f"{number}.png", seed=number)
        rows.append((f"{number}.png", "ab"[number % 2], split, f"g{number // 2}"))
    rows[0] = (rows[0][0], "b", *rows[0][2:])
    pd.DataFrame(rows, columns=["path", "label", "split", "group"]).to_csv(tmp_path / "t.csv", index=False)
    found = {(f.kind, f.path) for f in ingest(tmp_path, tmp_path / "t.csv", Table()).findings}
    assert ("drawn_split", "validation") in found
    assert ("group_in_two_splits", "g0") in found
    assert ("group_in_two_splits", "g1") not in found


def test_a_class_only_to_be_tested_is_a_mistake(tmp_path: Path, make_folder: Any) -> None:
    root = tmp_path / "pets"
    make_folder(root / "train", cat=5, dog=5)
    make_folder(root / "test", first_seed=50, cat=5, owl=5)
    with pytest.raises(UserError, match="class 'owl' has no training images"):
        ingest(tmp_path, root)
    make_folder(root / "val", first_seed=90, cat=5, emu=5)
    with pytest.raises(UserError, match="classes 'emu', 'owl' have no training images"):
        ingest(tmp_path, root)


def test_one_class_is_not_enough(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=5)
    with pytest.raises(UserError, match="only the class 'cat'"):
        ingest(tmp_path, root)
    make_folder(root / "cat", first_seed=50, lion=5, tiger=5)
    with pytest.raises(UserError, match=r"\(lion, tiger\) are the classes, give 'cat' itself as Ingest\.path, or"):
        ingest(tmp_path, root)


def test_files_whose_names_are_not_utf8_are_read(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=5, dog=5)
    (root / "cat/000.png").rename(root / "cat" / os.fsdecode(b"caf\xe9.png"))
    (root / "dog").rename(root / os.fsdecode(b"d\xf6g"))
    result = ingest(tmp_path, root)
    assert result.version.class_names == ("cat", r"d\xf6g")
    samples = [result.version.samples(split) for split in ("train", "validation", "test")]
    files = [path for part in samples for path in part.paths]
    assert len(files) == 10
    assert str(root / r"cat/caf\xe9.png") in files
    assert all(decode_rgb(file).size > 0 for file in files)


def test_a_class_without_usable_images_is_a_mistake(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=5, dog=1)
    (root / "dog/000.png").write_bytes(b"")
    with pytest.raises(UserError, match="No image of the class 'dog' can be used"):
        ingest(tmp_path, root)
    for file in (root / "cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"No image can be used .*has no content"):
        ingest(tmp_path, root)


def test_numbers_as_classes_are_in_their_order(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "digits", **{"10": 3, "9": 3, "0": 3})
    assert ingest(tmp_path, root).version.class_names == ("0", "9", "10")


def test_the_name_comes_from_the_path(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "my pets.v2", cat=5, dog=5)
    shutil.make_archive(str(tmp_path / "packed"), "gztar", root)
    for path, source, name in (
        (root, Folder(), "my-pets-v2"),
        (tmp_path / "packed.tar.gz", Archive(cache=str(tmp_path / "cache")), "packed"),
    ):
        assert Ingest(None, str(path), source, Split(), directory=str(tmp_path / "v")).run().version.name == name


def test_another_folder_of_the_same_name_is_tested_as_a_whole(tmp_path: Path, make_folder: Any) -> None:
    def ingest_of(root: Path) -> Ingest:
        return Ingest(None, str(root), Folder(), Split(), directory=str(tmp_path / "v"))

    trained = ingest_of(root := make_folder(tmp_path / "2024" / "photos", cat=12, dog=12)).run().version

    def as_test(root: Path) -> tuple[DatasetVersion, int]:
        result, split = ingest_of(root).run_as_test(trained.class_names, [trained.digest, trained.test_digest])
        return result.version, sum(result.version.counts()[split].values())

    other, count = as_test(make_folder(tmp_path / "2025" / "photos", first_seed=50, cat=10, dog=10))
    assert (other.directory.parent.name, other.parent, count) == (TEST_SETS, None, 20)
    assert newest_version(tmp_path / "v" / "photos") == trained
    assert as_test(root) == (trained, 6)
    make_folder(root / "cat", first_seed=90, more=8)
    grown, count = as_test(root)
    assert (grown.parent, count) == (trained.digest, 8)


def test_a_version_without_any_image_of_before_is_told(
    tmp_path: Path, make_folder: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("graftline"), "propagate", True)

    def run(root: Path, name: str | None = None, parent: str = "newest") -> str:
        caplog.clear()
        Ingest(name, str(root), Folder(), Split(), parent, directory=str(tmp_path / "v")).run()
        return caplog.text

    cats = make_folder(tmp_path / "cats" / "images", cat=5, dog=5)
    solder = make_folder(tmp_path / "solder" / "images", first_seed=50, good=5, bad=5)
    assert "None of the images" not in run(cats)
    make_folder(cats, first_seed=90, owl=3)
    assert "None of the images" not in run(cats)
    told = run(solder)
    assert f"of images ({cats}) is among these. Give another data set a name of its own (Ingest.name)" in told
    assert "None of the images" not in run(solder)
    assert "None of the images" not in run(cats, parent="none")
    assert "None of the images" not in run(solder, name="solder")


def test_a_name_that_no_folder_can_have_is_refused_before_anything_is_read() -> None:
    for name, told in (("a/b", "is no name"), ("n" * 256, "256 bytes, more than the 255"), ("é" * 128, "256 bytes")):
        with pytest.raises(UserError, match=told):
            Ingest(name, "nowhere", Folder(), Split())
    assert Ingest("n" * 255, "nowhere", Folder(), Split()).dataset_name() == "n" * 255


def test_a_folder_a_table_and_an_archive_of_it_agree(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    rows = [(f"{label}/{number:03}.png", label) for label in ("dog", "cat") for number in range(10)]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(root / "labels.csv", index=False)
    folder = ingest(tmp_path, root)
    table = ingest(tmp_path, root / "labels.csv", Table())
    shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    archive = ingest(tmp_path, tmp_path / "packed.zip", Archive(cache=str(tmp_path / "cache")))
    assert folder.version.digest == table.version.digest == archive.version.digest
    assert (folder.is_new, table.is_new, archive.is_new) == (True, False, False)


def test_odd_names_are_told_as_they_are(tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    (root / "cat/[bold]\u00e9 [red].png").write_bytes(b"")
    ingest(tmp_path, root)
    assert "[bold]\u00e9 [red].png" in capsys.readouterr().out


def test_several_at_once_are_one_after_the_other(tmp_path: Path, make_folder: Any) -> None:
    """Each in a process of its own: one version of the same images, and versions that grow from each other."""
    root = make_folder(tmp_path / "pets", cat=12, dog=12)
    more = make_folder(tmp_path / "more" / "pets", cat=16, dog=16)
    program = (
        "import sys; from graftline.data.ingest import Ingest; from graftline.data.sources.folder import Folder; "
        "from graftline.data.split import Split; "
        "Ingest(None, sys.argv[1], Folder(), Split(), directory=sys.argv[2]).run()"
    )
    commands = [[sys.executable, "-c", program, str(path), str(tmp_path / "v")] for path in (root, root, more)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate()[1] for process in processes] == [""] * 3
    versions = [DatasetVersion.load(file.parent) for file in (tmp_path / "v" / "pets").glob("*/summary.json")]
    assert len(versions) == 2
    assert sum(version.parent is None for version in versions) == 1
    left = {path.name for path in (tmp_path / "v" / "pets").iterdir()}
    assert left == {*(version.digest for version in versions), "checked.parquet"}


def test_what_is_for_a_test_only_is_told_before_images_are_looked_at(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "new" / "test", cat=3, dog=3).parent
    with pytest.raises(UserError, match="no training images, only test"):
        ingest(tmp_path, root)
    assert not list(tmp_path.rglob("checked.parquet"))
