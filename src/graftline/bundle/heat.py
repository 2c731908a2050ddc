"""Where in an image a network found a class. Imports numpy only: it also runs in a small serving container.

Letters: N images, C channels, H, W height and width in px; h, w height and width of the network's last map, D its
channels; K classes.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

Method = Literal["Grad-CAM", "occlusion"]
GRAD_CAM: Method = "Grad-CAM"
OCCLUSION: Method = "occlusion"

CELLS, WINDOW = 8, 2  # occlusion covers 2 x 2 of 8 x 8 cells at a time, at each of 7 x 7 places

_HEADER_SIZE = 8  # bytes, of the length of a safetensors file's header


def class_activation_map(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return where an image speaks for a class: Zhou et al. 2016, arXiv 1512.04150, equation 2.

    Where the logits are the mean of the last map times weights, this is Grad-CAM on that map (Selvaraju et al. 2017,
    arXiv 1610.02391, section 3.1) but for a factor.

    Args:
        features: (D, h, w), the network's last map.
        weights: (D,) of the class.

    Returns:
        (h, w) float32 from 0 to 1.
    """
    found = np.einsum("dhw,d->hw", features.astype(np.float64), weights.astype(np.float64))
    heat: np.ndarray = from_0_to_1(np.maximum(found, 0)[None])[0]
    return heat


def occlusion(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Return where covering an image lowers the log probability of its class: Zeiler and Fergus 2014, section 4.2.

    arXiv 1311.2901. What covers a place is the mean color of the image.

    Args:
        run: the network: images (N, C, H, W) to logits (N, K).
        images: (N, C, H, W), normalized.
        classes: of which the probabilities are explained.

    Returns:
        (N, 8, 8) float32 from 0 to 1: the mean over all windows that cover a cell.
    """
    rows, columns = (np.linspace(0, edge, CELLS + 1).round().astype(int) for edge in images.shape[2:])
    chosen = np.arange(len(images)), np.asarray(classes)
    colors = images.mean(axis=(2, 3), keepdims=True)
    falls, times = np.zeros((len(images), CELLS, CELLS)), np.zeros((CELLS, CELLS))
    before = _log_softmax(run(images))[chosen]
    for top, left in np.ndindex(CELLS - WINDOW + 1, CELLS - WINDOW + 1):
        hidden = images.copy()
        hidden[:, :, rows[top] : rows[top + WINDOW], columns[left] : columns[left + WINDOW]] = colors
        after = _log_softmax(run(hidden))[chosen]
        falls[:, top : top + WINDOW, left : left + WINDOW] += (before - after)[:, None, None]
        times[top : top + WINDOW, left : left + WINDOW] += 1
    return from_0_to_1(np.maximum(falls / times, 0))


def from_0_to_1(maps: np.ndarray) -> np.ndarray:
    """Return maps (N, h, w) with a minimum of 0 and a maximum of 1; one that is the same everywhere becomes 0."""
    above = maps - maps.min(axis=(1, 2), keepdims=True)
    largest = np.maximum(above.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    found: np.ndarray = (above / largest).astype(np.float32)
    return found


def read_tensor(file: Path, name: str) -> np.ndarray:
    """Return a float32 tensor of a safetensors file (https://github.com/huggingface/safetensors, "Format").

    A small serving container has no package that reads such files.
    """
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(_HEADER_SIZE), "little")
        entry = json.loads(opened.read(size))[name]
        assert entry["dtype"] == "F32", "a bundle's weights are float32"
        start, end = entry["data_offsets"]
        opened.seek(_HEADER_SIZE + size + start)
        return np.frombuffer(opened.read(end - start), "<f4").reshape(entry["shape"])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
