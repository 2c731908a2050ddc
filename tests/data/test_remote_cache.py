"""The cache of files at URLs: how much it holds, what goes first, and what other processes do to it meanwhile."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_server import Files
from full_disk import files_up_to
from ingested import ingest

from graftline.data import remote, remote_cache
from graftline.data.decode import decode_rgb
from graftline.data.image_bytes import open_image
from graftline.data.remote import download
from graftline.data.remote_cache import fetch, warn_of_small_cache
from graftline.data.sources.shards import Shards
from graftline.errors import UserError

pytestmark = pytest.mark.usefixtures("remote_cache")


def contents(url: str) -> set[bytes]:
    return {open_image(path).read() for path in Shards(workers=1).read(Path(url))["path"]}


def test_who_lists_images_again_downloads_no_shard_again(
    tmp_path: Path, shards: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the cache holds one shard, and nobody has put indices beside them."""
    for index in shards.glob("*.index.parquet"):
        index.unlink()
    monkeypatch.setenv("GRAFTLINE_REMOTE_GB", "0.00002")
    first = ingest(tmp_path, Path(served), Shards(workers=1))
    Files.asked.clear()
    remote.statuses.clear()  # as a new process
    again = ingest(tmp_path, Path(served), Shards(workers=1))
    assert (again.version.digest, again.is_new) == (first.version.digest, False)
    assert not [asked for asked in Files.asked if asked.startswith("GET") and asked.endswith(".tar")]


def test_a_file_that_another_process_removes_meanwhile_is_fetched_again(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, lost = f"{served}/pets-000000.tar", 2

    def fetch_and_lose(url: str) -> Path:
        nonlocal lost
        file = fetch(url)
        if lost > 0:
            file.unlink()
        lost -= 1
        return file

    monkeypatch.setattr(remote_cache, "fetch", fetch_and_lose)
    with open_image(url) as file:
        assert file.read(512)
    lost = 3
    with pytest.raises(UserError, match=r"give GRAFTLINE_REMOTE_GB a larger number"):
        open_image(url)


def test_a_file_that_another_process_removes_as_it_arrives_is_fetched_again(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = 0

    def download_and_lose(url: str, file: Path) -> None:
        nonlocal arrived
        download(url, file)
        arrived += 1
        if arrived == 1:
            file.unlink()

    monkeypatch.setattr(remote_cache, "download", download_and_lose)
    with open_image(f"{served}/pets-000000.tar") as file:
        assert file.read(512)
    assert arrived == 2


def test_the_cache_leaves_alone_what_others_write_and_remove(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTLINE_REMOTE_GB", "0.00002")
    folder = tmp_path / "cache" / "graftline" / "remote"
    folder.mkdir(parents=True)
    written, abandoned = folder / ".0-a.7.tmp.tar", folder / ".1-a.7.tmp.tar"
    for file in (written, abandoned):
        file.write_bytes(bytes(30_000))
    os.utime(abandoned, (0, 0))
    (folder / "2-gone.tar").symlink_to(folder / "nowhere")  # to be seen in the folder, and not to be looked at
    assert len(contents(served)) == 31
    assert (written.exists(), abandoned.exists()) == (True, False)


def test_a_limit_that_was_lowered_makes_room_on_a_full_disk(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fetch(f"{served}/pets-000000.tar")
    monkeypatch.setenv("GRAFTLINE_REMOTE_GB", "1e-9")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with files_up_to(1), pytest.raises(UserError, match=r"pets-000001\.tar cannot be kept in"):
        fetch(f"{served}/pets-000001.tar")
    assert not before.exists()


def test_the_cache_keeps_to_its_limit(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLINE_REMOTE_GB", "0.00005")
    assert len(contents(served)) == 31
    files = [file for file in (tmp_path / "cache" / "graftline" / "remote").iterdir() if file.suffix == ".tar"]
    assert 1 <= len(files) <= 2
    assert sum(file.stat().st_size for file in files) <= 50_000


def test_a_cache_that_is_too_small_for_each_epoch_is_told_once(
    served: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = list(Shards(workers=1).read(Path(served))["path"])
    warn_of_small_cache(paths)
    assert "each epoch" not in caplog.text
    total = sum(status.size for url, status in remote.statuses.items() if url.endswith(".tar"))
    monkeypatch.setenv("GRAFTLINE_REMOTE_GB", str(0.9 * total / 1e9))
    for _ in range(2):
        warn_of_small_cache(["photos/a.png", *paths])
    assert caplog.text.count("each epoch downloads most of them again. Give GRAFTLINE_REMOTE_GB a larger number") == 1


@pytest.mark.parametrize("told", ["200GB", "0"])
def test_a_limit_that_is_none_is_told_before_a_download(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setenv("GRAFTLINE_REMOTE_GB", told)
    with pytest.raises(UserError, match=f"^GRAFTLINE_REMOTE_GB is '{told}': give the gigabytes"):
        decode_rgb(f"{served}/pets-000000.tar")
    assert not (tmp_path / "cache").exists()
