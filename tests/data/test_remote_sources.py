"""Folders, tables and archives at a URL give the versions that they give on this machine."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import Files, serve
from full_disk import files_up_to
from ingested import ingest, kinds

from graftline.data import remote
from graftline.data.image_bytes import open_image
from graftline.data.ingest import Ingest
from graftline.data.shards.write import write_shards
from graftline.data.sources.archive import Archive
from graftline.data.sources.folder import Folder
from graftline.data.sources.source import Source
from graftline.data.sources.table import Table
from graftline.data.split import Split
from graftline.errors import UserError

from .conftest import MakeFolder, MakeImage

pytest.importorskip("aiohttp", reason="of the extra remote: pip install graftline[remote]")
pytestmark = pytest.mark.usefixtures("remote_cache")


@pytest.fixture
def root(tmp_path: Path, make_folder: MakeFolder) -> Path:
    """A folder of two classes with leftovers and a broken image, a table and an archive of it."""
    root = tmp_path / "served"
    pets = make_folder(root / "pets", **{"hot dog": 12, "gefüllt": 9})
    (pets / "hot dog" / "Thumbs.db").write_bytes(b"x")
    (pets / "hot dog" / "broken.png").write_bytes(b"no image")
    rows = "".join(f"pets/{file.relative_to(pets)},{file.parent.name}\n" for file in sorted(pets.rglob("*.png")))
    (root / "list.csv").write_text(f"path,label\n{rows}")
    shutil.make_archive(str(root / "pets"), "zip", pets)
    return root


@pytest.fixture
def url(root: Path) -> Iterator[str]:
    with serve(root) as url:
        yield url


@pytest.mark.parametrize(("name", "source"), [("pets", Folder()), ("list.csv", Table()), ("pets.zip", None)])
def test_it_is_the_version_that_it_is_here(
    tmp_path: Path, root: Path, url: str, name: str, source: Source | None
) -> None:
    source = source or Archive(cache=str(tmp_path / "archives"))
    here = ingest(tmp_path / "here", root / name, source)
    there = ingest(tmp_path / "there", Path(f"{url}/{name}"), source)
    assert there.version.digest == here.version.digest
    assert set(there.version.class_names) == {"hot dog", "gefüllt"}
    assert [finding.kind for finding in there.findings] == [finding.kind for finding in here.findings]
    assert "broken" in str(kinds(there, root))

    Files.asked.clear()
    remote.statuses.clear()  # as a new process
    again = ingest(tmp_path / "there", Path(f"{url}/{name}"), source)
    assert (again.version.digest, again.is_new) == (here.version.digest, False)
    files = re.compile(r"GET .*\.(png|csv|zip)")
    assert not [asked for asked in Files.asked if files.fullmatch(asked)], "all is cached"


def test_a_table_here_lists_images_here_and_at_urls(tmp_path: Path, root: Path, url: str) -> None:
    text = (root / "list.csv").read_text().replace("pets/hot dog/", f"{url.upper()}/pets/hot dog/")
    (root / "mixed.csv").write_text(text)
    images = Table().read(root / "mixed.csv")
    assert images["path"].str.startswith(f"{url}/pets/hot dog/").sum() == 13
    mixed, here = ingest(tmp_path, root / "mixed.csv", Table()), ingest(tmp_path, root / "pets")
    assert mixed.version.split_digests == here.version.split_digests
    assert open_image(mixed.version.samples("test").paths[0]).read()


def test_tables_elsewhere_may_list_the_folder_above(root: Path, url: str) -> None:
    (root / "lists").mkdir()
    (root / "lists" / "list.csv").write_text((root / "list.csv").read_text().replace("pets/", "../pets/"))
    first = Table().read(Path(f"{url}/lists/list.csv"))["path"].iloc[0]
    assert first == f"{url}/pets/gefüllt/000.png"
    assert open_image(first).read() == (root / "pets" / "gefüllt" / "000.png").read_bytes()


def test_mistakes_name_the_url_and_no_password(tmp_path: Path, root: Path, url: str) -> None:
    with pytest.raises(UserError, match=rf"There is nothing at {url}/none.csv: give the URL of a table"):
        Table().read(Path(f"{url}/none.csv"))
    with pytest.raises(UserError, match=rf"There is nothing at {url}/none: give the folder"):
        Folder().read(Path(f"{url}/none"))
    with pytest.raises(UserError, match=rf"^{url}/list.csv has no column 'file'"):
        Table(path="file").read(Path(f"{url}/list.csv"))
    (root / "empty" / "cat").mkdir(parents=True)
    (root / "empty" / "cat" / "notes.txt").write_text("x")
    (root / "empty" / "dog.png").write_bytes(b"x")
    with pytest.raises(UserError, match=rf"The class folder {url}/empty/cat holds no images"):
        Folder().read(Path(f"{url}/empty"))
    (root / "secret.csv").write_text("path,label\nhttps://host/a.png?sig=hush,x\nhttps://host/b.png?sig=hush,y\n")
    with pytest.raises(UserError, match=r"A path in .*/secret\.csv is a URL with a password") as raised:
        Table().read(root / "secret.csv")
    assert "hush" not in str(raised.value)


def test_an_outage_is_no_missing_file(tmp_path: Path, url: str) -> None:
    """Neither of a folder that is to be listed, nor of an image: a data set would shrink without a word."""
    Files.refused = {"/pets/hot%20dog": 0}
    with pytest.raises(UserError, match=r"/pets cannot be reached \(.*\), after 3 tries"):
        Folder().read(Path(f"{url}/pets"))
    Files.refused = {"/pets/hot%20dog/003.png": 0}
    with pytest.raises(UserError, match=r"003.png cannot be reached"):
        ingest(tmp_path, Path(f"{url}/pets"))
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/pets cannot be reached"):
        Folder().read(Path("http://127.0.0.1:9/pets"))


def test_an_image_that_one_may_not_read_is_left_out(tmp_path: Path, url: str) -> None:
    Files.refused = {"/pets/hot%20dog/003.png": 403}
    found = ingest(tmp_path, Path(f"{url}/pets"))
    reasons = {Path(finding.path).name: finding.detail for finding in found.findings}
    assert "There is no access to" in reasons["003.png"]

    remote.statuses.clear()  # as a new process
    images = Ingest("pets", f"{url}/pets", Folder(), Split()).list_images().images
    forbidden = f"{url}/pets/hot dog/003.png"
    assert write_shards(images, ["hot dog"], tmp_path / "out", "pets", 20_000, 1).left_out == [forbidden]
    with pytest.raises(UserError, match=f"There is no access to {forbidden}"):
        write_shards(images[images["path"] == forbidden], ["hot dog"], tmp_path / "none", "pets", 20_000, 1)


def test_a_full_disk_is_no_fault_of_an_image(tmp_path: Path, root: Path, url: str, make_image: MakeImage) -> None:
    make_image(root / "pets" / "hot dog" / "large.png", 99, (200, 200))
    folder = re.escape(str(tmp_path / "cache" / "graftline" / "remote"))
    with (
        files_up_to(50_000),
        pytest.raises(UserError, match=rf"large\.png cannot be kept in {folder} \(File too large\): make room there"),
    ):
        ingest(tmp_path, Path(f"{url}/pets"))
    assert not list(tmp_path.rglob("manifest.parquet")), "a data set would shrink without a word"
    found = ingest(tmp_path, Path(f"{url}/pets"))
    assert [Path(finding.path).name for finding in found.findings] == ["broken.png"]


def test_names_may_have_the_signs_of_a_url(tmp_path: Path, root: Path, url: str, make_folder: MakeFolder) -> None:
    odd = make_folder(root / "odd pets", **{"50 % off": 6, "C# & co?": 6})
    (odd / "50 % off" / "000.png").rename(odd / "50 % off" / "a#1 &amp; b%20c?.png")
    here = ingest(tmp_path / "here", odd)
    for given in ("odd pets", "odd%20pets/"):
        there = ingest(tmp_path / "there", f"{url}/{given}")  # type: ignore[arg-type]
        assert there.version.class_names == here.version.class_names == ("50 % off", "C# & co?")
        assert there.version.split_digests == here.version.split_digests
        assert {open_image(path).read()[:4] for path in there.version.table()["path"]} == {b"\x89PNG"}
    names = [f"{file.relative_to(odd)},{file.parent.name}" for file in odd.rglob("*.png")]
    (odd / "list.csv").write_text("path,label\n" + "\n".join(name.replace("/", "\\", 1) for name in names))
    listed = ingest(tmp_path / "listed", f"{url}/odd pets/list.csv?download=1", Table())  # type: ignore[arg-type]
    assert listed.version.split_digests == here.version.split_digests


def test_an_archive_that_is_unpacked_is_not_downloaded_again(tmp_path: Path, url: str) -> None:
    source = Archive(cache=str(tmp_path / "archives"))
    source.read(Path(f"{url}/pets.zip"))
    shutil.rmtree(tmp_path / "cache")
    Files.asked.clear()
    assert len(source.read(Path(f"{url}/pets.zip"))) == 22
    assert not [asked for asked in Files.asked if asked.startswith("GET")]


def test_a_path_of_this_machine_may_be_written_as_a_url(root: Path) -> None:
    assert len(Folder().read(Path(f"file://{root}/pets"))) == 22
