"""Explain what a network answers: where in the image it found its class, and which training images are like it.

Letters: N images, C channels, H, W height and width in px; h, w height and width of a map, D its channels; M training
images, E numbers of an embedding, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftline.bundle.refusal import unit

GRAD_CAM = "it speaks for the answer (Grad-CAM, last convolution)"
OCCLUSION = "covering it makes the answer less sure (occlusion); the network has no map of convolutions"

CELLS, WINDOW = 8, 2  # occlusion covers 2 x 2 of 8 x 8 cells at a time, at each of 7 x 7 places
COVERED = 0.25  # share of the image, its warmest places, without which the network is asked again
CHUNK = 4096  # training images that are compared at once


class NoMapError(Exception):
    """A network has no map of the image that convolutions have made, on which its answer depends."""


@dataclass(frozen=True, eq=False)
class Heat:
    """Where a network found the classes that it answered.

    Attributes:
        maps: (N, h, w) float32 from 0 to 1; all 0 where nothing in an image speaks for its class.
        covered: (N,) probability of the class where the warmest quarter of the image is covered.
        elsewhere: (N,) the same for its coolest quarter: where that is as low, no cover tells anything.
        method: what was measured, as a part of a sentence.
    """

    maps: np.ndarray
    covered: np.ndarray
    elsewhere: np.ndarray
    method: str


@dataclass(frozen=True, eq=False)
class Neighbor:
    """A training image that is like an explained one.

    Attributes:
        path: of its file.
        label: its class.
        distance: of the embeddings at unit length, from 0 to 2.
        view: (H, W, C) uint8, what the network sees of it.
    """

    path: str
    label: str
    distance: float
    view: np.ndarray


@dataclass(frozen=True, eq=False)
class Explanation:
    """What is known of one answer.

    Attributes:
        path: of the image's file.
        label: its class; None where nobody has said.
        answer: the class that was answered.
        probability: of the answer.
        covered: probability of the answer where the warmest quarter of the image is covered.
        elsewhere: the same for its coolest quarter.
        view: (H, W, C) uint8, what the network sees of it.
        heat: (H, W) float32 from 0 to 1, where the answer was found.
        neighbors: the nearest training images, the nearest first; none where they are not known.
    """

    path: str
    label: str | None
    answer: str
    probability: float
    covered: float
    elsewhere: float
    view: np.ndarray
    heat: np.ndarray
    neighbors: Sequence[Neighbor]


def find_heat(
    network: nn.Module,
    images: Tensor,
    classes: Sequence[int],
    calibrate: Callable[[np.ndarray], np.ndarray],
    on_progress: Callable[[int], None],
) -> Heat:
    """Find out where in images a network found classes.

    Convolutional networks tell by Grad-CAM. In a transformer each place of the last map knows of all others, so that
    Grad-CAM points anywhere: there, places are covered one after the other, which takes 49 times as long.

    Args:
        network: a timm network, on the device and in the type of the images; it is put into eval mode.
        images: (N, C, H, W), normalized.
        classes: for each image the number of the class.
        calibrate: makes of the network's logits (N, K) those that the model answers with.
        on_progress: is given the number of images just done.
    """
    network.eval()
    maps, probabilities, method = [], [], GRAD_CAM
    for image, number in zip(images.split(1), classes, strict=True):
        try:
            heat = grad_cam(network, image, [number])
        except NoMapError:
            heat, method = occlusion(network, image, [number]), OCCLUSION
        with torch.inference_mode():
            covered = torch.cat([_cover(image, heat), _cover(image, -heat)])
            logits = torch.from_numpy(calibrate(network(covered).float().cpu().numpy()))
        probabilities.append(F.softmax(logits, dim=1)[:, number].numpy())
        maps.append(heat[0])
        on_progress(1)
    warmest, coolest = np.stack(probabilities, axis=1)
    return Heat(np.stack(maps), warmest, coolest, method)


def grad_cam(network: nn.Module, images: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Return where in each image its class was found: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, section 3).

    Args:
        network: as in ``find_heat``, and so are the others.
        images: (N, C, H, W).
        classes: of which the logits are explained.

    Returns:
        (N, h, w) float32 from 0 to 1, of the network's last map.

    Raises:
        NoMapError: what timm calls its features are no map (N, D, h, w) with h or w above 1 on which the logits depend.
    """
    with torch.enable_grad():
        activations, logits = _features_and_logits(network, images.detach().requires_grad_())
        score = logits[torch.arange(len(images)), torch.as_tensor(classes)].sum()
        (slopes,) = torch.autograd.grad(score, activations)
    weights = slopes.mean(dim=(2, 3), keepdim=True)  # (N, D, 1, 1), equation 1
    return _from_0_to_1((weights * activations.detach()).sum(dim=1).clamp_min(0))  # (N, h, w), equation 2


def _features_and_logits(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    try:
        features = network.forward_features(images)
        logits = network.forward_head(features)
    except (AttributeError, NotImplementedError) as error:
        raise NoMapError from error
    is_map = isinstance(features, Tensor) and features.ndim == 4 and getattr(network, "output_fmt", "NCHW") == "NCHW"
    if not is_map or features.shape[2] * features.shape[3] == 1:
        raise NoMapError
    return features, logits


def occlusion(network: nn.Module, images: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Return where covering an image lowers the log probability of its class: Zeiler and Fergus 2014, section 4.2.

    arXiv 1311.2901. What covers a place is the mean color of the image.

    Args:
        network: as in ``find_heat``, and so are the others.
        images: (N, C, H, W).
        classes: of which the probabilities are explained.

    Returns:
        (N, 8, 8) float32 from 0 to 1: the mean over all windows that cover a cell.
    """
    rows = np.linspace(0, images.shape[2], CELLS + 1).round().astype(int)
    columns = np.linspace(0, images.shape[3], CELLS + 1).round().astype(int)
    chosen = torch.arange(len(images)), torch.as_tensor(classes)
    falls, times = torch.zeros(len(images), CELLS, CELLS), torch.zeros(CELLS, CELLS)
    with torch.inference_mode():
        before = F.log_softmax(network(images).float(), dim=1).cpu()[chosen]
        for top, left in np.ndindex(CELLS - WINDOW + 1, CELLS - WINDOW + 1):
            hidden = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
            hidden[rows[top] : rows[top + WINDOW], columns[left] : columns[left + WINDOW]] = True
            after = F.log_softmax(network(_hide(images, hidden)).float(), dim=1).cpu()[chosen]
            falls[:, top : top + WINDOW, left : left + WINDOW] += (before - after)[:, None, None]
            times[top : top + WINDOW, left : left + WINDOW] += 1
    return _from_0_to_1((falls / times).clamp_min(0))


def _cover(images: Tensor, heat: np.ndarray) -> Tensor:
    """Return images (N, C, H, W) with their mean color where maps (N, h, w) are largest, in a quarter of them."""
    maps = torch.from_numpy(enlarge(heat, (images.shape[2], images.shape[3]))).to(images.device)
    limits = torch.quantile(maps.flatten(1), 1 - COVERED, dim=1)[:, None, None, None]
    return _hide(images, maps[:, None] > limits)


def _hide(images: Tensor, hidden: Tensor) -> Tensor:
    return torch.where(hidden, images.mean(dim=(2, 3), keepdim=True), images)


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return maps (N, h, w) at the size of the network's images, (N, H, W)."""
    larger = F.interpolate(torch.from_numpy(maps)[:, None], size, mode="bilinear", align_corners=False)
    found: np.ndarray = larger[:, 0].numpy()
    return found


def _from_0_to_1(maps: Tensor) -> np.ndarray:
    """Return maps (N, h, w) with a minimum of 0 and a maximum of 1; one that is the same everywhere becomes 0."""
    above = maps - maps.amin(dim=(1, 2), keepdim=True)
    largest = above.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    found: np.ndarray = (above / largest).float().cpu().numpy()
    return found


def nearest(references: np.ndarray, embeddings: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which references are nearest to each embedding, and how far: both are compared at unit length.

    Args:
        references: (M, E) of training images, of any length.
        embeddings: (N, E).
        count: how many are wanted of each.

    Returns:
        (N, count) rows of ``references``, the nearest first, and (N, count) distances from 0 to 2; fewer columns where
        there are fewer references. Of those equally near, the first comes first.
    """
    directions = unit(embeddings)
    rows = np.empty((len(embeddings), 0), np.int64)
    cosines = np.empty((len(embeddings), 0), np.float32)
    for start in range(0, len(references), CHUNK):
        some = directions @ unit(references[start : start + CHUNK]).T
        cosines = np.concatenate([cosines, some], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + some.shape[1]), some.shape)], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        rows, cosines = np.take_along_axis(rows, order, axis=1), np.take_along_axis(cosines, order, axis=1)
    return rows, np.sqrt(np.maximum(2 - 2 * cosines, 0))
