"""Write a bundle as one ONNX file that takes decoded pixels of any size and gives calibrated probabilities.

The file holds what the predictor does with Pillow and numpy: resize, crop, normalize, and what becomes of the logits.

Letters: B batch, H, W size of the images in px, C channels, h, w size of the network's input in px, K classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from PIL import Image

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.calibration import Calibration
from graftline.bundle.decision import Decision
from graftline.bundle.ensemble import AnyPredictor, Ensemble, is_ensemble, load_predictor, read_ensemble, read_replay
from graftline.bundle.golden import read_golden
from graftline.bundle.layout import ONNX_FILE
from graftline.bundle.onnx_graph import Graph
from graftline.bundle.onnx_preprocess import preprocess
from graftline.bundle.verify import MAX_PROBABILITY_CHANGE
from graftline.data.decode import decode_rgb
from graftline.errors import UserError
from graftline.files import atomic_file

PIXELS, PROBABILITIES, ANSWER = "pixels", "probabilities", "answer"  # input (B, H, W, 3); outputs (B, K) and (B,)
TOLERANCE = MAX_PROBABILITY_CHANGE  # between the file and the predictor, as between two machines
CHECKED_SIZES = ((1, 1), (60, 400), (400, 60), (333, 500), (900, 700))  # H, W; beside the golden images


_PRODUCER = "graftline"


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
    model = assemble(bundle, predictor)
    with atomic_file(file) as temporary:
        onnx.save(model, temporary)
        images = _images(bundle, predictor)
        difference = _compare(temporary, predictor, images)
        if not difference <= TOLERANCE:
            raise UserError(
                f"The ONNX file would change a probability by {difference:.1g}, more than {TOLERANCE:g}, against the "
                f"model itself: take the Docker export, which runs the model as it is."
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


def assemble(bundle: Path, predictor: AnyPredictor, network: Path | None = None) -> onnx.ModelProto:
    """Return a bundle from pixels to probabilities.

    Args:
        bundle: its directory.
        predictor: what it was loaded as.
        network: takes the place of the bundle's own; None: that runs.

    Raises:
        UserError: it is an ensemble over crops.
    """
    graph = Graph()
    if isinstance(predictor, Ensemble):
        if predictor.crops != "1":
            raise UserError(
                f"{bundle} averages over the crops '{predictor.crops}', which an ONNX file cannot cut: "
                "take the Docker export, or an ensemble with crops=1."
            )
        folders = [bundle / entry["folder"] for entry in read_ensemble(bundle)["members"]]
        logits = _ensemble_logits(graph, predictor, folders)
    else:
        logits = graph.network(
            network or bundle / ONNX_FILE, preprocess(graph, PIXELS, predictor.preprocessing), "network/"
        )
    logits = _calibrate(graph, predictor.calibration, logits)
    graph("Softmax", logits, axis=-1, output=PROBABILITIES)
    _answer(graph, predictor.decision)
    return _model(graph, predictor)


def _model(graph: "Graph", predictor: AnyPredictor) -> onnx.ModelProto:
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


def _calibrate(graph: Graph, calibration: Calibration, logits: str) -> str:
    if calibration.scales:
        scaled = graph("Mul", logits, graph.constant(calibration.scales, np.float32))
        return graph("Add", scaled, graph.constant(calibration.biases, np.float32))
    return graph("Div", logits, graph.constant(calibration.temperature, np.float32))


def _answer(graph: Graph, decision: Decision) -> None:
    if decision.costs:
        costs = graph("MatMul", PROBABILITIES, graph.constant(decision.costs, np.float32))
        graph("ArgMin", costs, axis=1, keepdims=0, output=ANSWER)
        return
    weighed = PROBABILITIES
    if decision.thresholds:
        weighed = graph("Div", PROBABILITIES, graph.constant(decision.thresholds, np.float32))
    graph("ArgMax", weighed, axis=1, keepdims=0, output=ANSWER)


def _ensemble_logits(graph: Graph, ensemble: Ensemble, folders: Sequence[Path]) -> str:
    """Return the logits (B, K) of the members' average; of one that has all the share, these are its own."""
    inputs: dict[Preprocessing, str] = {}
    terms = []
    is_alone = np.count_nonzero(ensemble.shares) == 1
    for number, (member, folder, share) in enumerate(zip(ensemble.members, folders, ensemble.shares, strict=True)):
        if share == 0:
            continue
        if member.preprocessing not in inputs:
            inputs[member.preprocessing] = preprocess(graph, PIXELS, member.preprocessing)
        logits = graph.network(folder / ONNX_FILE, inputs[member.preprocessing], f"member{number}/")
        logits = _calibrate(graph, member.calibration, logits)
        order = [member.class_names.index(name) for name in ensemble.class_names]
        logits = graph("Gather", logits, graph.constant(order, np.int64), axis=1)
        if is_alone:
            return logits
        of_member = graph("Softmax" if ensemble.average == "probabilities" else "LogSoftmax", logits, axis=-1)
        terms.append(graph("Mul", of_member, graph.constant(share, np.float32)))
    mean = graph("Sum", *terms)
    return graph("Log", mean) if ensemble.average == "probabilities" else mean
