"""The hub's real client against a server on this machine: one download, then never again."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from hub_server import COMMIT, Hub, point_client_at, serve
from rich.console import Console
from safetensors.torch import save

from graftline.backbones import hub as client

NAME = "test_resnet.r160_in1k"
SCRIPT = """
import json, sys
from graftline.backbones.backbone import Backbone
from graftline.console import show_log
from graftline.errors import UserError

show_log()
first = Backbone("test_resnet.r160_in1k").build(3)
again = Backbone("test_resnet.r160_in1k").build(3)
assert first.weights == again.weights and first.weights.source == "hub", first.weights
print(json.dumps([first.weights.location, first.weights.digest, first.network.conv1[0].weight.sum().item()]))
try:
    Backbone("test_vit.r160_in1k").build(3)
except UserError as error:
    print(error)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    torch.manual_seed(0)
    with serve({f"timm/{NAME}/model.safetensors": save(timm.create_model("test_resnet").state_dict())}) as server:
        yield server


@pytest.mark.long
def test_weights_are_downloaded_once_and_quietly(hub: Hub, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path),
        "TORCH_HOME": str(tmp_path),
    }
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, result, told_again, refused = done.stdout.splitlines()
    assert told == f"Downloading the weights of {NAME} from 127.0.0.1"
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet").conv1[0].weight.sum().item()
    assert f"{expected}" in result
    assert f"timm/{NAME}/model.safetensors" in result
    assert [file for file in hub.downloads() if "resnet" in file] == [f"timm/{NAME}/model.safetensors"]
    assert told_again.startswith("Downloading the weights of test_vit")
    assert refused.startswith("No weights for 'test_vit.r160_in1k', as the download from 127.0.0.1 failed")
    assert refused.endswith("(Backbone.weights='none').")
    assert done.stderr == ""


@pytest.fixture
def online(hub: Hub, hub_cache: Path, torch_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing downloaded yet, and the hub is there."""
    point_client_at(hub.endpoint, monkeypatch)


def test_the_exact_location_tells_the_commit(online: None) -> None:
    downloaded = client.download("test_resnet")
    assert downloaded.location == f"timm/{NAME}/model.safetensors"
    assert downloaded.exact_location == f"timm/{NAME}@{COMMIT}/model.safetensors"
    assert client.find_local("test_resnet") == downloaded


def test_a_download_counts_its_megabytes(online: None, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, record=True, width=120, legacy_windows=False)
    shown: list[str] = []
    with terminal.status("hub → test_resnet") as status:
        monkeypatch.setattr(status, "update", shown.append)
        repository = client._repository("test_resnet")
        assert repository is not None
        client._fetch_file(repository, "model.safetensors", status)
    (content,) = hub.files.values()
    size = f"{len(content) / 1e6:,.0f}"
    assert shown[-1] == f"hub → test_resnet: {size} of {size} MB"
