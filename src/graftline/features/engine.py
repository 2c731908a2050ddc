"""The trunk at full speed: exported once to ONNX and run by ONNX Runtime on a CPU, or by torch on a GPU.

Letters: B batch, C channels, H height, W width, F features.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from graftline.backbones.onnx import export_onnx, largest_difference, open_session
from graftline.files import atomic_file

MAX_RELATIVE_DIFFERENCE = 1e-3  # of ONNX Runtime from torch, before we go back to torch

Engine = Callable[[Tensor], np.ndarray]  # images (B, C, H, W) float32 → features (B, F) float32


def make_engine(trunk: nn.Module, file: Path, image_size: tuple[int, int], channels: int = 3) -> tuple[Engine, str]:
    """Prepare the trunk for the frozen pass.

    Args:
        trunk: on the CPU; put into eval mode here.
        file: where the ONNX export lies, or will lie.
        image_size: (H, W) in pixels.
        channels: C.

    Returns:
        The engine, and what it runs on, in words.
    """
    trunk.eval()
    if torch.cuda.is_available():
        return _torch_engine(trunk, torch.device("cuda")), "torch on the GPU"
    if not file.exists():
        with atomic_file(file) as temporary:
            export_onnx(trunk, temporary, image_size, channels, output="features")
    session = open_session(file)
    images = torch.randn(3, channels, *image_size, generator=torch.Generator().manual_seed(0))
    difference = largest_difference(trunk, session, images)
    if difference > MAX_RELATIVE_DIFFERENCE:
        engine = _torch_engine(trunk, torch.device("cpu"))
        return engine, f"torch (ONNX Runtime differs from it by {difference:.1e}, more than {MAX_RELATIVE_DIFFERENCE})"

    def run(images: Tensor) -> np.ndarray:
        features: np.ndarray = session.run(None, {"image": images.numpy()})[0]
        return features

    return run, "ONNX Runtime"


def _torch_engine(trunk: nn.Module, device: torch.device) -> Engine:
    trunk.to(device).to(memory_format=torch.channels_last)

    def run(images: Tensor) -> np.ndarray:
        with torch.inference_mode():  # in float32: what is cached must not depend on the device
            batch = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            features: np.ndarray = trunk(batch).cpu().numpy()
        return features

    return run
