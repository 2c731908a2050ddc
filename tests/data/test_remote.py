"""Shards at a URL are read as those of a folder are: S3 by a real server of its protocol, and HTTP."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from file_server import Files, serve
from ingested import ingest

from graftline.data import remote
from graftline.data.image_bytes import open_image
from graftline.data.image_list import ImageLister
from graftline.data.references import find_url
from graftline.data.remote import remote_status
from graftline.data.remote_cache import fetch
from graftline.data.sources import shards as source
from graftline.data.sources.folder import Folder
from graftline.data.sources.shards import Shards
from graftline.errors import UserError

PASSWORD = "not-to-be-seen"
pytestmark = pytest.mark.usefixtures("remote_cache")


def contents(path: Path | str) -> dict[bytes, str]:
    images = Shards(workers=1).read(Path(path))
    return {open_image(path).read(): label for path, label in zip(images["path"], images["label"], strict=True)}


def test_http_shards_give_what_local_ones_do_and_are_downloaded_once(
    tmp_path: Path, shards: Path, served: str, caplog: pytest.LogCaptureFixture
) -> None:
    Files.breaks = 1
    here = ingest(tmp_path / "here", shards, Shards(workers=1))
    there = ingest(tmp_path / "there", Path(served), Shards(workers=1))
    assert there.version.digest == here.version.digest
    assert there.version.samples("train").paths[0].startswith(f"{served}/pets-00000")
    assert sum("trying again in" in message for message in caplog.messages) == 1

    Files.asked.clear()
    remote.statuses.clear()  # as a new process
    assert contents(served) == contents(shards)
    assert not [asked for asked in Files.asked if asked.startswith("GET") and asked.endswith(".tar")]


def test_shards_are_predicted_from_where_they_are(shards: Path, served: str, tmp_path: Path) -> None:
    here, there = (ImageLister().read(Path(images), tmp_path) for images in (shards, served))
    assert [image.path for image in there] == [image.path.replace(str(shards), served) for image in here]
    with pytest.raises(UserError, match="/pets is no path of this machine and holds no shards: give a table"):
        ImageLister().read(Path(served).with_name("pets"), tmp_path)


def test_a_shard_of_the_same_size_that_is_newer_is_another(shards: Path, served: str) -> None:
    url = f"{served}/pets-000000.tar"
    before = remote_status(url)
    os.utime(shards / "pets-000000.tar", (0, 0))
    remote.statuses.clear()  # as a new process
    assert remote_status(url).size == before.size
    assert remote_status(url).stamp != before.stamp


def test_an_index_that_was_left_beside_a_newer_shard_is_not_read(
    shards: Path, served: str, caplog: pytest.LogCaptureFixture
) -> None:
    shard = shards / "pets-000000.tar"
    before = contents(f"{served}/{shard.name}")
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b'"label": "cat"', b'"label": "dog"'))
    os.utime(shard, (0, 0))
    remote.statuses.clear()  # as a new process
    after = contents(f"{served}/{shard.name}")
    assert (after.keys(), set(before.values()), set(after.values())) == (before.keys(), {"cat", "dog"}, {"dog"})
    assert "pets-000000.index.parquet is not of" in caplog.text


def test_what_is_half_written_elsewhere_is_no_shard(shards: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a folder tells by no list what belongs to it."""
    (shards / "shards.json").unlink()
    half = [f"{served}/{name}" for name in (".pets-000000.7.tmp.tar", "._pets-000000.tar", ".old/pets-000000.tar")]
    monkeypatch.setattr(source, "list_urls", lambda url, _: [*half, f"{url}/pets-000000.tar"])
    assert len(Shards(workers=1).read(Path(served))) == len(Shards(workers=1).read(shards / "pets-000000.tar"))


def test_what_cannot_be_reached_is_one_sentence(served: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="is a URL with a password or key in it") as raised:
        ingest(tmp_path, f"https://me:{PASSWORD}@host/pets", Shards())  # type: ignore[arg-type]
    assert PASSWORD not in str(raised.value) + caplog.text
    Files.code = 403
    with pytest.raises(UserError, match=f"There is no access to {served}/shards.json: check the credentials"):
        contents(served)
    Files.code = 500
    with pytest.raises(UserError, match=r"shards.json cannot be reached \(.*\), after 3 tries: check the address"):
        contents(served)
    Files.code = 0
    with pytest.raises(UserError, match=r"holds no \.tar"):
        contents(served.replace("out", "pets/cat"))


def test_a_number_in_a_name_is_no_refusal(served: str) -> None:
    """As aiohttp tells the URL in its own spelling."""
    Files.code = 500
    with pytest.raises(UserError, match=r"403 pets\.tar cannot be reached \(500, .*\), after 3 tries"):
        fetch(f"{served}/403 pets.tar")


@pytest.mark.parametrize(
    ("told", "is_forbidden"),
    [
        ("12,403,111 of 256,000,000 bytes came", False),
        ("information for key '403/credentials/a.jpg' in bucket 'pets': AWS Error NETWORK_CONNECTION during", False),
        ("information for key 'a.jpg' in bucket 'pets': AWS Error UNKNOWN (HTTP status 403) during HeadObject", True),
        ("information for key 'a.jpg' in bucket 'pets': AWS Error INVALID_ACCESS_KEY_ID during GetObject", True),
        ("google::cloud::Status(PERMISSION_DENIED: Permanent error, in GetObjectMetadata", True),
    ],
)
def test_a_refusal_is_known_by_its_code(told: str, is_forbidden: bool) -> None:
    assert remote._is_forbidden(OSError(told)) == is_forbidden


def test_a_bucket_of_another_region_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(tmp_path) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        remote._arrow.cache_clear()
        Files.code = 301  # as S3 answers
        with pytest.raises(UserError, match=r"^s3://pets/a.jpg lies in another region .*: set AWS_REGION"):
            remote_status("s3://pets/a.jpg")
        remote._arrow.cache_clear()
        assert Files.asked == ["HEAD /pets/a.jpg"]


def test_no_credentials_are_one_sentence_and_no_wait_for_a_metadata_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of Amazon's machines nobody answers at its address; here, somebody who is silent and counts."""
    for name in [*filter(lambda name: name.startswith("AWS_"), os.environ), "AWS_EC2_METADATA_DISABLED"]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(remote, "SECONDS_FOR_METADATA", 0.1)
    with socket.socket() as silent, serve(tmp_path) as url:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        silent.setblocking(False)
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        remote._arrow.cache_clear()
        Files.code = 403  # as S3 answers whoever has no credentials
        for name in "ab":
            with pytest.raises(UserError, match=rf"^There is no access to s3://pets/{name}.jpg: check the credentials"):
                remote_status(f"s3://pets/{name}.jpg")
        remote._arrow.cache_clear()
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # Arrow has not asked
            silent.accept()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server of S3's protocol, with a bucket."""
    moto = pytest.importorskip("moto.server", reason="moto is missing: make test-extras installs it")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    urlopen(url, timeout=60).close()  # the first request loads what answers it, for which pyarrow would wait 3 s
    yield url
    server.stop()


def open_bucket(s3: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the file system of a server, which has a new bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
    remote._arrow.cache_clear()
    from pyarrow import fs

    fs.S3FileSystem(endpoint_override=s3, allow_bucket_creation=True).create_dir(name)
    return remote._arrow("s3")


@pytest.mark.extras
def test_an_s3_folder_of_images_is_listed_without_a_question_for_each(
    tmp_path: Path, shards: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = open_bucket(s3, "images", monkeypatch)
    folder = shards.parent / "pets"
    for file in folder.rglob("*.png"):
        system.put_file(str(file), f"images/pets/{file.relative_to(folder)}")
    listed = Folder().read(Path("s3://images/pets"))
    asked = [remote.statuses[url] for url in listed["path"]]
    remote.statuses.clear()
    assert [remote_status(url) for url in listed["path"]] == asked, "the list tells what a question would"
    there = ingest(tmp_path, Path("s3://images/pets"))
    assert there.version.digest == ingest(tmp_path, folder).version.digest


@pytest.mark.extras
def test_s3_shards_give_what_local_ones_do(
    tmp_path: Path, shards: Path, s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    system = open_bucket(s3, "bucket", monkeypatch)
    for file in shards.iterdir():
        system.put_file(str(file), f"bucket/pets/{file.name}")

    result = ingest(tmp_path, Path("s3://bucket/pets"), Shards(workers=1))
    assert result.version.split_digests == ingest(tmp_path, shards, Shards(workers=1)).version.split_digests
    assert find_url(result.version.table()["path"].iloc[0])
    system.rm_file("bucket/pets/shards.json")  # as those of another tool, without an index
    for file in shards.glob("*.index.parquet"):
        system.rm_file(f"bucket/pets/{file.name}")
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    remote.statuses.clear()
    assert contents("s3://bucket/pets") == contents(shards)
    with pytest.raises(FileNotFoundError):
        fetch("s3://bucket/pets/none.tar")
    urlopen(
        Request(f"{s3}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    )  # from here on, it lets nobody in
    remote.statuses.clear()
    with pytest.raises(UserError, match=r"There is no access to s3://bucket/pets.*: check the credentials .AWS_ACC"):
        contents("s3://bucket/pets")
    assert PASSWORD not in caplog.text
