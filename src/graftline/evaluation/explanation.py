"""Explain what a network answers: where in the image it found its class, and which training images are like it.

Letters: N images, C channels, H, W height and width in px; h, w height and width of a map, D its channels, T tokens of
a transformer; M training images, E numbers of an embedding, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftline.bundle.heat import GRAD_CAM, OCCLUSION, Method, from_0_to_1
from graftline.bundle.heat import occlusion as cover_places

CONTRADICTION = 0.01  # of a probability: by so much surer without its warmest places, a network contradicts a map
COVERED = 0.25  # share of the image, its warmest places, without which the network is asked again


class NoMapError(Exception):
    """A network has no map of the image on which its answer depends, or it depends on none for this image."""


@dataclass(frozen=True, eq=False)
class Heat:
    """Where a network found the classes that it answered.

    Attributes:
        maps: (N, H, W) float32 from 0 to 1; all 0 where nothing in an image speaks for its class.
        covered: (N,) probability of the class where the warmest quarter of the image is covered.
        elsewhere: (N,) the same for its coolest quarter: where that is as low, no cover tells anything.
        methods: N times what was measured.
    """

    maps: np.ndarray
    covered: np.ndarray
    elsewhere: np.ndarray
    methods: Sequence[Method]


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
        method: by which that was found out.
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
    method: Method
    neighbors: Sequence[Neighbor]


def find_heat(
    network: nn.Module,
    images: Tensor,
    classes: Sequence[int],
    calibrate: Callable[[np.ndarray], np.ndarray],
    on_progress: Callable[[int], None],
) -> Heat:
    """Find out where in images a network found classes.

    It is told by Grad-CAM, and held against the network, which should be less sure with the warmest quarter of an image
    covered than with the coolest. Where it is surer (which happens with transformers, each of whose places knows of all
    others), or has no map of the image on which its answer depends (as where all that leads to it is cut off by
    rectifiers), places are covered one after the other, which takes 49 times as long.

    Args:
        network: a timm network, on the device and in the type of the images; it is put into eval mode.
        images: (N, C, H, W), normalized.
        classes: for each image the number of the class.
        calibrate: makes of the network's logits (N, K) those that the model answers with.
        on_progress: is given the number of images just done.
    """

    def hide(image: Tensor, heat: np.ndarray, number: int) -> np.ndarray:
        """Return the probability of a class (2,) without the warmest quarter of the image, and without the coolest."""
        with torch.inference_mode():
            covered = torch.cat([_cover(image, heat), _cover(image, -heat)])
            logits = torch.from_numpy(calibrate(network(covered).float().cpu().numpy()))
        found: np.ndarray = F.softmax(logits, dim=1)[:, number].numpy()
        return found

    network.eval()
    maps, probabilities, methods = [], [], list[Method]()
    for image, number in zip(images[:, None], classes, strict=True):  # image: (1, C, H, W)
        method: Method = GRAD_CAM
        try:
            heat = grad_cam(network, image, [number])
            warmest, coolest = left = hide(image, heat, number)
        except NoMapError:
            warmest, coolest = 1.0, 0.0
        if warmest > coolest + CONTRADICTION:
            heat, method = occlusion(network, image, [number]), OCCLUSION
            left = hide(image, heat, number)
        methods.append(method)
        probabilities.append(left)
        maps.append(enlarge(heat, (image.shape[2], image.shape[3]))[0])  # how coarse it is depends on the image
        on_progress(1)
    covered, elsewhere = np.stack(probabilities, axis=1)
    return Heat(np.stack(maps), covered, elsewhere, methods)


def grad_cam(network: nn.Module, images: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Return where in each image its class was found: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, section 3).

    It is computed on the network's last map of the image on which the answer depends: behind the last convolution, or,
    where a transformer answers by its class token, on what its last block compares.

    Args:
        network: as in ``find_heat``, and so are the others.
        images: (N, C, H, W).
        classes: of which the logits are explained.

    Returns:
        (N, h, w) float32 from 0 to 1.

    Raises:
        NoMapError: there is no such map.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        outputs, logits = _run(network, images)
        score = logits[torch.arange(len(images)), torch.as_tensor(classes)].sum()
        gradients = torch.autograd.grad(score, outputs, allow_unused=True) if outputs else ()
    for output, gradient in zip(outputs, gradients, strict=True):
        slopes = None if gradient is None else _as_map(network, gradient, images)
        activations = _as_map(network, output.detach(), images)
        if slopes is not None and activations is not None and bool((slopes != 0).any()):
            weights = slopes.mean(dim=(2, 3), keepdim=True)  # (N, D, 1, 1), equation 1
            found = (weights * activations).sum(dim=1).clamp_min(0)  # (N, h, w), equation 2
            return from_0_to_1(found.float().cpu().numpy())
    raise NoMapError


def _run(network: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return what the parts of a network give for images, the last first, and the logits."""
    named, outputs = dict(network.named_modules()), list[Tensor]()

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            outputs.append(output)

    hooks = [named[name].register_forward_hook(keep) for name in _parts(network) if name in named]
    try:
        if not hasattr(network, "forward_features"):
            logits = network(images)
            return outputs[::-1], logits
        features = network.forward_features(images)
        return [*([features] if isinstance(features, Tensor) else []), *outputs[::-1]], network.forward_head(features)
    finally:
        for hook in hooks:
            hook.remove()


def _parts(network: Any) -> Iterator[str]:
    """Yield the names of the modules that end a stage, as timm lists them, and of a block's norm before attention."""
    info = getattr(network, "feature_info", ())
    for entry in getattr(info, "info", info):
        yield from (str(entry.get("module", "")), f"{entry.get('module', '')}.norm1")


def _as_map(network: Any, tensor: Tensor, images: Tensor) -> Tensor | None:
    """Return a tensor as (N, D, h, w) with h or w above 1, None where it is no map of the images (N, C, H, W)."""
    height, width = images.shape[2:]
    if tensor.ndim == 4:
        last = tensor.permute(0, 3, 1, 2)  # Swin's are (N, h, w, D)
        shapes = (last, tensor) if getattr(network, "output_fmt", "NCHW") == "NHWC" else (tensor, last)
        return next((one for one in shapes if _is_alike(one.shape[2], one.shape[3], height / width)), None)
    if tensor.ndim == 3:  # (N, T, D)
        for prefix in (getattr(network, "num_prefix_tokens", 0), 0, 1):  # CaiT counts none, and its class joins late
            places = tensor.shape[1] - prefix
            rows = round((max(places, 0) * height / width) ** 0.5)
            if rows > 0 and places % rows == 0 and _is_alike(rows, places // rows, height / width):
                return tensor[:, prefix:].transpose(1, 2).reshape(len(tensor), -1, rows, places // rows)
    return None


def _is_alike(rows: int, columns: int, ratio: float) -> bool:
    """Tell whether a map has more than one place, and the form of an image of this height by width, but for a row."""
    return rows * columns > 1 and abs(rows - columns * ratio) <= max(1.0, ratio)


def occlusion(network: nn.Module, images: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Return where covering an image lowers the log probability of its class; see `graftline.bundle.heat.occlusion`.

    Args:
        network: as in ``find_heat``, and so are the others.
        images: (N, C, H, W).
        classes: of which the probabilities are explained.

    Returns:
        (N, 8, 8) float32 from 0 to 1.
    """

    def run(hidden: np.ndarray) -> np.ndarray:
        logits: np.ndarray = network(torch.from_numpy(hidden).to(images.device)).float().cpu().numpy()
        return logits

    with torch.inference_mode():
        return cover_places(run, images.cpu().numpy(), classes)


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
