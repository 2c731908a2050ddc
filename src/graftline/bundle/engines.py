"""What runs a bundle's network: ONNX Runtime, or torch, which is loaded only then."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnxruntime

from graftline.bundle.layout import CONFIG_FILE, EMBEDDING, INPUT, LOGITS, ONNX_FILE, WEIGHTS_FILE
from graftline.errors import UserError, first_line
from graftline.execution import Execution

EngineName: TypeAlias = Literal["onnx", "torch"]
ENGINE_FILES: dict[EngineName, tuple[str, ...]] = {"onnx": (ONNX_FILE,), "torch": (WEIGHTS_FILE, CONFIG_FILE)}
Engine: TypeAlias = Callable[[np.ndarray, Sequence[str]], list[np.ndarray]]
"""Runs the network: images (B, C, H, W) float32 and names of outputs → these: logits (B, K), embedding (B, E)."""


def onnx_engine(directory: Path, execution: Execution) -> Engine:
    """Run a bundle's network with ONNX Runtime."""
    file = directory / ONNX_FILE
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = execution.num_threads
    # idle threads sleep instead of spinning: meanwhile the cores prepare images
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only
    _share_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    providers: list[Any] = ["CPUExecutionProvider"]
    if execution.is_cuda and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        number = execution.device.partition(":")[2] or "0"
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # ONNX Runtime has a class for each of its status codes
        raise UserError(f"{file} cannot be loaded ({first_line(error)}): save the bundle again.") from error

    def run(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(values) for values in session.run(list(outputs), {INPUT: images})]

    return run


@functools.cache
def _share_memory() -> None:
    """Let all networks of this process work in the same memory; each would keep 800 MB (Lite0, 32 images)."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)


def torch_engine(directory: Path, execution: Execution) -> Engine:
    """Run it with timm and torch."""
    import timm
    import torch

    import graftline.backbones.zoo  # noqa: F401 - registers our own networks with timm

    device = execution.torch_device
    network = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    network = network.to(device, memory_format=torch.channels_last)

    def run(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(device, memory_format=torch.channels_last)  # (B, C, H, W)
            if EMBEDDING in outputs:
                features = network.forward_features(batch)
                embedding = network.forward_head(features, pre_logits=True)  # (B, E)
                found = {LOGITS: network.forward_head(features), EMBEDDING: embedding}
            else:
                found = {LOGITS: network(batch)}  # (B, K)
            return [found[name].cpu().numpy() for name in outputs]

    return run
