"""Write a bundle as one ONNX file that takes decoded pixels of any size and gives calibrated probabilities.

The file holds what the predictor does with Pillow and numpy: resize, crop, normalize, and what becomes of the logits.
Resizing is two products with matrices of Pillow's own weights, whole numbers of 2^-22, which the file computes from the
image's size: the gray levels are Pillow's to the last bit, which ONNX's antialiased Resize does not promise. In some
upright images Pillow, from version 13 on, takes the vertical pass first: there a level differs in some pixels.

Letters: B batch, H, W size of the images in px, C channels, h, w size of the network's input in px, K classes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.calibration import Calibration
from graftline.bundle.decision import Decision
from graftline.bundle.ensemble import AnyPredictor, Ensemble, is_ensemble, load_predictor, read_ensemble, read_replay
from graftline.bundle.golden import read_golden
from graftline.bundle.layout import INPUT, LOGITS, ONNX_FILE
from graftline.bundle.verify import MAX_PROBABILITY_CHANGE
from graftline.data.decode import decode_rgb
from graftline.errors import UserError
from graftline.files import atomic_file

PIXELS, PROBABILITIES, ANSWER = "pixels", "probabilities", "answer"  # input (B, H, W, 3); outputs (B, K) and (B,)
TOLERANCE = MAX_PROBABILITY_CHANGE  # between the file and the predictor, as between two machines
CHECKED_SIZES = ((1, 1), (30, 400), (400, 30), (333, 500), (900, 700))  # H, W; beside the golden images

ONE = float(2**22)  # what Pillow's weights sum to (Resample.c, PRECISION_BITS)

_PRODUCER = "graftline"
_LUMA = (19595, 38470, 7471)  # Pillow's weights of red, green and blue in gray, in parts of 65,536 (Convert.c, L24)
_SUPPORTS = {"bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}  # Pillow's Resample.c


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that was written.

    Attributes:
        file: where it lies.
        num_images: that it was compared with the predictor on.
        largest_difference: of any probability of these.
    """

    file: Path
    num_images: int
    largest_difference: float


def export_onnx(bundle: Path, file: Path) -> OnnxExport:
    """Write a bundle as one ONNX file, and compare it with the predictor before it is visible.

    Args:
        bundle: of a network, or of an ensemble without crops.
        file: what is written: input ``pixels`` (B, H, W, 3) uint8 RGB, the images of a batch of one size; outputs
            ``probabilities`` (B, K) float32 and ``answer`` (B,) int64, the number of the class that the bundle answers.

    Raises:
        UserError: the bundle cannot be loaded, is an ensemble over crops or has no golden images; or a probability
            differs by more than `TOLERANCE`.
    """
    predictor = load_predictor(bundle)
    model = _assemble(bundle, predictor)
    with atomic_file(file) as temporary:
        onnx.save(model, temporary)
        images = _images(bundle, predictor)
        difference = _compare(temporary, predictor, images)
        if not difference <= TOLERANCE:
            raise UserError(
                f"The ONNX file would change a probability by {difference:.1g}, more than {TOLERANCE:g}, against the "
                f"model itself: take format=docker, which runs the model as it is."
            )
        _describe(model, {"largest_difference": f"{difference:.2g}"})
        onnx.save(model, temporary)
    return OnnxExport(file, len(images), difference)


def _images(bundle: Path, predictor: AnyPredictor) -> list[np.ndarray]:
    """Return the golden images, and made-up ones of other sizes, each (H, W, 3) uint8."""
    files = read_replay(bundle)[0] if is_ensemble(bundle) else read_golden(bundle)[0]
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    made_up = [np.array(coarse.resize((width, height))) for height, width in CHECKED_SIZES]
    return [*(decode_rgb(file, predictor.decoding.of_our_own()) for file in files), *made_up]


def _compare(file: Path, predictor: AnyPredictor, images: Sequence[np.ndarray]) -> float:
    """Return the largest difference of a probability between an ONNX file and the predictor."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    found = [session.run([PROBABILITIES], {PIXELS: image[None]})[0] for image in images]
    return float(np.abs(np.concatenate(found) - predictor.predict(images)).max())


def _assemble(bundle: Path, predictor: AnyPredictor) -> onnx.ModelProto:
    graph = _Graph()
    if isinstance(predictor, Ensemble):
        if predictor.crops != "1":
            raise UserError(
                f"{bundle} averages over the crops '{predictor.crops}', which an ONNX file cannot cut: "
                "take format=docker, or an ensemble with crops=1."
            )
        folders = [bundle / entry["folder"] for entry in read_ensemble(bundle)["members"]]
        logits = _ensemble_logits(graph, predictor, folders)
    else:
        logits = graph.network(bundle / ONNX_FILE, _preprocess(graph, predictor.preprocessing), "network/")
    logits = _calibrate(graph, predictor.calibration, logits)
    graph("Softmax", logits, axis=-1, output=PROBABILITIES)
    _answer(graph, predictor.decision)
    return _model(graph, predictor)


def _model(graph: "_Graph", predictor: AnyPredictor) -> onnx.ModelProto:
    classes = len(predictor.class_names)
    made = helper.make_graph(
        graph.nodes,
        "classifier",
        [helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, ["batch", "height", "width", 3])],
        [
            helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info(ANSWER, TensorProto.INT64, ["batch"]),
        ],
        graph.initializers,
        doc_string="Decoded RGB pixels to calibrated probabilities; the names of the classes are in metadata_props.",
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in graph.opsets.items()]
    model: onnx.ModelProto = helper.make_model(
        made, opset_imports=imports, ir_version=graph.ir_version, producer_name=_PRODUCER, functions=graph.functions
    )
    properties = {
        "class_names": json.dumps(list(predictor.class_names)),
        "digest": predictor.digest,
        "decision": json.dumps(predictor.decision.to_dict()),
        "tolerance": f"{TOLERANCE:g}",
    }
    _describe(model, properties)
    return model


def _describe(model: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    helper.set_model_props(model, {**{one.key: one.value for one in model.metadata_props}, **properties})


class _Graph:
    """Nodes of a graph in the order in which they run.

    Attributes:
        nodes: the nodes.
        initializers: constants.
        opsets: version by domain.
        ir_version: of the file.
        functions: of the networks' own.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.opsets: dict[str, int] = {}
        self.ir_version = 0
        self.functions: list[onnx.FunctionProto] = []

    def __call__(self, operation: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node of one output and return that one's name."""
        output = output or f"graftline/{operation.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, kind: Any) -> str:
        """Add a constant and return its name."""
        name = f"graftline/constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype=kind), name))
        return name

    def cast(self, value: str, kind: int) -> str:
        """Change the type of a value."""
        return self("Cast", value, to=kind)

    def network(self, file: Path, images: str, prefix: str) -> str:
        """Add a bundle's network, all of whose names get a prefix, and return the name of its logits."""
        network = onnx.compose.add_prefix(onnx.load(file), prefix)
        for one in network.opset_import:
            if self.opsets.setdefault(one.domain, one.version) != one.version:
                raise UserError(f"{file} has another version of ONNX's operators than the other members: train anew.")
        self.ir_version = max(self.ir_version, network.ir_version)
        self.functions += network.functions
        self("Identity", images, output=f"{prefix}{INPUT}")
        self.nodes += network.graph.node
        self.initializers += network.graph.initializer
        return f"{prefix}{LOGITS}"


def _preprocess(graph: _Graph, way: Preprocessing) -> str:
    """Return the network's input (B, C, h, w), as `Preprocessing` makes it of the pixels."""
    if way.interpolation not in _SUPPORTS:
        raise UserError(
            f"The model resizes images by '{way.interpolation}', which an ONNX file cannot do as Pillow does: take "
            "format=docker, which runs the model as it is."
        )
    planes = PIXELS
    if way.channels == 1:
        weighed = graph("Mul", graph.cast(PIXELS, TensorProto.INT32), graph.constant(_LUMA, np.int32))
        summed = graph("ReduceSum", weighed, graph.constant([-1], np.int64), keepdims=1)
        rounded = graph("Add", summed, graph.constant(2**15, np.int32))
        planes = graph("Div", rounded, graph.constant(2**16, np.int32))
    planes = graph("Transpose", graph.cast(planes, TensorProto.DOUBLE), perm=[0, 3, 1, 2])  # (B, C, H, W)
    sizes = [graph("Squeeze", graph("Shape", PIXELS, start=axis, end=axis + 1)) for axis in (1, 2)]
    rows, columns = (
        _Axis.of(graph, size, scaled, target, way.interpolation)
        for size, scaled, target in zip(sizes, _scaled_sizes(graph, sizes, way), way.image_size, strict=True)
    )
    planes = _to_levels(graph, graph("MatMul", planes, graph("Transpose", columns.weights, perm=[1, 0])))
    planes = _to_levels(graph, graph("MatMul", rows.weights, planes))  # (B, C, h, w)
    planes = graph.cast(planes, TensorProto.FLOAT)
    inside = graph(
        "And",
        graph("Unsqueeze", rows.is_inside, graph.constant([1], np.int64)),
        graph("Unsqueeze", columns.is_inside, graph.constant([0], np.int64)),
    )
    border = [round(255 * value) if way.crop_mode == "border" else 0 for value in way.mean]
    planes = graph("Where", inside, planes, graph.constant(np.reshape(border, (1, -1, 1, 1)), np.float32))
    planes = graph("Div", planes, graph.constant(255, np.float32))
    mean, std = (graph.constant(np.reshape(values, (1, -1, 1, 1)), np.float32) for values in (way.mean, way.std))
    return graph("Div", graph("Sub", planes, mean), std)


def _to_levels(graph: _Graph, sums: str) -> str:
    """Round sums of whole weights to gray levels, halves up, as Pillow does after each of its two passes."""
    rounded = graph("Floor", graph("Add", graph("Div", sums, _number(graph, ONE)), _number(graph, 0.5)))
    return graph("Clip", rounded, _number(graph, 0), _number(graph, 255))


def _number(graph: _Graph, value: float) -> str:
    return graph.constant(value, np.float64)


def _scaled_sizes(graph: _Graph, sizes: Sequence[str], way: Preprocessing) -> list[str]:
    """Return height and width of the resized image before the crop, as `Preprocessing` computes them, int64."""
    targets = [math.floor(edge / way.crop_pct) for edge in way.image_size]
    if way.crop_mode == "squash":
        return [graph.constant(target, np.int64) for target in targets]
    if way.crop_mode == "center" and targets[0] == targets[1]:
        target, short = graph.constant(targets[0], np.int64), graph("Min", *sizes)
        return [graph("Div", graph("Mul", target, size), short) for size in sizes]
    edges = [graph.cast(size, TensorProto.DOUBLE) for size in sizes]
    ratios = [
        graph("Div", edge, graph.constant(target, np.float64)) for edge, target in zip(edges, targets, strict=True)
    ]
    ratio = graph("Min" if way.crop_mode == "center" else "Max", *ratios)
    rounded = [graph.cast(graph("Round", graph("Div", edge, ratio)), TensorProto.INT64) for edge in edges]
    return [graph("Max", edge, graph.constant(1, np.int64)) for edge in rounded]


@dataclass(frozen=True)
class _Axis:
    """How one axis of an image is resized and cropped.

    Attributes:
        weights: (t, S) float64, of each of the image's S pixels in each of the crop's t, as whole numbers of 2^-22.
        is_inside: (t,) whether a pixel of the crop lies in the resized image.
    """

    weights: str
    is_inside: str

    @classmethod
    def of(cls, graph: _Graph, size: str, scaled: str, target: int, interpolation: str) -> "_Axis":
        """Compute both from the sizes of the image, of the resized image and of the crop, in px.

        The distance of pixel x from the center of the resized image's pixel i is ((2x + 1) scaled - (2i + 1) size) /
        (2 scaled): whole numbers up to the division.
        """
        zero, one, two = (graph.constant(value, np.int64) for value in (0, 1, 2))
        of_crop = graph.constant(np.arange(target), np.int64)
        number = graph("Add", of_crop, _offset(graph, scaled, target))  # (t,)
        last = graph("Sub", scaled, one)
        inside = graph("And", graph("GreaterOrEqual", number, zero), graph("LessOrEqual", number, last))
        number = graph("Min", graph("Max", number, zero), last)
        position = graph("Range", zero, size, one)  # (S,)
        odd = [graph("Add", graph("Mul", two, value), one) for value in (number, position)]
        centers = graph("Unsqueeze", graph("Mul", odd[0], size), graph.constant([1], np.int64))  # (t, 1)
        distances = graph("Sub", graph("Mul", odd[1], scaled), centers)  # (t, S)
        width = graph.cast(graph("Mul", two, graph("Max", size, scaled)), TensorProto.DOUBLE)
        weights = _filter(graph, graph("Div", graph.cast(distances, TensorProto.DOUBLE), width), interpolation)
        total = graph("ReduceSum", weights, graph.constant([1], np.int64), keepdims=1)
        return cls(_to_whole(graph, graph("Div", weights, total)), inside)


def _offset(graph: _Graph, scaled: str, target: int) -> str:
    """Return which pixel of the resized image is the crop's first: below 0 where the crop is larger."""
    spare = graph("Sub", scaled, graph.constant(target, np.int64))
    half = graph("Mul", graph.cast(spare, TensorProto.DOUBLE), graph.constant(0.5, np.float64))
    cropped, padded = (graph.cast(graph(rounding, half), TensorProto.INT64) for rounding in ("Round", "Ceil"))
    return graph("Where", graph("Less", spare, graph.constant(0, np.int64)), padded, cropped)


def _to_whole(graph: _Graph, weights: str) -> str:
    """Return weights in whole numbers of 2^-22, halves away from 0, as Pillow rounds them."""
    rounded = graph(
        "Floor", graph("Add", graph("Mul", graph("Abs", weights), _number(graph, ONE)), _number(graph, 0.5))
    )
    return graph("Mul", graph("Sign", weights), rounded)


def _filter(graph: _Graph, x: str, interpolation: str) -> str:
    """Return Pillow's weights at distances x, in pixels of the coarser of the two images."""
    far, support = graph("Abs", x), _number(graph, _SUPPORTS[interpolation])
    if interpolation == "bilinear":
        values = graph("Sub", _number(graph, 1), far)
    elif interpolation == "bicubic":
        values = _bicubic(graph, far)
    elif interpolation == "hamming":
        cosine = graph("Cos", graph("Mul", far, _number(graph, math.pi)))
        window = graph("Add", _number(graph, 0.54), graph("Mul", _number(graph, 0.46), cosine))
        values = graph("Mul", _sinc(graph, far), window)
    else:
        values = graph("Mul", _sinc(graph, far), _sinc(graph, graph("Div", far, support)))
    return graph("Where", graph("Less", far, support), values, _number(graph, 0))


def _bicubic(graph: _Graph, far: str) -> str:
    """Return Keys' kernel with a = -0.5: 1.5 x^3 - 2.5 x^2 + 1 up to 1, then -0.5 (x^3 - 5 x^2 + 8 x - 4)."""

    def polynomial(*coefficients: float) -> str:
        value = _number(graph, coefficients[0])
        for coefficient in coefficients[1:]:
            value = graph("Add", graph("Mul", value, far), _number(graph, coefficient))
        return value

    near = graph("Less", far, _number(graph, 1))
    return graph("Where", near, polynomial(1.5, -2.5, 0, 1), polynomial(-0.5, 2.5, -4, 2))


def _sinc(graph: _Graph, far: str) -> str:
    angle = graph("Mul", graph("Max", far, _number(graph, 1e-9)), _number(graph, math.pi))
    return graph("Div", graph("Sin", angle), angle)


def _calibrate(graph: _Graph, calibration: Calibration, logits: str) -> str:
    if calibration.scales:
        scaled = graph("Mul", logits, graph.constant(calibration.scales, np.float32))
        return graph("Add", scaled, graph.constant(calibration.biases, np.float32))
    return graph("Div", logits, graph.constant(calibration.temperature, np.float32))


def _answer(graph: _Graph, decision: Decision) -> None:
    if decision.costs:
        costs = graph("MatMul", PROBABILITIES, graph.constant(decision.costs, np.float32))
        graph("ArgMin", costs, axis=1, keepdims=0, output=ANSWER)
        return
    weighed = PROBABILITIES
    if decision.thresholds:
        weighed = graph("Div", PROBABILITIES, graph.constant(decision.thresholds, np.float32))
    graph("ArgMax", weighed, axis=1, keepdims=0, output=ANSWER)


def _ensemble_logits(graph: _Graph, ensemble: Ensemble, folders: Sequence[Path]) -> str:
    """Return the logits (B, K) of the members' average."""
    inputs: dict[Preprocessing, str] = {}
    terms = []
    for number, (member, folder, share) in enumerate(zip(ensemble.members, folders, ensemble.shares, strict=True)):
        if member.preprocessing not in inputs:
            inputs[member.preprocessing] = _preprocess(graph, member.preprocessing)
        logits = graph.network(folder / ONNX_FILE, inputs[member.preprocessing], f"member{number}/")
        logits = _calibrate(graph, member.calibration, logits)
        order = [member.class_names.index(name) for name in ensemble.class_names]
        logits = graph("Gather", logits, graph.constant(order, np.int64), axis=1)
        of_member = graph("Softmax" if ensemble.average == "probabilities" else "LogSoftmax", logits, axis=-1)
        terms.append(graph("Mul", of_member, graph.constant(share, np.float32)))
    mean = graph("Sum", *terms)
    return graph("Log", mean) if ensemble.average == "probabilities" else mean
