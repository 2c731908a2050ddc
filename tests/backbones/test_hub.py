"""The hub's real client against a server on this machine: one download, then never again."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

SCRIPT = """
import json, sys
from graftline.backbones.backbone import Backbone
from graftline.errors import UserError

first = Backbone("test_resnet.r160_in1k").build(3)
again = Backbone("test_resnet.r160_in1k").build(3)
assert first.weights == again.weights and first.weights.source == "hub", first.weights
print(json.dumps([first.weights.location, first.weights.digest, first.network.conv1[0].weight.sum().item()]))
try:
    Backbone("test_vit.r160_in1k").build(3)
except UserError as error:
    print(error)
"""


class Hub(ThreadingHTTPServer):
    """Serves the safetensors file of one repository; notes what is asked for."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = content
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """One answer, with the headers that the hub sends."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        if self.answer():
            self.wfile.write(self.server.content)

    def answer(self) -> bool:
        self.server.asked.append(f"{self.command} {self.path}")
        known = self.path == "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
        self.send_response(200 if known else 404)
        headers = {"X-Repo-Commit": "1" * 40, "ETag": '"abc"', "Content-Length": str(len(self.server.content))}
        for key, value in (headers if known else {"X-Error-Code": "RepoNotFound", "Content-Length": "0"}).items():
            self.send_header(key, value)
        self.end_headers()
        return known

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    torch.manual_seed(0)
    with Hub(save(timm.create_model("test_resnet").state_dict())) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_weights_are_downloaded_once_and_quietly(hub: Hub, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path),
        "TORCH_HOME": str(tmp_path),
    }
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, result, told_again, refused = done.stdout.splitlines()
    assert told == "Downloading the weights of test_resnet.r160_in1k from 127.0.0.1"
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet").conv1[0].weight.sum().item()
    assert f"{expected}" in result
    assert "timm/test_resnet.r160_in1k/model.safetensors" in result
    assert [request for request in hub.asked if request.startswith("GET") and "resnet" in request] == [
        "GET /timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    ]
    assert told_again.startswith("Downloading the weights of test_vit")
    assert refused.startswith("No weights for 'test_vit.r160_in1k', as the download from 127.0.0.1 failed")
    assert refused.endswith("(backbone.weights=none).")
    assert done.stderr == ""
