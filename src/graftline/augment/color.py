"""Shift colors along the principal components of an image's own colors."""

from typing import Any

import albumentations
import cv2
import numpy as np
from pydantic import Field


class PCAShift(albumentations.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is not typed
    """Add one random color to all pixels, drawn along the principal components of the image's colors.

    An image shifts most in the colors that it varies in; a gray one gets lighter or darker and stays gray. The method
    is that of Krizhevsky et al. 2012 (AlexNet), section 4.1. They take the components of all of ImageNet and scale them
    by the eigenvalue, a variance; on a single image of little contrast that is less than one gray level. Here the
    components are the image's own, scaled by the standard deviation; the paper's strength is about ``alpha=0.05``.

    albumentations' ``FancyPCA`` does something else: it stretches the colors around their mean, which stays, and with
    its default ``alpha=0.1`` it changes a photograph by 0.01 gray levels (version 2.0.8).

    Args:
        alpha: standard deviation of the shift along a component, as a share of the colors' own along it.
        p: how likely it is.
    """

    class InitSchema(albumentations.ImageOnlyTransform.InitSchema):  # type: ignore[misc]  # as above
        """What albumentations checks the arguments against."""

        alpha: float = Field(ge=0)

    def __init__(self, alpha: float = 0.1, p: float = 0.5) -> None:
        super().__init__(p=p)
        self.alpha = alpha

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - albumentations gives it
        """Return the color to add, 3 values in gray levels."""
        image = data["image"]
        step = max(1, min(image.shape[:2]) // 56)  # some thousand pixels have the same components as all
        pixels = image[::step, ::step].reshape(-1, 3)
        variances, components = np.linalg.eigh(np.cov(pixels, rowvar=False))  # components in columns
        spread = np.sqrt(np.maximum(variances, 0))  # rounding makes some a little negative
        return {"shift": components @ (self.random_generator.normal(0, self.alpha, 3) * spread)}

    def apply(self, img: np.ndarray, shift: np.ndarray, **_: Any) -> np.ndarray:
        """Return ``img`` (h, w, 3) uint8 with ``shift`` added to each pixel, ends clipped."""
        shifted: np.ndarray = cv2.add(img, (*shift, 0.0))
        return shifted
