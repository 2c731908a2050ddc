"""Preprocess images within an ONNX file as `Preprocessing` does with Pillow: resize, crop, normalize.

Resizing is two products with matrices of Pillow's own weights, whole numbers of 2^-22, which the file computes from the
image's size: the gray levels are Pillow's to the last bit, which ONNX's antialiased Resize does not promise. Of images
more than eight times as long as wide, which we cut before they are resized, one pixel in a hundred differs by a level.

Letters: B batch, H, W size of the images in px, C channels, h, w size of the network's input in px.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto
from PIL import Image

from graftline.augment.preprocess import MOST_SCALED, Preprocessing
from graftline.bundle.onnx_graph import Graph
from graftline.errors import UserError

ONE = float(2**22)  # what Pillow's weights sum to (Resample.c, PRECISION_BITS)

_LUMA = (19595, 38470, 7471)  # Pillow's weights of red, green and blue in gray, in parts of 65,536 (Convert.c, L24)
_SUPPORTS = {"bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}  # Pillow's Resample.c


def preprocess(graph: Graph, pixels: str, way: Preprocessing) -> str:
    """Return the network's input (B, C, h, w), as `Preprocessing` makes it of the pixels."""
    if way.interpolation not in _SUPPORTS:
        raise UserError(
            f"The model resizes images by '{way.interpolation}', which an ONNX file cannot do as Pillow does: take "
            "the Docker export, which runs the model as it is."
        )
    planes = pixels
    if way.channels == 1:
        weighed = graph("Mul", graph.cast(pixels, TensorProto.INT32), graph.constant(_LUMA, np.int32))
        summed = graph("ReduceSum", weighed, graph.constant([-1], np.int64), keepdims=1)
        rounded = graph("Add", summed, graph.constant(2**15, np.int32))
        planes = graph("Div", rounded, graph.constant(2**16, np.int32))
    planes = graph("Transpose", graph.cast(planes, TensorProto.DOUBLE), perm=[0, 3, 1, 2])  # (B, C, H, W)
    sizes = [graph("Squeeze", graph("Shape", pixels, start=axis, end=axis + 1)) for axis in (1, 2)]
    scaled = _scaled_sizes(graph, sizes, way)
    rows, columns = (
        _Axis.of(graph, *edges, way.interpolation) for edges in zip(sizes, scaled, way.image_size, strict=True)
    )
    if _takes_rows_first():
        planes = _resize_either_way(graph, planes, rows, columns, _removed(graph, sizes, scaled, way))
    else:
        planes = _vertical(graph, rows, _horizontal(graph, columns, planes))
    planes = graph.cast(planes, TensorProto.FLOAT)  # (B, C, h, w)
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


def _horizontal(graph: Graph, columns: "_Axis", planes: str) -> str:
    return _to_levels(graph, graph("MatMul", planes, graph("Transpose", columns.weights, perm=[1, 0])))


def _vertical(graph: Graph, rows: "_Axis", planes: str) -> str:
    return _to_levels(graph, graph("MatMul", rows.weights, planes))


def _resize_either_way(graph: Graph, planes: str, rows: "_Axis", columns: "_Axis", removed: tuple[str, str]) -> str:
    """Return the crop of the resized planes (B, C, h, w), with the two passes in the order of Pillow 13.

    It takes the vertical pass first where that removes more than twice as many rows as the other one columns.
    """
    upright, other = graph.branch(), graph.branch()
    upright_crop = _horizontal(upright, columns, _vertical(upright, rows, planes))
    other_crop = _vertical(other, rows, _horizontal(other, columns, planes))
    of_rows, of_columns = removed
    twice = graph("Mul", graph.constant(2, np.int64), of_columns)
    is_upright = graph("And", graph("Greater", of_rows, graph.constant(0, np.int64)), graph("Greater", of_rows, twice))
    return graph("If", is_upright, then_branch=upright.as_graph(upright_crop), else_branch=other.as_graph(other_crop))


def _removed(graph: Graph, sizes: Sequence[str], scaled: Sequence[str], way: Preprocessing) -> tuple[str, str]:
    """Return by how many rows and columns Pillow is asked to shrink an image, of a very long one to the crop itself."""
    most = int(MOST_SCALED * math.prod(way.image_size) / way.crop_pct**2)
    is_long = graph("Greater", graph("Mul", *scaled), graph.constant(most, np.int64))
    asked = [
        graph("Where", is_long, graph.constant(target, np.int64), edge)
        for edge, target in zip(scaled, way.image_size, strict=True)
    ]
    rows, columns = (graph("Sub", size, edge) for size, edge in zip(sizes, asked, strict=True))
    return rows, columns


def _takes_rows_first() -> bool:
    """Tell whether the Pillow that runs here takes the vertical pass first where that is less work."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 16), dtype=np.uint8))
    in_two = image.resize((16, 8), Image.Resampling.BICUBIC).resize((12, 8), Image.Resampling.BICUBIC)
    return image.resize((12, 8), Image.Resampling.BICUBIC).tobytes() == in_two.tobytes()


def _to_levels(graph: Graph, sums: str) -> str:
    """Round sums of whole weights to gray levels, halves up, as Pillow does after each of its two passes."""
    rounded = graph("Floor", graph("Add", graph("Div", sums, _number(graph, ONE)), _number(graph, 0.5)))
    return graph("Clip", rounded, _number(graph, 0), _number(graph, 255))


def _number(graph: Graph, value: float) -> str:
    return graph.constant(value, np.float64)


def _scaled_sizes(graph: Graph, sizes: Sequence[str], way: Preprocessing) -> list[str]:
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
    def of(cls, graph: Graph, size: str, scaled: str, target: int, interpolation: str) -> "_Axis":
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


def _offset(graph: Graph, scaled: str, target: int) -> str:
    """Return which pixel of the resized image is the crop's first: below 0 where the crop is larger."""
    spare = graph("Sub", scaled, graph.constant(target, np.int64))
    half = graph("Mul", graph.cast(spare, TensorProto.DOUBLE), graph.constant(0.5, np.float64))
    cropped, padded = (graph.cast(graph(rounding, half), TensorProto.INT64) for rounding in ("Round", "Ceil"))
    return graph("Where", graph("Less", spare, graph.constant(0, np.int64)), padded, cropped)


def _to_whole(graph: Graph, weights: str) -> str:
    """Return weights in whole numbers of 2^-22, halves away from 0, as Pillow rounds them."""
    scaled = graph("Mul", graph("Abs", weights), _number(graph, ONE))
    return graph("Mul", graph("Sign", weights), graph("Floor", graph("Add", scaled, _number(graph, 0.5))))


def _filter(graph: Graph, x: str, interpolation: str) -> str:
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


def _bicubic(graph: Graph, far: str) -> str:
    """Return Keys' kernel with a = -0.5: 1.5 x^3 - 2.5 x^2 + 1 up to 1, then -0.5 (x^3 - 5 x^2 + 8 x - 4)."""

    def polynomial(*coefficients: float) -> str:
        value = _number(graph, coefficients[0])
        for coefficient in coefficients[1:]:
            value = graph("Add", graph("Mul", value, far), _number(graph, coefficient))
        return value

    near = graph("Less", far, _number(graph, 1))
    return graph("Where", near, polynomial(1.5, -2.5, 0, 1), polynomial(-0.5, 2.5, -4, 2))


def _sinc(graph: Graph, far: str) -> str:
    angle = graph("Mul", graph("Max", far, _number(graph, 1e-9)), _number(graph, math.pi))
    return graph("Div", graph("Sin", angle), angle)
