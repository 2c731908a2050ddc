"""Intervals of 95 % for an accuracy, and for the difference of two on the same images."""

import math

import numpy as np
import numpy.typing as npt

Z = 1.959964  # of the normal distribution, two-sided 95 %


def wilson(accuracy: float, num_images: int) -> tuple[float, float]:
    """Return the interval of an accuracy (Wilson 1927, JASA 22(158)).

    >>> [round(limit, 3) for limit in wilson(0.9, 100)]
    [0.826, 0.945]
    """
    weight = 1 + Z**2 / num_images
    center = (accuracy + Z**2 / (2 * num_images)) / weight
    half = Z / weight * math.sqrt(accuracy * (1 - accuracy) / num_images + Z**2 / (4 * num_images**2))
    return center - half, center + half


def paired(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> tuple[float, float, float]:
    """Return by how much one is better than the other on the same images, and the interval of that.

    The interval is that of Agresti and Min (2005, Statistics in Medicine 24) for matched pairs: half an image is added
    to each of the four cells, so that two that never differ get an interval too.

    Args:
        one: (N,) 1 where it is right, 0 where it is wrong; means over several seeds lie between.
        other: (N,) likewise.
    """
    difference = one - other
    size = len(difference) + 2
    mean = float(difference.sum()) / size
    variance = (float((difference**2).sum()) + 1) / size - mean**2
    half = Z * math.sqrt(variance / size)
    return float(difference.mean()), mean - half, mean + half
