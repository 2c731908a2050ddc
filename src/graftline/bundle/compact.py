"""Write a bundle for small devices: with whole numbers of 8 bits, or for OpenVINO.

Letters: B batch, C channels, H, W height and width in px, K classes.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from graftline.bundle.ensemble import is_ensemble
from graftline.bundle.export import PIXELS, PROBABILITIES, assemble
from graftline.bundle.layout import INPUT, LOGITS, ONNX_FILE
from graftline.bundle.predictor import Predictor
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.files import atomic_directory, atomic_file

CompactFormat = Literal["onnx-int8", "openvino"]
Run = Callable[[np.ndarray], np.ndarray]  # pixels (B, H, W, 3) uint8 → probabilities (B, K)
OPENVINO_FILE = "model.xml"


class _Images(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime's has no types
    """Inputs of the network, one after the other.

    Args:
        inputs: each (1, C, H, W) float32.
    """

    def __init__(self, inputs: Iterable[np.ndarray]) -> None:
        self._inputs: Iterator[np.ndarray] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next one; None: that was the last."""
        found = next(self._inputs, None)
        return None if found is None else {INPUT: found}


def export_int8(bundle: Path, file: Path, inputs: Iterable[np.ndarray]) -> None:
    """Write a bundle as one ONNX file whose network computes with whole numbers of 8 bits.

    Weights get a scale for each channel, activations one for each layer, from the smallest and largest that training
    images give (Jacob et al. 2018, arXiv 1712.05877; Krishnamoorthi 2018, arXiv 1806.08342, section 3.2). What is done
    to the pixels, and what becomes of the logits, stays as it is.

    Args:
        bundle: of a network.
        file: what is written, with the inputs and outputs of `graftline.bundle.export.export_onnx`.
        inputs: of training images, each (1, C, H, W) float32.
    """
    require_network(bundle)
    with tempfile.TemporaryDirectory() as folder, atomic_file(file) as temporary:
        network = onnx.load(bundle / ONNX_FILE)
        for output in [one for one in network.graph.output if one.name != LOGITS]:
            network.graph.output.remove(output)  # it would be rounded too
        small = quantize(network, inputs, Path(folder))
        onnx.save(assemble(bundle, Predictor.from_directory(bundle), small), temporary)


def quantize(network: onnx.ModelProto, inputs: Iterable[np.ndarray], folder: Path) -> Path:
    """Return the file of a network that computes with whole numbers of 8 bits, in a folder for it and others."""
    plain, simple, small = (folder / f"{name}.onnx" for name in ("plain", "simple", "int8"))
    onnx.save(network, plain)
    quant_pre_process(plain, simple, skip_symbolic_shape=True)  # that needs a package more, and finds nothing here
    quantize_static(
        simple,
        small,
        _Images(inputs),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,  # beside weights with a sign: what VNNI multiplies
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_of_sizes(onnx.load(simple).graph),
    )
    return small


def _of_sizes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes that compute with sizes alone, as those of a padding: rounded, they are others."""
    known = {"", *(tensor.name for tensor in graph.initializer)}
    found = [node for node in graph.node if node.op_type == "Shape"]  # graph.node is in the order of computation
    known.update(name for node in found for name in node.output)
    for node in graph.node:
        if known.issuperset(node.input):
            found.append(node)
            known.update(node.output)
    return [node.name for node in found if node.name]  # an empty name would stand for all nodes without one


def export_openvino(bundle: Path, folder: Path) -> None:
    """Write a bundle as OpenVINO's two files, in float32, with the inputs and outputs of ``export_onnx``.

    Raises:
        UserError: OpenVINO is not installed, or cannot express the network.
    """
    require_network(bundle)
    openvino = _openvino()
    with tempfile.TemporaryDirectory() as place, atomic_directory(folder) as temporary:
        plain = Path(place) / "plain.onnx"
        onnx.save(assemble(bundle, Predictor.from_directory(bundle)), plain)
        try:
            model = openvino.Core().read_model(plain)  # not ovc, which sends what it converts to its makers' statistics
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"OpenVINO cannot express this network ({reason}): take Export.format='onnx'.") from error
        openvino.save_model(model, temporary / OPENVINO_FILE, compress_to_fp16=False)


def open_onnx(file: Path, execution: Execution) -> Run:
    """Open a file of `graftline.bundle.export.export_onnx`, or of ``export_int8``."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = execution.num_threads
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run([PROBABILITIES], {PIXELS: pixels})[0])


def open_openvino(folder: Path, execution: Execution) -> Run:
    """Open what ``export_openvino`` wrote."""
    settings = {"INFERENCE_NUM_THREADS": execution.num_threads, "PERFORMANCE_HINT": "LATENCY"}
    # bfloat16 would be OpenVINO's own choice on a processor that has it
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    model = _openvino().Core().compile_model(folder / OPENVINO_FILE, "CPU", settings)
    return lambda pixels: np.array(model({PIXELS: pixels})[PROBABILITIES])


def require_network(bundle: Path) -> None:
    """Make sure that a bundle is of one network.

    Raises:
        UserError: it is an ensemble.
    """
    if is_ensemble(bundle):
        raise UserError(f"{bundle} is an ensemble: export one of its members, such as {bundle}/members/1.")


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise UserError("Export.format='openvino' needs OpenVINO: pip install 'graftline[openvino]'.") from error
    return openvino
