"""EfficientNet of any size (Tan and Le 2019, "EfficientNet: Rethinking Model Scaling", arXiv 1905.11946).

One number, phi, makes the network deeper, wider and its images larger at the same time (section 3.3, equation 3).
phi = 0 is EfficientNet-B0, block for block timm's ``efficientnet_b0``. The released B1 to B7 lie near phi = 0.5, 1, 2,
3.5, 5, 6, 7; their coefficients were rounded by hand, so that they are not quite ours.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.efficientnet import EfficientNet, _gen_efficientnet

from graftline.errors import UserError

# Section 3.3, step 1: found by a grid search under ALPHA * BETA² * GAMMA² = 2, so that phi + 1 costs about twice.
ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15  # depth, width, resolution
B0_IMAGE_SIZE = 224  # px
# Beyond, it is no network to train: of 55 px and one block a stage below, of 906 px and 224 GMACs above.
PHI_LIMITS = (-10.0, 10.0)


def depth(phi: float) -> float:
    """Return the factor of the number of blocks in each stage, which is rounded up.

    >>> depth(1.0)
    1.2
    """
    return float(ALPHA**phi)


def width(phi: float) -> float:
    """Return the factor of the number of channels of each layer, which is rounded to a multiple of 8.

    >>> round(width(2.0), 2)
    1.21
    """
    return float(BETA**phi)


def resolution(phi: float) -> int:
    """Return the side of the images in px: 224 * GAMMA^phi to the nearest pixel.

    The network takes any size, so that nothing but the pixel needs rounding: this is as near to equation 3 as can be.
    The released networks round up to a multiple of 4, some by much more (380 px where equation 3 says 365).

    >>> resolution(0.0), resolution(1.0), resolution(-1.0)
    (224, 258, 195)
    """
    return round(B0_IMAGE_SIZE * float(GAMMA**phi))


def check_phi(phi: float) -> None:
    """Make sure that phi is one that a network can be built for.

    Raises:
        UserError: it is outside of ``PHI_LIMITS``.
    """
    if not PHI_LIMITS[0] <= phi <= PHI_LIMITS[1]:
        raise UserError(
            f"phi is {phi}, but must be between {PHI_LIMITS[0]:g} and {PHI_LIMITS[1]:g} (0 is B0, 7 is B7)."
        )


default_cfgs = generate_default_cfgs(
    {
        "efficientnet": {
            "input_size": (3, B0_IMAGE_SIZE, B0_IMAGE_SIZE),
            "mean": (0.485, 0.456, 0.406),  # with crop_pct and interpolation: as timm's efficientnet_b0
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "first_conv": "conv_stem",
            "classifier": "classifier",
            "license": "apache-2.0",
            "origin_url": "https://arxiv.org/abs/1905.11946",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]  # timm ships no types
def efficientnet(pretrained: bool = False, phi: float = 0.0, **kwargs: Any) -> EfficientNet:
    """EfficientNet-B0 scaled by phi; there are published weights for phi = 0 only, those of ``efficientnet_b0``.

    Raises:
        UserError: phi is outside of ``PHI_LIMITS``.
    """
    check_phi(phi)
    if not isinstance(kwargs.get("pretrained_cfg"), dict):  # else a saved network, whose images may be of another size
        size = {"input_size": (3, resolution(phi), resolution(phi))}
        kwargs["pretrained_cfg_overlay"] = {**size, **(kwargs.get("pretrained_cfg_overlay") or {})}
    return _gen_efficientnet(
        "efficientnet", channel_multiplier=width(phi), depth_multiplier=depth(phi), pretrained=pretrained, **kwargs
    )
