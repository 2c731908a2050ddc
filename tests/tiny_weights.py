"""A weights directory with tiny networks of timm's and made-up weights."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from graftline.backbones.weights_store import WeightsStore

TINY_NETWORKS = ("test_efficientnet", "test_resnet")


def write_weights(directory: Path, names: Sequence[str] = TINY_NETWORKS) -> None:
    """Put tiny networks into a weights directory."""
    directory.mkdir(exist_ok=True)
    torch.manual_seed(0)
    origin = {"license": "mit", "source": "made up", "architecture": "tiny", "date": "2026-01-01", "timm": "1"}
    for name in names:
        save_file(timm.create_model(name).state_dict(), directory / "written.safetensors")
        WeightsStore(str(directory)).add(name, directory / "written.safetensors", origin)
