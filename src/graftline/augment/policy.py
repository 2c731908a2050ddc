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
from PIL import Image

from graftline.augment.draw import Draw, Transform
from graftline.augment.preprocess import Box, Preprocessing
from graftline.errors import UserError

__all__ = ["CROP", "Augment", "CandidatePolicy", "Draw", "EvalTransform", "Policy", "RandomCrop", "Transform"]

CROP = "crop"  # what a policy's crop is called beside the names of its transforms

# How many pixels of a kept picture the least crop has for each of the network's, per edge. At 1.5, crops of photographs
# are by half a gray level other than those of the file, 99 % of the pixels by less than 3, and 2 % less sharp.
SPARE = 1.5


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

    def least(self, size: tuple[int, int], aspect: float) -> tuple[float, float]:
        """Return (height, width) that no box of ``box`` falls below, px; the arguments are the same."""
        shrink = math.sqrt(self.scale[0])
        height = min(size[0], size[1] / (aspect * self.ratio[1])) * shrink
        return height, min(size[1], size[0] * aspect * self.ratio[0]) * shrink


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

    def without_candidates(self) -> "Policy":
        """Return the policy with what it is known to use: all of it, but of a ``CandidatePolicy`` nothing."""
        return self

    def certain(self) -> "Policy":
        """Return the policy with each transform happening to each image."""
        transforms = {name: copy.copy(transform) for name, transform in self.transforms.items()}
        for transform in filter(None, transforms.values()):
            transform.p = 1.0
        return replace(self, transforms=transforms)


class CandidatePolicy(Policy):
    """A policy of which only those transforms are to be used that are found to keep the label.

    Which these are is found on the validation images, by ``graftline.training.label_check.find_policy``.
    """

    def without_candidates(self) -> Policy:
        """Return the policy before that is found: nothing happens to an image."""
        return self.only(())


class EvalTransform:
    """Transform without chance: every draw of an image is the same."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, image: np.ndarray, draw: Draw) -> np.ndarray:
        """Return (C, h, w) float32 for an (H, W, 3) uint8 image."""
        return self.finish(self.prepare(image), draw)

    @property
    def preparation(self) -> str:
        """What ``prepare`` depends on."""
        return repr(self.preprocessing)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return (h, w, C) uint8, all that is needed of an (H, W, 3) uint8 image."""
        return self.preprocessing.frame(image)

    def finish(self, picture: np.ndarray, draw: Draw) -> np.ndarray:  # noqa: ARG002 - the draw makes no difference
        """Return (C, h, w) float32 for what ``prepare`` gave."""
        return self.preprocessing.normalize(picture)

    def prepared_size(self, size: tuple[int, int]) -> tuple[int, int, int]:  # noqa: ARG002 - all give the same
        """Return the shape of what ``prepare`` gives for an image of (H, W) px."""
        return *self.preprocessing.image_size, self.preprocessing.channels


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

    @property
    def preparation(self) -> str:
        """What ``prepare`` depends on."""
        crop = self.policy.crop
        return repr(self.preprocessing) if crop is None else repr((self.preprocessing, crop))

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return what ``finish`` needs of an (H, W, 3) uint8 image, uint8.

        Without a random crop that is the frame (h, w, C), and ``finish`` gives what a call gives to the last bit. With
        one it is the image, made smaller (H, W, 3) where even its least crop has more than ``SPARE`` times the pixels
        per edge that the network takes: the crops are those of a call, resampled twice.
        """
        if self.policy.crop is None:
            return self.preprocessing.frame(image)
        height, width, _ = self.prepared_size(image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        picture = Image.fromarray(image).resize((width, height), self.preprocessing.filter)
        return np.array(picture)

    def finish(self, picture: np.ndarray, draw: Draw) -> np.ndarray:
        """Return (C, h, w) float32 for what ``prepare`` gave."""
        augmented, _ = self.augment(picture, draw, framed=True)
        return self.preprocessing.normalize(augmented)

    def prepared_size(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return the shape of what ``prepare`` gives for an image of (H, W) px."""
        crop, wanted = self.policy.crop, self.preprocessing.image_size
        if crop is None:
            return *wanted, self.preprocessing.channels
        least = crop.least(size, self._aspect(size))
        factor = min(1.0, SPARE * max(edge / smallest for edge, smallest in zip(wanted, least, strict=True)))
        return math.ceil(size[0] * factor), math.ceil(size[1] * factor), 3

    def augment(self, image: np.ndarray, draw: Draw, *, framed: bool = False) -> tuple[np.ndarray, list[str]]:
        """Return the augmented image before normalization, (h, w, C) uint8, and the names of what happened to it.

        Args:
            image: (H, W, 3) uint8, or what ``prepare`` made of it.
            draw: which version of the image is wanted.
            framed: whether ``prepare`` has been there.
        """
        # One generator for all transforms: Compose.set_random_seed gives each its own with the same seed, and then all
        # transforms of the same p happen together or not at all. It is also slower: 0.11 ms an image instead of 0.02.
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=draw))
        chance = random.Random(int(generator.integers(2**63)))  # noqa: S311 - not for secrets
        happened = []
        if self.policy.crop is None:
            image = image if framed else self.preprocessing.frame(image)
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
        size = image.shape[0], image.shape[1]
        return self.preprocessing.resample(image, crop.box(size, self._aspect(size), chance))

    def _aspect(self, size: tuple[int, int]) -> float:
        """Return width / height of a crop that is not stretched, of an image of (H, W) px."""
        # where the evaluation squashes the whole image, the crop has the image's shape, else the network's
        height, width = size if self.preprocessing.crop_mode == "squash" else self.preprocessing.image_size
        return width / height
