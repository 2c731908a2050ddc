"""Any module as an ONNX file: any batch size, and quietly."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from graftline.backbones.onnx import export_onnx, largest_difference, open_session


class Trunk(nn.Module):
    """(B, C, H, W) → (B, F), with a reshape that must not remember the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU6())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features.reshape(images.shape[0], -1)


def test_a_module_is_exported_for_any_batch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    trunk = Trunk().eval()
    path = tmp_path / "trunk.onnx"
    export_onnx(trunk, path, (16, 20), 3, outputs=["features"], metadata={"digest": "abc"})
    assert [file.name for file in tmp_path.iterdir()] == ["trunk.onnx"]
    assert capfd.readouterr() == ("", "")
    session = open_session(path, threads=1)
    assert session.get_modelmeta().custom_metadata_map == {"digest": "abc"}
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 16, 20)
        assert largest_difference(trunk, session, images) < 1e-6
    trunk.get_parameter("layers.0.weight").data.mul_(1.1)
    assert largest_difference(trunk, session, images) > 1e-3
