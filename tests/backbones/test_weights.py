"""Where weights come from, and in which order."""

import hashlib
import socket
import time
from pathlib import Path

import pytest
import timm
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from graftline.backbones import hub
from graftline.backbones.weights import PACKAGED, Weights, WeightsSourceChoice, locate
from graftline.errors import UserError

WAYS_OUT = r"\(tf_efficientnet_lite0.*fetch\(\).*Backbone\.file.*Backbone\.weights='none'"


def put_into_hub_cache(cache: Path, repository: str, file: str, content: bytes = b"weights") -> Path:
    """Lay a file where the hub's client would have left it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    path = folder / "snapshots" / ("0" * 40) / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", [*PACKAGED, "tf_efficientnet_lite0.in1k"])
def test_packaged_weights_need_no_network(offline: None, name: str) -> None:
    found = locate(name, "auto", None)
    assert found is not None
    assert found.source == "packaged"
    record = found.record()
    assert record.pretrained
    assert record.digest == hashlib.sha256(found.path.read_bytes()).hexdigest()
    assert "pytorch_model 0.1.0" in record.describe()


def test_a_file_goes_before_a_package(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_file({"weight": timm.create_model("test_resnet").conv1[0].weight.data.clone()}, path)
    found = locate("tf_efficientnet_lite0", "auto", str(path))
    assert found is not None
    assert (found.source, found.path) == ("file", path)


def test_the_local_cache_goes_before_the_network(offline: None, hub_cache: Path) -> None:
    path = put_into_hub_cache(hub_cache, "timm/resnet18.a1_in1k", "model.safetensors")
    for found in (locate("resnet18", "auto", None), locate("resnet18", "hub", None)):
        assert found is not None
        assert (found.source, found.path) == ("hub", path)
        assert found.location == "timm/resnet18.a1_in1k/model.safetensors"


def test_older_downloads_are_found_too(offline: None, hub_cache: Path, torch_checkpoints: Path) -> None:
    pickled = put_into_hub_cache(hub_cache, "timm/resnet18.a2_in1k", "pytorch_model.bin")
    found = locate("resnet18.a2_in1k", "auto", None)
    assert found is not None
    assert found.path == pickled
    url = get_pretrained_cfg("resnet18.a1_in1k").url
    downloaded = torch_checkpoints / url.rpartition("/")[2]
    downloaded.write_bytes(b"weights")
    found = locate("resnet18.a1_in1k", "auto", None)
    assert found is not None
    assert (found.path, found.location) == (downloaded, url)


def test_arrays_of_another_framework_are_not_taken_for_weights(offline: None, torch_checkpoints: Path) -> None:
    name = "vit_tiny_r_s16_p8_224.augreg_in21k"
    (torch_checkpoints / get_pretrained_cfg(name).url.rpartition("/")[2]).write_bytes(b"npz")
    assert hub.find_local(name) is None


def test_none_is_random() -> None:
    assert locate("resnet18", "none", None) is None
    assert not Weights("none").pretrained
    assert Weights("none").describe() == "random weights"


def test_offline_with_nothing_local_names_three_ways_out_at_once(offline: None) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=WAYS_OUT) as error:
        locate("resnet18", "auto", None)
    assert time.perf_counter() - start < 5
    assert "127.0.0.1 does not answer" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_host_that_never_answers_costs_less_than_5_seconds(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)  # its queue is full with one or two callers whom nobody accepts; the next one waits
        for caller in (first, second):
            caller.setblocking(False)
            caller.connect_ex(deaf.getsockname())
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(UserError, match=WAYS_OUT):
            locate("resnet18", "hub", None)
        assert time.perf_counter() - start < 5


def test_a_host_behind_a_proxy_is_asked_for_there(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        assert hub.is_reachable("http://nowhere.invalid")
        monkeypatch.setenv("no_proxy", "nowhere.invalid")
        assert not hub.is_reachable("http://nowhere.invalid")


def test_a_client_told_to_be_offline_does_not_even_knock(offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with socket.socket() as host:
        host.bind(("127.0.0.1", 0))
        host.listen()
        host.settimeout(0.2)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{host.getsockname()[1]}")
        with pytest.raises(UserError, match=WAYS_OUT):
            locate("resnet18", "auto", None)
        with pytest.raises(TimeoutError):
            host.accept()


def test_a_network_without_weights_anywhere_is_told_apart(offline: None) -> None:
    with pytest.raises(UserError, match=r"'lenet5'.*knows no place.*random.*Backbone\.weights='none'.*file") as error:
        locate("lenet5", "auto", None)
    assert "fetch()" not in str(error.value)  # no network would help


@pytest.mark.parametrize(
    ("wanted", "file", "message"),
    [
        ("packaged", None, "No installed package has weights for 'resnet18', only for tf_efficientnet_lite0"),
        ("file", None, "needs a path"),
        ("none", "some.pth", "Backbone.file is given, but Backbone.weights='none'"),
        ("auto", "missing.pth", "missing.pth is not a file"),
    ],
)
def test_contradictions_are_refused(wanted: WeightsSourceChoice, file: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        locate("resnet18", wanted, file)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the formats that we load: \.safetensors"):
        locate("resnet18", "auto", str(tmp_path / "weights.h5"))
