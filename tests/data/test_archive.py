"""Archives give the same as what was packed; those that could do harm are refused and leave nothing behind."""

import io
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from graftline.data.sources import archive as archive_module
from graftline.data.sources.archive import Archive
from graftline.data.sources.folder import Folder
from graftline.data.sources.table import Table
from graftline.errors import UserError

MEMBERS = {"pets/cat/a.jpg": b"a", "pets/cat/b.jpg": b"b", "pets/dog/c.jpg": b"c", "__MACOSX/pets/._x.jpg": b"-"}


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """Write a zip, or a tar in ``mode``."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in members.items():
                zipped.writestr(name, content)
        return path
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            add(tar, name, content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    tar.addfile(member, io.BytesIO(content))


def source(tmp_path: Path, **settings: object) -> Archive:
    return Archive(cache=str(tmp_path / "cache"), **settings)  # type: ignore[arg-type]


def unpacked(tmp_path: Path) -> list[Path]:
    """What lies in the cache but for the notes of digests."""
    return [entry for entry in (tmp_path / "cache").glob("*") if entry.name != "seen"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.zip", ""), ("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tar.bz2", "w:bz2"), ("x.tar.xz", "w:xz")],
)
def test_class_folders_in_an_archive(tmp_path: Path, name: str, mode: str) -> None:
    images = source(tmp_path).read(pack(tmp_path / name, MEMBERS, mode))
    assert images["label"].tolist() == ["cat", "cat", "dog"]
    assert [Path(path).read_bytes() for path in images["path"]] == [b"a", b"b", b"c"]


def test_a_table_in_an_archive(tmp_path: Path) -> None:
    members = {
        "set/labels.csv": b"path,label\nimg/a.jpg,cat\nimg/b.jpg,dog\n",
        "set/img/a.jpg": b"a",
        "set/img/b.jpg": b"b",
    }
    file = pack(tmp_path / "x.zip", members)
    images = source(tmp_path).read(file)
    assert images["label"].tolist() == ["cat", "dog"]
    assert Path(images["path"][1]).read_bytes() == b"b"
    assert source(tmp_path, inside=Table(label="path")).read(file)["label"].tolist() == ["img/a.jpg", "img/b.jpg"]
    with pytest.raises(UserError, match="holds images but no class folders"):
        source(tmp_path, inside=Folder(), member="set/img").read(file)


def test_class_folders_one_level_deeper_beside_documents(tmp_path: Path) -> None:
    file = pack(tmp_path / "x.zip", {"report.docx": b"r", "readme.txt": b"r", **MEMBERS})
    assert source(tmp_path).read(file)["label"].tolist() == ["cat", "cat", "dog"]
    table = {"set/t.tsv": b"path\tlabel\na.jpg\tcat\n", "set/a.jpg": b"a", "set/._t.tsv": b"-", "about.md": b"-"}
    assert source(tmp_path).read(pack(tmp_path / "y.zip", table))["label"].tolist() == ["cat"]


def test_split_names_are_classes_in_an_archive_too(tmp_path: Path) -> None:
    file = pack(tmp_path / "x.zip", {"train/2020/a.jpg": b"a", "bus/2020/a.jpg": b"b"})
    with pytest.raises(UserError, match=r"Folder\.splits=False"):
        source(tmp_path).read(file)
    assert source(tmp_path, splits=False).read(file)["label"].tolist() == ["bus", "train"]


def pack_in(path: Path, encoding: str, *names: str) -> Path:
    """Write a zip whose names are in an encoding that it does not tell."""
    pack(path, {f"set/{number}.jpg": b"x" for number in range(len(names))})
    content = path.read_bytes()
    for number, name in enumerate(names):
        raw = name.encode(encoding)
        assert len(raw) == len(f"set/{number}.jpg")
        content = content.replace(f"set/{number}.jpg".encode(), raw)
    path.write_bytes(content)
    return path


def test_names_of_a_zip_in_another_encoding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = pack_in(tmp_path / "x.zip", "gbk", "\u6c38/00.jpg", "\u548c/01.jpg")
    assert not {"\u6c38", "\u548c"} & set(source(tmp_path).read(file)["label"])
    assert "are not in UTF-8 and are read as code page 437" in caplog.text
    assert source(tmp_path, encoding="gbk").read(file)["label"].tolist() == ["\u548c", "\u6c38"]
    with pytest.raises(UserError, match=r"Archive\.encoding=gbq is no encoding"):
        source(tmp_path, encoding="gbq")
    caplog.clear()
    file = pack_in(tmp_path / "y.zip", "utf-8", "\u00e4/00.jpg", "\u00f6/01.jpg")
    assert source(tmp_path).read(file)["label"].tolist() == ["\u00e4", "\u00f6"]
    assert not caplog.records


def test_a_member_of_an_archive(tmp_path: Path) -> None:
    file = pack(
        tmp_path / "x.zip", {"a.csv": b"path,label\nx,1\n", "b.csv": b"path,label\ny,2\n", "y": b"y", **MEMBERS}
    )
    assert source(tmp_path, member="b.csv").read(file)["label"].tolist() == ["2"]
    assert source(tmp_path, member="pets").read(file)["label"].tolist() == ["cat", "cat", "dog"]
    with pytest.raises(UserError, match=r"holds no 'c\.csv'"):
        source(tmp_path, member="c.csv").read(file)


def test_it_is_unpacked_once_for_each_content(tmp_path: Path) -> None:
    file = pack(tmp_path / "x.zip", MEMBERS)
    first = source(tmp_path).read(file)
    marks = [Path(path).stat().st_ino for path in first["path"]]
    again = source(tmp_path).read(file.rename(tmp_path / "renamed.zip"))
    assert [Path(path).stat().st_ino for path in again["path"]] == marks
    other = source(tmp_path).read(pack(tmp_path / "renamed.zip", {**MEMBERS, "pets/dog/d.jpg": b"d"}))
    assert len(other) == 4
    assert len(unpacked(tmp_path)) == 2


def test_an_empty_class_in_an_archive_is_told(tmp_path: Path) -> None:
    for name in ("x.zip", "x.tar"):
        file = pack(tmp_path / name, MEMBERS)
        if file.suffix == ".zip":
            with zipfile.ZipFile(file, "a") as zipped:
                zipped.mkdir("pets/bird")
        else:
            with tarfile.open(file, "a") as tar:
                add(tar, "pets/bird", kind=tarfile.DIRTYPE)
        with pytest.raises(UserError, match="bird holds no images"):
            source(tmp_path).read(file)


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil.jpg", "leads out of it"),
        ("cat/../../evil.jpg", "leads out of it"),
        ("cat\\..\\..\\evil.jpg", "leads out of it"),
        ("/tmp/evil.jpg", "absolute path"),
        ("C:/evil.jpg", "absolute path"),
        ("\\\\host\\evil.jpg", "absolute path"),
    ],
)
def test_paths_that_lead_out_are_refused(tmp_path: Path, suffix: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"refused.*{message}"):
        source(tmp_path).read(pack(tmp_path / f"x.{suffix}", {**MEMBERS, name: b"evil"}))
    assert not list(tmp_path.rglob("evil*"))
    assert unpacked(tmp_path) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "cat/a.jpg", b"a")
        add(tar, "cat/link.jpg", kind=kind, link="/etc/passwd")
    with pytest.raises(UserError, match=r"link or device \(cat/link\.jpg\)"):
        source(tmp_path).read(tmp_path / "x.tar")
    assert unpacked(tmp_path) == []


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        member = zipfile.ZipInfo("cat/link.jpg")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="link or device"):
        source(tmp_path).read(tmp_path / "x.zip")


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar.xz"])
def test_bombs_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_HARMLESS_BYTES", 2**20)
    mode = {"x.tar.gz": "w:gz", "x.tar.xz": "w:xz"}.get(name, "w")
    file = pack(tmp_path / name, {"cat/a.jpg": bytes(20 * 2**20)}, mode)
    assert file.stat().st_size < 30_000
    with pytest.raises(UserError, match=r"refused.*100 times its size"):
        source(tmp_path).read(file)
    assert unpacked(tmp_path) == []


def test_a_bomb_in_the_headers_of_a_tar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_HARMLESS_BYTES", 2**20)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("cat/a.jpg")
        member.pax_headers = {"comment": "x" * 20 * 2**20}
        tar.addfile(member)
    with pytest.raises(UserError, match=r"refused.*100 times its size"):
        source(tmp_path).read(tmp_path / "x.tar.gz")


def test_two_who_read_an_archive_at_once_unpack_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would remove what the first one reads; two descriptors are to each other what two processes are."""
    file, unpack, waits = pack(tmp_path / "x.zip", MEMBERS), archive_module._unpack, threading.Barrier(2)
    roots: list[Path] = []
    shutil.rmtree(source(tmp_path).unpack(file).root)  # its digest is noted by then

    def slowly(archive: Path, root: Path, encoding: str | None) -> None:
        roots.append(root)
        with suppress(threading.BrokenBarrierError):
            waits.wait(0.5)  # for another one that would do the same
        unpack(archive, root, encoding)

    monkeypatch.setattr(archive_module, "_unpack", slowly)
    with ThreadPoolExecutor(2) as pool:
        read = [pool.submit(source(tmp_path).read, file) for _ in range(2)]
    assert [len(one.result()) for one in read] == [3, 3]
    assert len(roots) == 1
    assert unpacked(tmp_path) == roots, "no lock is left"


def test_a_great_many_empty_files_are_a_bomb_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_HARMLESS_BYTES", 2**16)
    monkeypatch.setattr(archive_module, "_MAX_GROWTH", 1)
    with pytest.raises(UserError, match="refused"):
        source(tmp_path).read(pack(tmp_path / "x.zip", {f"cat/{index}": b"" for index in range(2**7 + 1)}))


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "cat/a.jpg", b"first")
        add(tar, "cat/a.jpg", b"second")
    with pytest.raises(UserError, match="cannot be unpacked"):
        source(tmp_path).read(tmp_path / "x.tar")


def test_encrypted_files_are_refused(tmp_path: Path) -> None:
    file = pack(tmp_path / "x.zip", {"cat/a.jpg": b"a"})
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, in the central directory
    file.write_bytes(content)
    with pytest.raises(UserError, match="encrypted"):
        source(tmp_path).read(file)


@pytest.mark.parametrize(("name", "mode"), [("x.zip", ""), ("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tar.xz", "w:xz")])
def test_broken_archives_are_told(tmp_path: Path, name: str, mode: str) -> None:
    file = pack(tmp_path / name, {"cat/a.jpg": os.urandom(50_000), "dog/b.jpg": os.urandom(50_000)}, mode)
    file.write_bytes(file.read_bytes()[:60_000])
    with pytest.raises(UserError, match="cannot be unpacked"):
        source(tmp_path).read(file)
    assert unpacked(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not packed", "is no zip or tar archive but text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS.*git lfs pull"),
        (b"Rar!\x1a\x07\x00", "is no zip or tar archive but a 7z or RAR archive: unpack it"),
        (b"\x80" * 600, "cannot be unpacked"),
        (b"", "has no content"),
    ],
)
def test_what_is_no_archive_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=message):
        source(tmp_path).read(tmp_path / "x.zip")
    with pytest.raises(UserError, match=r"Folder\(\)"):
        source(tmp_path).read(tmp_path)


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = pack(tmp_path / "inner.zip", {"evil/x.jpg": b"x"}).read_bytes()
    images = source(tmp_path).read(pack(tmp_path / "x.tar", {**MEMBERS, "pets/dog/inner.jpg": inner}))
    assert sorted(Path(path).name for path in images["path"]) == ["a.jpg", "b.jpg", "c.jpg", "inner.jpg"]
