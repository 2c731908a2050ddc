"""Shards hold what was put in, any tool reads them, and one that has changed is told apart."""

import errno
import io
import json
import os
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import ingest

from conftest import paint
from graftline.data.decode import DecodeError, decode_rgb
from graftline.data.image_bytes import open_image
from graftline.data.ingest import Ingest
from graftline.data.loaders import DrawSampler
from graftline.data.references import find_place
from graftline.data.shards.index import SUMMARY, read_index
from graftline.data.shards.write import WrittenShards, write_shards
from graftline.data.sources.folder import Folder
from graftline.data.sources.shards import Shards, list_references
from graftline.data.sources.table import Table
from graftline.data.split import Split
from graftline.errors import UserError

from .conftest import MakeFolder, MakeImage

read = Shards(workers=1).read


def shard(source: Folder | Table, path: Path, out: Path, workers: int = 1, shard_bytes: int = 20_000) -> WrittenShards:
    listing = Ingest("pets", str(path), source, Split()).list_images()
    images, class_names = listing.images, listing.class_names
    return write_shards(images, class_names, out, "pets", shard_bytes, workers)


@pytest.fixture
def table(tmp_path: Path, make_image: MakeImage) -> Path:
    """A table with all that can be known, names that are no keys, and an image that is not there."""
    rows = [
        ("a.b.png", "dog", "train", "ann", 0.5, "old"),
        ("a.b.PNG", "cat", "validation", "bob", 1.0, "young"),
        ("sub/a.b.png", "cat", "test", "cleo", 2.0, "old"),
        ("gone.png", "cat", "test", "cleo", 2.0, "old"),
    ]
    for seed, (name, *_) in enumerate(rows[:3]):
        make_image(tmp_path / "images" / name, seed)
    file = tmp_path / "images" / "labels.csv"
    pd.DataFrame(rows, columns=["path", "label", "split", "group", "weight", "stratum"]).to_csv(file, index=False)
    return file


def test_they_give_back_what_was_put_in(tmp_path: Path, table: Path) -> None:
    written = shard(Table(), table, tmp_path / "out")
    assert (written.images, [Path(path).name for path in written.left_out]) == (3, ["gone.png"])

    before = Table().read(table).iloc[:3]
    images = read(tmp_path / "out")
    columns = before.columns.tolist()
    content = {open_image(path).read(): row for path, *row in images[columns].itertuples(index=False)}
    assert content == {Path(path).read_bytes(): row for path, *row in before.itertuples(index=False)}
    for path in images["path"]:
        assert decode_rgb(path).shape == (12, 16, 3)


def test_any_tool_reads_them(tmp_path: Path, table: Path) -> None:
    """By WebDataset's convention, which is to split the name at the first dot of its last part."""
    shard(Table(), table, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.tar")
    with tarfile.open(file) as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    keys = {name[: len(name) - len(Path(name).name)] + Path(name).name.partition(".")[0] for name in contents}
    assert len(keys) == 3
    for key in keys:
        assert sorted(name[len(key) :] for name in contents if name.startswith(f"{key}.")) == [".cls", ".json", ".png"]
        told = json.loads(contents[f"{key}.json"])
        assert ["cat", "dog"][int(contents[f"{key}.cls"])] == told["label"]
        assert (table.parent / told["source"]).read_bytes() == contents[f"{key}.png"]


def test_an_index_that_is_made_again_is_the_same(tmp_path: Path, table: Path) -> None:
    shard(Table(), table, tmp_path / "out")
    before = read(tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.index.parquet")
    content = pd.read_parquet(file)
    file.unlink()
    pd.testing.assert_frame_equal(read(tmp_path / "out"), before)
    pd.testing.assert_frame_equal(pd.read_parquet(file), content)


def test_processes_write_the_same_bytes(tmp_path: Path, make_folder: MakeFolder) -> None:
    folder = make_folder(tmp_path / "pets", cat=20, dog=11)
    assert shard(Folder(), folder, tmp_path / "one", workers=1).count > 3
    shard(Folder(), folder, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    labels = read(tmp_path / "two").groupby(lambda row: row // 8)["label"].nunique()
    assert (labels == 2).all()  # classes are mixed, for tools that read from front to back


def contents(folder: Path) -> dict[str, Any]:
    """Return the files of a folder by name; of an index its types, what it tells of its shard, and its rows."""
    return {
        file.name: index_content(file) if file.suffix == ".parquet" else file.read_bytes() for file in folder.iterdir()
    }


def index_content(file: Path) -> tuple[pa.Schema, dict[bytes, bytes], list[dict[str, Any]]]:
    """Return what an index holds but for the time of its shard."""
    table = pq.read_table(file)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"graftline.shard_modified"}
    return table.schema.remove_metadata(), metadata, table.to_pylist()


def test_ingest_divides_them_as_it_divides_the_folder(tmp_path: Path, make_folder: MakeFolder) -> None:
    folder = make_folder(tmp_path / "pets", cat=20, dog=11)
    version = ingest(tmp_path, folder).version
    shard(Folder(), folder, tmp_path / "out")
    result = ingest(tmp_path, tmp_path / "out", Shards(workers=1))
    assert result.version.parent == version.digest
    assert result.version.split_digests == version.split_digests
    assert result.findings == []
    assert not ingest(tmp_path, tmp_path / "out", Shards(workers=1)).is_new

    (tmp_path / "out").rename(tmp_path / "moved")
    moved = ingest(tmp_path, tmp_path / "moved", Shards(workers=1))
    assert moved.version.digest == result.version.digest
    assert find_place(moved.version.samples("test").paths[0]).shard.startswith(str(tmp_path / "moved"))  # type: ignore[union-attr]


def test_a_second_call_writes_what_is_missing(tmp_path: Path, make_folder: MakeFolder, make_image: MakeImage) -> None:
    folder = make_folder(tmp_path / "pets", cat=20, dog=11)
    out = tmp_path / "out"
    count = shard(Folder(), folder, out).count
    content = contents(out)
    (out / "pets-000001.index.parquet").unlink()  # as after a kill between the two
    (out / "pets-000002.index.parquet").unlink()
    (out / "pets-000002.tar").unlink()
    with pytest.raises(UserError, match=rf"lacks 1 of {count} shards \(pets-000002.tar\): write them with the command"):
        read(out)
    assert shard(Folder(), folder, out).already == count - 2
    assert content == contents(out)

    make_image(folder / "cat" / "new.png", 99)
    with pytest.raises(UserError, match="holds shards of other images or of another size, or the images have changed"):
        shard(Folder(), folder, out)
    with pytest.raises(UserError, match="has room for"):
        shard(Table(), _huge(tmp_path), tmp_path / "no-room", shard_bytes=2**50)


def test_what_a_killed_call_left_half_written_is_no_shard(tmp_path: Path, make_folder: MakeFolder) -> None:
    folder, out = make_folder(tmp_path / "pets", cat=20, dog=11), tmp_path / "out"
    shard(Folder(), folder, out)
    content = {file.name: file.read_bytes() for file in out.iterdir()}
    for name in (".pets-000001.4711.tmp.tar", "._pets-000001.tar", "@eaDir/pets-000001.tar"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content["pets-000001.tar"])
    assert len(read(out)) == 31
    shard(Folder(), folder, out)
    assert not (out / ".pets-000001.4711.tmp.tar").exists()
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.name in content} == content


@pytest.mark.parametrize("part", [b"\x89PNG", b'"label": "cat"'])
def test_a_shard_that_reads_otherwise_than_it_was_written_is_none(
    part: bytes, tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that keeps another byte than it was given, of an image or of a label."""

    def keep(descriptor: int) -> None:
        written = Path(f"/proc/self/fd/{descriptor}").readlink()
        with written.open("r+b") as file:
            file.seek(file.read().index(part))
            file.write(bytes([part[0] ^ 1]))

    monkeypatch.setattr(os, "fsync", keep)
    folder = make_folder(tmp_path / "pets", cat=2, dog=2)
    with pytest.raises(UserError) as told:
        shard(Folder(), folder, tmp_path / "shards")
    assert str(told.value) == (
        f"{tmp_path}/shards/pets-000000.tar reads otherwise than it was written: check the disk."
    )
    assert [file.name for file in (tmp_path / "shards").iterdir() if not file.name.startswith(".")] == [SUMMARY]


def test_a_list_of_shards_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {"x/1.png": png(1)})
    for content in (b"\xff", b"[]", b'{"name": "a", "shards": "1"}'):
        (tmp_path / "shards.json").write_bytes(content)
        with pytest.raises(UserError, match=r"shards\.json is damaged, or none that graftline has written: put"):
            read(tmp_path)


def _huge(tmp_path: Path) -> Path:
    """Return a table of an image of a petabyte, of which nothing is on the disk."""
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**43)
    (tmp_path / "huge.csv").write_text("path,label\n" + "huge.png,a\n" * 1000)
    return tmp_path / "huge.csv"


def test_a_shard_that_changed_is_told(tmp_path: Path, make_folder: MakeFolder) -> None:
    shard(Folder(), make_folder(tmp_path / "pets", cat=20, dog=20), tmp_path / "out")
    result = ingest(tmp_path, tmp_path / "out", Shards(workers=1))
    file = tmp_path / "out" / "pets-000001.tar"
    place = next(
        place for path in result.version.table()["path"] if (place := find_place(path)) and place.shard == str(file)
    )
    status = file.stat()
    with file.open("r+b") as tar:
        tar.seek(place.offset + 40)
        tar.write(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does that fails
    with pytest.raises(DecodeError, match=r"pets-000001.tar has changed since it was indexed"):
        decode_rgb(place.reference)
    again = ingest(tmp_path, tmp_path / "out", Shards(workers=1))
    assert [(finding.kind, finding.path) for finding in again.findings] == [("broken", place.reference)]

    with file.open("ab") as tar:
        tar.write(bytes(512))
    with pytest.raises(UserError, match=r"has changed since it was indexed, from [\d,]+ to [\d,]+ bytes: put the earl"):
        read(tmp_path / "out")


def pack(file: Path, members: dict[str, bytes | str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info, data = tarfile.TarInfo(name), content.encode() if isinstance(content, str) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def png(seed: int) -> bytes:
    content = io.BytesIO()
    paint((90, 90, 90), seed, 16).save(content, "PNG")
    return content.getvalue()


def test_those_of_another_tool(tmp_path: Path) -> None:
    """Labels as numbers, as names in JSON, and as folders; splits by the names of tars."""
    pack(tmp_path / "x-train-0.tar", {"1.png": png(1), "1.cls": "10", "2.png": png(2), "2.cls": "9", "2.txt": "-"})
    pack(tmp_path / "x-val-0.tar", {"3.PNG": png(3), "3.json": '{"label": 10, "url": []}', "._3.png": b"-"})
    images = read(tmp_path)
    assert images[["label", "split"]].to_numpy().tolist() == [
        ["10", "train"],
        ["9", "train"],
        ["10", "validation"],
    ]
    pack(tmp_path / "x-extra-0.tar", {"4.png": png(4), "4.cls": "10"})
    with pytest.raises(UserError, match=r"those of others do not \(x-extra-0\.tar\): name each with train, val"):
        read(tmp_path)
    long = "9" * 20
    pack(tmp_path / "y" / "a.tar", {"1.png": png(1), "1.cls": long, "1.json": '{"weight": "0.5"}'})
    assert read(tmp_path / "y")[["label", "weight"]].to_numpy().tolist() == [[long, 0.5]]
    pack(tmp_path / "folders" / "x.tar", {"./cat/1.png": png(1), "./dog/1.png": png(2), "readme.md": "-"})
    assert read(tmp_path / "folders")["label"].tolist() == ["cat", "dog"]
    assert list(read(tmp_path / "folders").columns) == ["path", "label", "group", "weight", "stratum"]


def test_a_corrected_label_is_read_though_the_size_is_the_same(tmp_path: Path) -> None:
    file, index = tmp_path / "a.tar", tmp_path / "a.index.parquet"
    members: dict[str, bytes | str] = {"1.png": png(1), "1.cls": "0", "2.png": png(2), "2.cls": "1"}
    size = pack(file, members).stat().st_size
    assert read(tmp_path)["label"].tolist() == ["0", "1"]
    assert pack(file, {**members, "1.cls": "1"}).stat().st_size == size
    assert read(tmp_path)["label"].tolist() == ["1", "1"]
    written = index.stat().st_mtime_ns
    assert list(list_references(tmp_path)) == read(tmp_path)["path"].tolist()
    assert index.stat().st_mtime_ns == written, "it is not made again without need"

    table = pq.read_table(index)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"graftline.shard_modified"}
    pq.write_table(table.slice(1).replace_schema_metadata(metadata), index)  # as of before the time was kept
    assert len(read(tmp_path)) == 2


def test_a_copy_of_our_shards_needs_no_new_index(tmp_path: Path) -> None:
    """It may have other times."""
    file, index = tmp_path / "a.tar", tmp_path / "a.index.parquet"
    pack(file, {"1.png": png(1), "1.cls": "0", "2.png": png(2), "2.cls": "1"})
    assert len(read(tmp_path)) == 2
    (tmp_path / SUMMARY).write_text("{}")
    os.utime(file, (1, 1))
    table = read_index(file, index)
    assert table is not None
    assert len(table) == 2
    (tmp_path / SUMMARY).unlink()
    assert read_index(file, index) is None


def test_what_is_no_shard_is_one_sentence(tmp_path: Path, make_folder: MakeFolder) -> None:
    def refuses(match: str, path: Path) -> None:
        with pytest.raises(UserError, match=match):
            read(path)

    refuses(r"holds no \.tar: give a folder of shards, or use Folder", make_folder(tmp_path / "pets", cat=1))
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "a.tar.gz").touch()
    refuses(r"a\.tar\.gz is no plain tar, and shards are read by random access", tmp_path / "gz")
    refuses(
        r"has two images of one key \(a\.x\.png, a\.y\.png\)",
        pack(tmp_path / "a.tar", {"a.x.png": b"x", "a.y.png": b"y"}),
    )
    refuses(r"a\.json in .* is no JSON", pack(tmp_path / "b.tar", {"a.json": "{", "a.png": b"x"}))
    refuses(r"The label that a\.json in .* tells is \['x'\]", pack(tmp_path / "c.tar", {"a.json": '{"label": ["x"]}'}))
    for weight in ("-1", "NaN", "1e999", '"heavy"', "1" + "0" * 400):
        (tmp_path / "w.tar").unlink(missing_ok=True)
        refuses(
            r"a\.json in .*w\.tar has the weight .*: weights are numbers from 0 up",
            pack(tmp_path / "w.tar", {"a.json": f'{{"label": "x", "weight": {weight}}}', "a.png": png(1)}),
        )
    refuses("holds no images in its 1 tars", pack(tmp_path / "d.tar", {"a.json": "{}"}))
    whole = pack(tmp_path / "e.tar", {"a.png": png(1) * 20}).read_bytes()
    (tmp_path / "f.tar").write_bytes(whole[:2000])
    refuses("f.tar cannot be read as a tar .* neither compressed nor cut short", tmp_path / "f.tar")
    whole = pack(tmp_path / "g.tar", {"a.png": png(1), "b.png": png(2)}).read_bytes()
    second = whole.index(b"b.png")  # a cut or a fault in its header, at which tarfile ends in silence
    for damaged in (whole[:second], whole[: second + 100], whole[:second] + b"?" * 512 + whole[second + 512 :]):
        (tmp_path / "g.tar").write_bytes(damaged)
        refuses(
            rf"g\.tar cannot be read as a tar \(it ends without a mark, or is damaged, at byte {second:,}\)",
            tmp_path / "g.tar",
        )
    (tmp_path / "a.tar").write_bytes(b"x")
    refuses("a.tar cannot be read as a tar", tmp_path / "a.tar")


def test_an_index_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    file, index = pack(tmp_path / "a.tar", {"x/1.png": png(1)}), tmp_path / "a.index.parquet"
    read(file)
    good = index.read_bytes()
    pd.DataFrame({"x": [1]}).to_parquet(index)
    with pytest.raises(UserError, match=r"a\.index\.parquet does not fit, it is none of a shard: remove"):
        read(file)
    index.write_bytes(good[:100])
    with pytest.raises(
        UserError, match=r"a\.index\.parquet cannot be read .*: remove .*, and the shard is indexed anew"
    ):
        read(file)


def test_where_nothing_can_be_written_shards_are_indexed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_table(table: pa.Table, file: Path, **_: str) -> None:
        raise OSError(errno.EROFS, "Failed to open local file")  # Arrow's, which names no file as Python's do

    pack(tmp_path / "a.tar", {"x/1.png": png(1), "y/2.png": png(2)})
    monkeypatch.setattr(pq, "write_table", write_table)
    images = read(tmp_path)
    assert caplog.text.count("a.tar is indexed anew each time") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]
    monkeypatch.undo()
    pd.testing.assert_frame_equal(read(tmp_path), images)


def test_uneven_shards_give_the_processes_equal_shares(tmp_path: Path) -> None:
    """Order and shares are of the images, not of the shards: one of 1 image and one of 9, for 2 and 3 processes."""
    pack(tmp_path / "s" / "a.tar", {"x/0.png": png(0)})
    pack(tmp_path / "s" / "b.tar", {f"{'xy'[number % 2]}/{number}.png": png(number) for number in range(1, 10)})
    images = read(tmp_path / "s")
    for world_size in (2, 3):
        sampler = partial(DrawSampler, len(images), shuffle=True, seed=3, world_size=world_size)
        shares = [sampler(rank=rank).indices() for rank in range(world_size)]
        assert max(map(len, shares)) - min(map(len, shares)) == len(images) % world_size
        assert sorted(np.concatenate(shares)) == list(range(len(images)))
