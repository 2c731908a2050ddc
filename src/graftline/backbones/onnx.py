"""Networks as ONNX files, checked against torch before anyone uses them.

Letters: B batch, C channels, H height, W width.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's running commentary to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def export_onnx(
    module: nn.Module,
    path: Path,
    image_size: tuple[int, int],
    channels: int,
    outputs: Sequence[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``module``, images (B, C, H, W) → one or several (B, …), as one ONNX file with the batch size left open.

    The file holds nothing of the machine that wrote it, so that the same network gives the same file.

    Args:
        module: on the CPU, in eval mode.
        path: the file to write.
        image_size: (H, W) in pixels, fixed in the file.
        channels: C.
        outputs: names of the outputs; the input is named ``image``.
        metadata: what the file is to say of itself.
    """
    images = torch.zeros(2, channels, *image_size)
    with _silence():
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # the exporter's stack traces, with the paths of this machine
        program.model.metadata_props.update(metadata or {})
        program.save(path)  # one file, unless it would exceed the 2 GB of a protobuf


def export_quickly(module: nn.Module, path: Path, images: torch.Tensor) -> None:
    """Write ``module`` as an ONNX file for use on this machine, which the caller compares with torch.

    torch's older exporter, which it means to drop some day, takes a fifth of the time of ``export_onnx`` or less (0.2 s
    for 3.7 s with ConvNeXt-Atto, 2.9 s for 10.6 s with EfficientNet-Lite0), and its files run as fast. Where it is gone
    or fails, it is ``export_onnx`` after all.

    Args:
        module: on the CPU, in eval mode.
        path: the file to write; its input is named ``image``, its batch size is open.
        images: (B, C, H, W), at least two.
    """
    try:
        with _silence():
            torch.onnx.export(
                module,
                (images,),
                str(path),
                dynamo=False,
                input_names=["image"],
                output_names=["output"],
                dynamic_axes={"image": {0: "batch"}, "output": {0: "batch"}},
            )
    except Exception:  # whatever it raises on operations that it does not know
        _, channels, height, width = images.shape
        export_onnx(module, path, (height, width), channels, outputs=["output"])


def open_session(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """Open an ONNX file on the CPU; ``threads`` None: one per core."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def largest_difference(module: nn.Module, session: ort.InferenceSession, images: torch.Tensor) -> float:
    """Return max |torch - ONNX Runtime| / max |torch| over the outputs for ``images`` (B, C, H, W)."""
    with torch.inference_mode():
        expected = module(images).numpy()
    (actual,) = session.run(None, {"image": images.numpy()})
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12))
