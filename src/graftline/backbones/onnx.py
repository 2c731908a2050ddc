"""Networks as ONNX files, checked against torch before anyone uses them.

Letters: B batch, C channels, H height, W width.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from graftline.errors import first_line

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's running commentary to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    # torch prints the whole graph of what it cannot export, from C++, whatever its own switch says
    no_graph = patch.object(torch._C, "_jit_onnx_log", lambda *_: None, create=True)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), no_graph:
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
    check: Callable[[Path], None] = lambda path: None,  # noqa: ARG005 - nothing is checked
) -> None:
    """Write ``module``, images (B, C, H, W) → one or several (B, …), as one ONNX file with the batch size left open.

    torch's older exporter comes first, which torch means to drop some day: it takes 0.4 s of processor time for
    EfficientNet-Lite0 where the newer one takes 7, and its files run as fast. Where it is gone, fails, or writes what
    does not pass the check, the newer one follows.

    The file holds nothing of the machine that wrote it, so that the same network gives the same file.

    Args:
        module: on the CPU, in eval mode, all of it: torch puts the whole back into the mode of its outermost module.
        path: the file to write.
        image_size: (H, W) in pixels, fixed in the file.
        channels: C.
        outputs: names of the outputs; the input is named ``image``.
        metadata: what the file is to say of itself.
        check: is given the file, and raises if it computes something else than ``module``.

    Raises:
        Exception: of any kind, what the newer exporter or the check of its file raised.
    """
    images = torch.zeros(2, channels, *image_size)
    try:
        _export_by_tracing(module, path, images, outputs, metadata or {})
        check(path)
    except Exception as error:  # whatever it raises on operations that it does not know
        logger.debug("torch's older ONNX exporter does not do (%s): the newer one is used.", first_line(error))
        _export_program(module, path, images, outputs, metadata or {})
        check(path)


def _export_by_tracing(
    module: nn.Module, path: Path, images: torch.Tensor, outputs: Sequence[str], metadata: Mapping[str, str]
) -> None:
    with _silence():
        torch.onnx.export(
            module,
            (images,),
            str(path),
            dynamo=False,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in ("image", *outputs)},
        )
    if metadata:
        model = onnx.load(path)
        onnx.helper.set_model_props(model, dict(metadata))
        onnx.save(model, path)


def _export_program(
    module: nn.Module, path: Path, images: torch.Tensor, outputs: Sequence[str], metadata: Mapping[str, str]
) -> None:
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
        program.model.metadata_props.update(metadata)
        program.save(path)  # one file, unless it would exceed the 2 GB of a protobuf


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
