"""Find the image sizes that a network takes, by trying: no network declares them."""

import time
from collections.abc import Callable

import torch
from torch import nn

from graftline.errors import UserError, first_line

STEP = 32  # px; most networks that are particular want multiples of it, or of a part of it
MAX_STEPS = 8  # how far to look, in steps
MAX_SECONDS = 3.0  # of work, to look for other sizes; one that was not tried until then is not named


# A trade of accuracy for time: the head alone on EfficientNet-Lite0, 600 images of Fashion-MNIST (28 px), has 84.2 % at
# 224 px and 79.7 % at 128 px in a third of the time, as the frozen filters know things of the size of ImageNet's.
MOST_ENLARGED = 4
SMALLEST = 96  # px; the last maps of networks that halve their maps five times are 3 x 3 then


def size_for_images(side: int, usual: int) -> int:
    """Return the size in px at which a network is to see images: its usual one, smaller where the images are small.

    Args:
        side: the shorter side of nearly all images, in px.
        usual: the size that the network was made for, in px.

    >>> [size_for_images(side, usual=224) for side in (8, 28, 32, 48, 64, 300)]
    [96, 128, 128, 192, 224, 224]
    """
    enlarged = -(-MOST_ENLARGED * side // STEP) * STEP
    return min(usual, max(SMALLEST, enlarged))


def check_size(name: str, size: int, usual: int, channels: int, network_for: Callable[[int], nn.Module]) -> None:
    """Make sure that a network takes square images of a size.

    Args:
        name: of the network.
        size: in px.
        usual: the size that the network was made for, in px.
        channels: of the images.
        network_for: gives the network for images of a size in px; called on the meta device, where nothing is computed.

    Raises:
        UserError: it does not; the nearest sizes that it takes are given.
    """
    with torch.device("meta"):
        patch = _patch_size(network_for(usual))

    def refusal(size: int) -> str | None:
        return _left_over(size, patch) or find_refusal(network_for, size, channels)

    if (reason := refusal(size)) is None:
        return
    end = time.thread_time() + MAX_SECONDS
    others = nearest_sizes(
        size,
        accepts=lambda other: time.thread_time() < end and refusal(other) is None,
        step=patch if STEP % patch else STEP,
    )
    takes = f"{' or '.join(map(str, others))} px are accepted" if others else "no size near that is accepted"
    raise UserError(
        f"The backbone '{name}' cannot take images of {size} px ({reason}): {takes}; it was made for {usual} px."
    )


def takes_as_it_is(network: nn.Module, size: int, channels: int) -> bool:
    """Tell whether a network, built on the meta device for its usual size, takes square images of another, in px."""
    return _left_over(size, _patch_size(network)) is None and find_refusal(lambda _: network, size, channels) is None


def nearest_sizes(size: int, accepts: Callable[[int], bool], step: int = STEP) -> list[int]:
    """Return the nearest size below and the nearest above ``size`` that are accepted, where there are such.

    First multiples of ``step`` are tried, then steps are halved as long as that brings one nearer: exact for networks
    that take all sizes from some size on, and for those that want multiples of ``step``, of its half, of its quarter, …

    Args:
        size: in px; is not accepted itself.
        accepts: whether a size in px is accepted; called 26 times at most where ``step`` is 32.
        step: px.

    >>> nearest_sizes(225, lambda size: size % 16 == 0)
    [224, 240]
    >>> nearest_sizes(50, lambda size: size >= 75)
    [75]
    """
    first = size // step  # steps to the multiple just below, or to the size itself
    below = [step * number for number in range(first, 0, -1) if step * number < size][:MAX_STEPS]
    above = [step * (first + number) for number in range(1, MAX_STEPS + 1)]
    found = (_approach(size, candidates, accepts, step) for candidates in (below, above))
    return [best for best in found if best is not None]


def _approach(size: int, candidates: list[int], accepts: Callable[[int], bool], step: int) -> int | None:
    """Return an accepted size that is as near as possible, on the side of the candidates."""
    best = next((candidate for candidate in candidates if accepts(candidate)), None)
    while best is not None and (step := step // 2):
        nearer = best + step if best < size else best - step
        if (nearer < size) == (best < size) and nearer != size and accepts(nearer):
            best = nearer
    return best


def find_refusal(network_for: Callable[[int], nn.Module], size: int, channels: int) -> str | None:
    """Return why a network does not take images of a size, or None if it does; arguments as for ``check_size``."""
    try:
        with torch.device("meta"), torch.no_grad():
            network_for(size).eval()(torch.empty(1, channels, size, size))
    except Exception as error:  # a convolution's, a pooling's, a window's: each has its own
        return first_line(error)
    return None


def _left_over(size: int, patch: int) -> str | None:
    """Return what patches leave over of an image, as a part of a sentence: some of timm's code would not see it."""
    return f"its patches of {patch} px leave {size % patch} px over" if size % patch else None


def _patch_size(network: nn.Module) -> int:
    """Return the side in px of the patches that a transformer cuts images into; 1 if any size will do."""
    embed = getattr(network, "patch_embed", None)
    size = getattr(embed, "patch_size", None)
    return size[0] if isinstance(size, tuple) and not getattr(embed, "dynamic_img_pad", False) else 1
