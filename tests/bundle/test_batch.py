"""As many images as there are, part by part, whatever happens in between."""

import errno
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bundles import change_description
from file_server import Files, serve
from full_disk import files_up_to
from PIL import Image
from workplace import Workplace

from conftest import COLORS, paint
from graftline.bundle.batch import BatchJob, Tally
from graftline.bundle.ensemble import load_predictor
from graftline.bundle.layout import bundle_digest, read_description
from graftline.bundle.predictor import Predictor
from graftline.data import decode, image_bytes, remote
from graftline.data.decoding import NO_FILE
from graftline.data.file_names import to_text
from graftline.data.image_list import ImageList, ImageLister, find_images
from graftline.data.references import find_place
from graftline.data.shards.index import KNOWN, SUMMARY
from graftline.data.shards.write import write_shards
from graftline.errors import UserError
from graftline.locks import Lock
from graftline.pipeline.__main__ import main

NUM_IMAGES = 130
COLUMNS = ["path", "class", "probability", "probability/ant", "probability/bee/wasp", "probability/cat", "error"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 images, a few of which cannot be read."""
    root = tmp_path_factory.mktemp("photos")
    colors = list(COLORS.values())
    for number in range(NUM_IMAGES):
        paint(colors[number % 3], number).save(root / f"{number:03}.png")
    (root / "005.png").write_bytes(b"")
    (root / "077.png").write_text("no image")
    Image.new("RGB", (8, 8)).save(root / os.fsdecode(b"caf\xe9.png"))
    (root / "012.png").unlink()
    (root / "012.png").symlink_to("nowhere.png")
    return root


def listed(images: Path, folder: Path) -> ImageList:
    return ImageLister().read(images, folder)


def read(folder: Path) -> pd.DataFrame:
    """Return the rows of all parts of the one job."""
    return pd.concat([pd.read_csv(part) for part in sorted(folder.glob("*/part-*.csv"))], ignore_index=True)


@pytest.mark.parametrize("part_rows", [1, 40, 64, 5000])
def test_the_parts_hold_a_row_for_each_image(bundle: Path, photos: Path, tmp_path: Path, part_rows: int) -> None:
    predictor, images, done = Predictor.from_directory(bundle), listed(photos, tmp_path), list[int]()
    job = BatchJob(predictor, images, tmp_path, part_rows=part_rows)
    counts = job.run(done.append)
    assert sum(done) == NUM_IMAGES + 1
    table = read(tmp_path)
    sizes = [len(pd.read_csv(part)) for part in sorted(job.folder.glob("part-*.csv"))]
    assert set(sizes[:-1]) <= {part_rows}
    assert table.columns.tolist() == COLUMNS
    assert table["path"].tolist() == [image.name.replace("\udce9", "\\xe9") for image in images]
    readable = table["error"].isna()
    expected = predictor.predict([image.path for image, ok in zip(images, readable, strict=True) if ok])
    np.testing.assert_allclose(table.loc[readable, COLUMNS[3:6]], expected, atol=1e-5)
    assert table.loc[~readable, "path"].map(lambda path: Path(path).name).tolist() == ["005.png", "012.png", "077.png"]
    assert table.loc[~readable, COLUMNS[1:6]].isna().all(axis=None)
    assert (counts.images, counts.unreadable) == (NUM_IMAGES + 1, 3)
    assert counts.classes == table["class"].value_counts().to_dict()
    assert counts.reasons["the file has no content"] == counts.reasons["there is no such file"] == 1


def test_parquet_parts_are_one_table(bundle: Path, photos: Path, tmp_path: Path) -> None:
    """Also where no row of the first part has an error, and all of another one have."""
    predictor = Predictor.from_directory(bundle)
    good = [os.fsencode(photos / f"{number:03}.png") + b"\n" for number in range(3)]
    bad = [b"nothing\n"] * 3
    job = BatchJob(predictor, ImageLister().read([*good, *bad], tmp_path), tmp_path, "parquet", part_rows=3)
    job.run()
    table = pd.read_parquet(job.folder)
    assert table.columns.tolist() == COLUMNS
    assert table["error"].isna().tolist() == [True] * 3 + [False] * 3
    assert table["probability"].dtype == np.float32


def test_what_is_done_is_not_done_again(bundle: Path, photos: Path, tmp_path: Path) -> None:
    predictor, images = Predictor.from_directory(bundle), listed(photos, tmp_path)
    job = BatchJob(predictor, images, tmp_path, part_rows=40)
    counts = job.run()
    parts = {part: part.stat().st_mtime_ns for part in job.folder.iterdir()}
    (job.folder / "part-00002.csv").unlink()
    (job.folder / ".part-00002.1.tmp.csv").write_text("half a")
    assert job.done()[0] == 2
    again = list[int]()
    assert job.run(again.append) == counts
    assert sum(again) == NUM_IMAGES + 1 - 80
    (job.folder / "_part-00002.json").unlink()
    assert job.done()[0] == 2, "a part without its counts is made anew"
    assert job.run() == counts
    kept = {part: time for part, time in parts.items() if part.name[-9:-4] in ("00000", "00001")}
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
    assert set(job.folder.iterdir()) == set(parts)
    again.clear()
    assert job.run(again.append) == counts
    assert not again


def test_each_model_and_each_list_has_a_folder_of_its_own(bundle: Path, photos: Path, tmp_path: Path) -> None:
    images = listed(photos, tmp_path)
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    change_description(other, decision={"thresholds": [0.1, 0.5, 0.4]})
    content = read_description(other)
    change_description(other, digest=bundle_digest(content, content["files"]))
    jobs = [
        BatchJob(load_predictor(bundle), images, tmp_path),
        BatchJob(load_predictor(other), images, tmp_path),
        BatchJob(load_predictor(bundle), listed(photos / "001.png", tmp_path), tmp_path),
        BatchJob(load_predictor(bundle), images, tmp_path, "parquet"),
        BatchJob(load_predictor(bundle), images, tmp_path, engine="torch"),
    ]
    assert len({job.folder for job in jobs}) == 5
    assert BatchJob(load_predictor(bundle), listed(photos, tmp_path), tmp_path).folder == jobs[0].folder


def test_two_do_not_write_to_one_folder(bundle: Path, photos: Path, tmp_path: Path) -> None:
    job = BatchJob(Predictor.from_directory(bundle), listed(photos, tmp_path), tmp_path)
    job.folder.mkdir()
    with Lock(job.folder / ".lock", shared=False), pytest.raises(UserError, match="Another process writes to"):
        job.run()


def test_counts_of_parts_add_up() -> None:
    table = pd.DataFrame({"class": ["a", None], "refused": pd.array([True, None], "boolean"), "error": [None, "torn"]})
    tally = Tally.of(table)
    assert Tally.from_dict(tally.to_dict()) == tally
    assert (tally + tally).to_dict() == {
        "images": 4,
        "classes": {"a": 2},
        "refused": 2,
        "reasons": {"torn": 2},
        "unreadable": 2,
    }


def test_a_killed_run_goes_on(workplace: Workplace, bundle: Path, photos: Path) -> None:
    typed = (f"model={bundle}", f"images={photos}", "accelerator=cpu", "part_rows=2")
    workplace.kill("predictions/*/part-00003.csv", "predict", *typed)
    before = {part: part.stat().st_mtime_ns for part in workplace.root.glob("predictions/*/part-*.csv")}
    assert 4 <= len(before) < 66
    ran = workplace.run("predict", *typed)
    assert ran.code == 0, ran.output
    assert f"{2 * len(before):,} images are done, {131 - 2 * len(before):,} left" in ran.output
    assert {part: part.stat().st_mtime_ns for part in before} == before
    table = read(workplace.root / "predictions")
    assert len(table) == table["path"].nunique() == NUM_IMAGES + 1
    assert ran.result["images"] == NUM_IMAGES + 1
    assert ran.result["done_before"] == 2 * len(before)
    again = workplace.run("predict", *typed)
    assert "131 images are done, 0 left" in again.output
    assert "speed" not in again.output


def test_ctrl_c_keeps_the_parts(workplace: Workplace, bundle: Path, photos: Path) -> None:
    typed = (f"model={bundle}", f"images={photos}", "accelerator=cpu", "part_rows=1")
    told = workplace.interrupt("predictions/*/part-00002.csv", "predict", *typed)
    assert " of 131 images are done and kept: the same command goes on with the rest." in told
    assert "raceback" not in told


def test_paths_come_on_standard_input(workplace: Workplace, bundle: Path, photos: Path) -> None:
    command = [*workplace.command("predict", f"model={bundle}", "images=-", "accelerator=cpu")]
    names = f"{photos}/000.png\n{photos}/001.png\n"
    done = subprocess.run(
        command, input=names, cwd=workplace.root, env=workplace.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert read(workplace.root / "predictions")["path"].tolist() == names.split()


def test_a_full_disk(
    workplace: Workplace,
    bundle: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workplace.root)
    Path("images").symlink_to(photos)
    typed = ["predict", f"model={bundle}", "images=images", "accelerator=cpu"]
    with files_up_to(4_500):
        assert main(typed) == 1
    told = capsys.readouterr().out
    assert "part-00000.csv cannot be written (" in told
    assert "make room on the disk" in told
    assert not list(workplace.root.glob("predictions/*/*.tmp*"))
    assert main(typed) == 0, "afterwards the same command does its work"
    assert len(read(workplace.root / "predictions")) == NUM_IMAGES + 1


@pytest.mark.parametrize("stage", ["predict", "export"])
@pytest.mark.parametrize("out", ["a_file", "a_file/below", "nowhere"])
def test_what_is_no_folder_gets_nothing(
    workplace: Workplace,
    bundle: Path,
    photos: Path,
    stage: str,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workplace.root)
    Path("a_file").touch()
    Path("nowhere").symlink_to("gone")
    more = [f"images={photos}"] if stage == "predict" else []
    assert main([stage, f"model={bundle}", f"out={out}", *more]) == 1
    in_the_way = out.partition("/")[0]
    told = f"out is {out}, but {in_the_way} is no folder: move it away, or choose another folder."
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("is_mount", [False, True])
@pytest.mark.parametrize("kind", ["folder", "table", "list"])
def test_a_folder_that_vanishes_is_not_done(
    bundle: Path, photos: Path, tmp_path: Path, kind: str, is_mount: bool
) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos", symlinks=True))

    def list_images() -> ImageList:
        files = sorted(root.iterdir())
        if kind == "list":
            return ImageLister().read([os.fsencode(file) + b"\n" for file in files], tmp_path)
        pd.DataFrame({"path": map(to_text, files)}).to_csv(tmp_path / "list.csv", index=False)
        return listed(root if kind == "folder" else tmp_path / "list.csv", tmp_path)

    job = BatchJob(Predictor.from_directory(bundle), list_images(), tmp_path / "out", part_rows=64)

    def vanish(_: int) -> None:
        if root.exists() and any(root.iterdir()):
            root.rename(tmp_path / "away")
            if is_mount:
                root.mkdir()  # an empty one is left where nothing is mounted

    with pytest.raises(UserError, match=rf"^{re.escape(str(root))} was away while its images were read \(first: "):
        job.run(vanish)
    if is_mount:
        root.rmdir()
    (tmp_path / "away").rename(root)
    again = BatchJob(job.predictor, list_images(), tmp_path / "out", part_rows=64)
    assert again.folder == job.folder
    assert again.run().reasons["there is no such file"] == 1, "the link that leads nowhere"


def test_files_that_are_gone_one_by_one_are_rows(bundle: Path, photos: Path, tmp_path: Path) -> None:
    """Also where a table has always listed some of a folder that is not there."""
    gone = Path(shutil.copy(photos / "000.png", tmp_path / "gone.png"))
    shutil.copy(gone, tmp_path / "stays.png")
    lines = [f"{gone}\n".encode(), f"{tmp_path}/nowhere/1.png\n".encode(), f"{tmp_path}/stays.png\n".encode()]
    images = ImageLister().read(lines, tmp_path)
    gone.unlink()
    counts = BatchJob(Predictor.from_directory(bundle), images, tmp_path / "out").run()
    assert (counts.images, counts.reasons) == (3, {NO_FILE: 2})


@pytest.mark.parametrize("is_told", [True, False])
def test_shards_are_rows_of_their_images(bundle: Path, photos: Path, tmp_path: Path, is_told: bool) -> None:
    """Whether `make shard` has said what belongs there, or each tar has its index."""
    paths = [str(photos / f"{number:03}.png") for number in range(20, 40)]
    images = pd.DataFrame({"path": paths, "label": "any"}, columns=["path", *KNOWN])
    write_shards(images, ["any"], tmp_path / "shards", "photos", 10_000, 1)
    if not is_told:
        (tmp_path / "shards" / SUMMARY).unlink()
    predictor = Predictor.from_directory(bundle)
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert len(shards) > 1
    list_of_all = listed(tmp_path / "shards", tmp_path)
    job = BatchJob(predictor, list_of_all, tmp_path / "out", part_rows=8)
    assert (job.run().images, list_of_all.title) == (20, "shards")
    table = read(tmp_path / "out")
    table["name"] = [find_place(path).name for path in table["path"]]  # type: ignore[union-attr]
    np.testing.assert_allclose(table.sort_values("name")[COLUMNS[3:6]], predictor.predict(paths), atol=1e-5)
    assert [str(path) for path in find_images(tmp_path / "shards")] == table["path"].tolist()
    assert {find_place(image.path).shard for image in listed(shards[0], tmp_path)} == {str(shards[0])}  # type: ignore[union-attr]
    os.utime(shards[0], (0, 0))
    assert listed(tmp_path / "shards", tmp_path).digest != list_of_all.digest


class Failing(io.BytesIO):
    """A file that a server has handed out, and that fails when it is read."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def read(self, _: int | None = -1) -> bytes:
        raise self.error


@pytest.mark.parametrize("fails", ["to open", "to read"])
@pytest.mark.parametrize(("number", "is_away"), [(errno.ESTALE, True), (errno.ENOTCONN, True), (errno.EIO, False)])
def test_a_file_system_that_is_away_is_no_matter_of_an_image(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, number: int, is_away: bool
) -> None:
    """Its files are there when they are asked for, and each fails: a day of rows with a reason would be no result."""
    error, opened = OSError(number, os.strerror(number)), image_bytes.open_image

    def open_image(reference: str) -> io.BytesIO | io.BufferedReader:
        if not reference.endswith("003.png"):
            return opened(reference)
        if fails == "to open":
            raise error
        return Failing(error)

    monkeypatch.setattr(decode, "open_image", open_image)
    job = BatchJob(Predictor.from_directory(bundle), listed(photos, tmp_path), tmp_path / "out")
    if is_away:
        told = r"photos\d* was away while its images were read \(first: .*003\.png, out of reach \("
        with pytest.raises(UserError, match=told):
            job.run()
    else:
        assert job.run().unreadable == 4


def test_an_outage_is_no_row_and_the_same_command_goes_on(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp", reason="of the extra remote: pip install graftline[remote]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.01,))
    remote.statuses.clear()
    with serve(photos) as url:
        rows = [f"{url}/{number:03}.png" for number in range(100, 104)]
        (tmp_path / "list.csv").write_text("\n".join(["path", *rows]))
        job = BatchJob(Predictor.from_directory(bundle), listed(tmp_path / "list.csv", tmp_path), tmp_path, part_rows=2)
        Files.refused = {"/102.png": 0}
        with pytest.raises(UserError, match=r"/102.png cannot be reached .*, after 2 tries"):
            job.run()
        Files.code = 403  # for all, as where a key has expired
        with pytest.raises(UserError, match=r"There is no access to .*/102.png"):
            job.run()
        Files.code, Files.refused = 0, {}
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "list.csv"))  # where nothing can be written
        with pytest.raises(UserError, match=r"cannot be kept in .*: make room there"):
            job.run()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert job.done()[0] == 0
        Files.refused = {"/102.png": 403}
        counts = job.run()
        remote.statuses.clear()  # as a new process
        assert [image.was_there for image in listed(tmp_path / "list.csv", tmp_path)] == [True, True, False, True]
        Files.code = 403
        remote.statuses.clear()
        monkeypatch.setattr(remote, "_answered", {})
        with pytest.raises(UserError, match=r"There is no access to .*/100.png"):
            listed(tmp_path / "list.csv", tmp_path)
    assert (counts.images, counts.unreadable) == (4, 1)
    assert read(tmp_path)["error"].dropna().tolist() == [
        f"There is no access to {rows[2]}: check the credentials (what its server asks for)."
    ]
