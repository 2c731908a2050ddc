"""Any module as an ONNX file: any batch size, and quietly."""

from contextlib import nullcontext
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


@pytest.mark.parametrize("bad", [1, 2])
def test_a_file_that_does_not_pass_the_check_is_written_by_the_newer_exporter(bad: int, tmp_path: Path) -> None:
    trunk, seen = Trunk().eval(), list[bytes]()

    def check(file: Path) -> None:
        seen.append(file.read_bytes())
        if len(seen) <= bad:
            raise ValueError(f"file number {len(seen)} is wrong")

    path = tmp_path / "trunk.onnx"
    with nullcontext() if bad == 1 else pytest.raises(ValueError, match="number 2"):
        export_onnx(trunk, path, (16, 20), 3, outputs=["features"], metadata={"digest": "abc"}, check=check)
    older, newer = seen
    assert older != newer == path.read_bytes()
    session = open_session(path, threads=1)
    assert session.get_modelmeta().custom_metadata_map == {"digest": "abc"}
    assert largest_difference(trunk, session, torch.randn(5, 3, 16, 20)) < 1e-6
