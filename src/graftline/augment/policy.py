"""Augment training images by a policy, and make the network's input of them.

Letters: ``H``, ``W`` size of an image in px, ``h``, ``w`` size of the network's input in px, ``C`` its channels.
"""

import copy
import math
import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graftline.augment.draw import Draw, Transform
from graftline.augment.preprocess import Box, Preprocessing
from graftline.errors import UserError

__all__ = ["CROP", "Augment", "CandidatePolicy", "Draw", "EvalTransform", "Policy", "RandomCrop", "Transform"]

CROP = "crop"  # what a policy's crop is called beside the names of its transforms


@dataclass(frozen=True)
class RandomCrop:
    """Crop a random part, stretched to the network's size (Szegedy et al. 2015, arXiv 1409.4842, section 6).

    The part always fits: it is measured against the largest box of its shape, not against the whole image, so that a
    panorama is cropped as freely as a square photograph.

    Args:
        scale: least and greatest share of the area of the largest box that fits, in (0, 1]. A small share may lose
            what the label says.
        ratio: least and greatest stretch of the width against the height; (1, 1) keeps the aspect ratio.

    Raises:
        UserError: a range that is empty or outside of its limits.
    """

    scale: tuple[float, float]
    ratio: tuple[float, float]

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"RandomCrop.scale is {list(self.scale)}, but needs 0 < least <= greatest <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"RandomCrop.ratio is {list(self.ratio)}, but needs 0 < least <= greatest.")

    def box(self, size: tuple[int, int], aspect: float, chance: random.Random) -> Box:
        """Return a random box.

        Args:
            size: (H, W) of the image, px.
            aspect: width / height of a box that is not stretched.
            chance: where the draws come from.
        """
        image_height, image_width = size
        # in logarithms, so that twice as wide is as likely as twice as high
        aspect *= math.exp(chance.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
        shrink = math.sqrt(chance.uniform(*self.scale))
        width = min(image_width, image_height * aspect) * shrink
        height = min(image_height, image_width / aspect) * shrink
        left = chance.uniform(0, image_width - width)
        top = chance.uniform(0, image_height - height)
        return left, top, min(left + width, image_width), min(top + height, image_height)


@dataclass(frozen=True)
class Policy:
    """Say what may happen to a training image.

    Args:
        name: for the user.
        crop: the random crop to the network's size; ``None`` for the crop of the evaluation.
        transforms: albumentations transforms by name, done in this order after the crop, where they cost the same for
            every size of image; ``None`` leaves one out.

    Raises:
        UserError: a setting that its albumentations transform does not have.
    """

    name: str
    crop: RandomCrop | None
    transforms: dict[str, Any]

    def __post_init__(self) -> None:
        for name, transform in self.transforms.items():
            # albumentations only warns of these, and trains with the default
            if unknown := getattr(transform, "invalid_args", []):
                kind = type(transform).__name__
                raise UserError(f"Policy.transforms.{name} ({kind}) has no setting {', '.join(map(repr, unknown))}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Return what may happen, in the order in which it does: ``crop`` and the names of the transforms."""
        crop = () if self.crop is None else (CROP,)
        return (*crop, *(name for name, transform in self.transforms.items() if transform is not None))

    def only(self, names: Collection[str]) -> "Policy":
        """Return the policy with nothing left in but what is named."""
        transforms = {name: transform for name, transform in self.transforms.items() if name in names}
        return Policy(self.name, self.crop if CROP in names else None, transforms)

    def certain(self) -> "Policy":
        """Return the policy with each transform happening to each image."""
        transforms = {name: copy.copy(transform) for name, transform in self.transforms.items()}
        for transform in filter(None, transforms.values()):
            transform.p = 1.0
        return replace(self, transforms=transforms)


class CandidatePolicy(Policy):
    """A policy of which only those transforms are to be used that are found to keep the label.

    Which these are is found on the validation images, by ``graftline.training.label_check.choose_policy``.
    """


class EvalTransform:
    """Transform without chance: every draw of an image is the same."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, image: np.ndarray, draw: Draw) -> np.ndarray:  # noqa: ARG002 - the draw makes no difference
        """Return (C, h, w) float32 for an (H, W, 3) uint8 image."""
        return self.preprocessing(image)


class Augment:
    """Transform by draws from a policy. Not for several threads at once: give each its own.

    Args:
        policy: what may happen.
        preprocessing: of the network, gives the size and the normalization.
        seed: the same seed and draw give the same result, bit by bit, in any process; not negative.
    """

    def __init__(self, policy: Policy, preprocessing: Preprocessing, seed: int) -> None:
        assert seed >= 0
        self.policy = policy
        self.preprocessing = preprocessing
        self.seed = seed

    def __call__(self, image: np.ndarray, draw: Draw) -> np.ndarray:
        """Return (C, h, w) float32 for an (H, W, 3) uint8 image."""
        augmented, _ = self.augment(image, draw)
        return self.preprocessing.normalize(augmented)

    def augment(self, image: np.ndarray, draw: Draw) -> tuple[np.ndarray, list[str]]:
        """Return the augmented image before normalization, (h, w, C) uint8, and the names of what happened to it."""
        # One generator for all transforms: Compose.set_random_seed gives each its own with the same seed, and then all
        # transforms of the same p happen together or not at all. It is also slower: 0.11 ms an image instead of 0.02.
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=draw))
        chance = random.Random(int(generator.integers(2**63)))  # noqa: S311 - not for secrets
        happened = []
        if self.policy.crop is None:
            image = self.preprocessing.frame(image)
        else:
            image = self._crop(self.policy.crop, image, chance)
            happened.append(CROP)
        gray = image.shape[2] == 1
        if gray:
            image = image.repeat(3, axis=2)  # many transforms take color images only
        for name, transform in self.policy.transforms.items():
            if transform is None:
                continue
            transform.set_random_state(generator, chance)
            before, image = image, transform(image=image)["image"]
            if image is not before:  # a transform that does not come up hands back what it was given
                happened.append(name)
        return image[..., :1] if gray else image, happened

    def _crop(self, crop: RandomCrop, image: np.ndarray, chance: random.Random) -> np.ndarray:
        image_height, image_width, _ = image.shape
        height, width = self.preprocessing.image_size
        # where the evaluation squashes the whole image, the crop has the image's shape, else the network's
        squash = self.preprocessing.crop_mode == "squash"
        aspect = image_width / image_height if squash else width / height
        return self.preprocessing.resample(image, crop.box((image_height, image_width), aspect, chance))
